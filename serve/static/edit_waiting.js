// Waiting: one task at a time, which can be cancelled; every failure becomes a message.

const $ = (id) => document.getElementById(id);

let running = null; // AbortController of the current task
let onChange = () => {};

export function start(listener) {
  onChange = listener;
  $("cancel").addEventListener("click", cancel);
  $("dismiss").addEventListener("click", () => tell(""));
  $("no-key").addEventListener("click", () => $("key-dialog").close());
}

export function isWaiting() {
  return running !== null;
}

export function cancel() {
  running?.abort();
}

export function tell(text) {
  $("message").querySelector("span").textContent = text;
  $("message").hidden = !text;
}

// `work` gets an abort signal, and reports how long a busy service makes it wait.
export async function act(words, work) {
  if (running) return;
  running = new AbortController();
  tell("");
  show(words);
  const begun = Date.now();
  const clock = setInterval(() => ($("elapsed").textContent = `${Math.round((Date.now() - begun) / 1000)} s`), 1000);
  try {
    await work(running.signal, (reason, seconds) => {
      $("status").textContent = seconds ? `The service is busy (${reason}). Trying again in ${seconds} s.` : words;
    });
  } catch (error) {
    fail(error, () => act(words, work));
  } finally {
    clearInterval(clock);
    running = null;
    show("");
  }
}

// Asks for a key if one is missing, and then repeats the refused request.
export function fail(error, again) {
  if (error.name === "AbortError") return;
  if (error.status === 401) askKey(error.message, again);
  else tell(error.message);
  // An error without a status is a fault of this page.
  if (error.status === undefined) throw error;
}

function askKey(reason, again) {
  $("key-reason").textContent = reason;
  $("key").value = "";
  $("key-form").again = again;
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

function show(words) {
  const isBusy = words !== "";
  $("work").inert = isBusy;
  $("waiting").hidden = $("cancel").hidden = !isBusy;
  $("elapsed").textContent = "";
  $("status").textContent = words;
  onChange();
  if (isBusy) $("cancel").focus({ preventScroll: true });
}
