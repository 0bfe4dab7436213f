// The annotation page. The server holds all state; the page shows the open task.
"use strict";

const MARKS = ["structure", "texture", "overall"];
const SAVE_DELAY_MS = 150;
const RETRY_MS = 3000;
const PASSING = ["unreachable", "database_unavailable"]; // refusals that time may mend
const OUTDATED = ["lease_expired", "task_closed", "unknown_task"]; // refusals after which the page asks anew

const $ = (id) => document.getElementById(id);
const leaseMs = Number(document.body.dataset.leaseS) * 1000;

let person = localStorage.getItem("annotator") || "";
let task = null; // {key, pictures, marks}
let pending = new Map(); // position -> marks that the server does not have yet
let saving = Promise.resolve();
let saveTimer = 0;
let isBusy = false;
let lastSet = null; // the slider that a digit set last, for "."
let lastContact = Date.now();

// Requests

class Refusal extends Error {
  constructor(message, code) {
    super(message);
    this.code = code;
  }
}

async function ask(method, path, body) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: body === undefined ? {} : { "content-type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
      keepalive: method === "PUT",
    });
  } catch {
    throw new Refusal("The server does not answer. Your marks stay here and are sent again.", "unreachable");
  }
  lastContact = Date.now();
  const content = await answer.json().catch(() => ({}));
  if (answer.ok) return content;
  const error = content.error || {};
  throw new Refusal(error.message || `The server answered ${answer.status}.`, error.code);
}

function tell(text, durationMs = 6000) {
  $("message").textContent = text;
  $("message").hidden = !text;
  clearTimeout(tell.timer);
  tell.timer = setTimeout(() => ($("message").hidden = true), durationMs);
}

// Sends one request at a time that changes the view; a refusal becomes a message, not an exception.
async function act(work) {
  if (isBusy) return;
  isBusy = true;
  showMissing();
  try {
    await work();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    tell(error.message);
    if (OUTDATED.includes(error.code)) await reload().catch(() => {});
    else if (pending.size && PASSING.includes(error.code)) saveLater(RETRY_MS);
  } finally {
    isBusy = false;
    showMissing();
  }
}

// Asks for the task again; if it is the same, marks not yet stored are sent again.
async function reload() {
  const unsaved = pending;
  const before = task && task.key;
  pending = new Map();
  show(await ask("POST", "/api/next", { annotator: person }));
  if (task && task.key === before) {
    for (const [position, marks] of unsaved) setMarks(position, marks);
  }
}

// Saving

function queue(position) {
  const marks = readMarks(position);
  if (marks === null) return;
  pending.set(position, marks);
  $("saved").textContent = "Saving …";
  saveLater(SAVE_DELAY_MS);
}

function saveLater(delayMs) {
  clearTimeout(saveTimer);
  saveTimer = setTimeout(() => flush().catch(retry), delayMs);
}

function flush() {
  clearTimeout(saveTimer);
  saving = saving.catch(() => {}).then(async () => {
    if (!task || pending.size === 0) return;
    const sent = new Map(pending);
    const marks = [...sent].map(([position, values]) => ({ position, ...values }));
    await ask("PUT", `/api/tasks/${task.key}/marks`, { marks });
    for (const [position, values] of sent) if (pending.get(position) === values) pending.delete(position);
    if (pending.size === 0) $("saved").textContent = "Saved";
  });
  return saving;
}

function retry(error) {
  if (!(error instanceof Refusal)) throw error;
  tell(error.message);
  $("saved").textContent = "Not saved yet";
  if (OUTDATED.includes(error.code)) act(reload);
  else if (PASSING.includes(error.code)) saveLater(RETRY_MS);
}

function renew() {
  if (!task || Date.now() - lastContact < leaseMs / 4) return;
  lastContact = Date.now();
  ask("POST", `/api/tasks/${task.key}/renew`).catch(retry);
}

// View

function show(view) {
  task = view.task;
  pending = new Map();
  lastSet = null;
  showProgress(view.progress);
  showConsistency(view.consistency);
  $("welcome").hidden = true;
  $("person").hidden = false;
  $("person").textContent = person;
  $("task").hidden = $("actions").hidden = task === null;
  $("finished").hidden = task !== null;
  if (task === null) {
    const { done, needed } = view.progress;
    $("finished-title").textContent = done >= needed ? "All prompts are judged" : "Nothing left for you now";
    $("finished-text").textContent = done >= needed
      ? "Thank you. The results are exported when the server stops."
      : "What is left is with other people, or you skipped it. What others abandon comes to you later.";
    return;
  }
  $("masked").src = `/api/tasks/${task.key}/masked.png`;
  $("pictures").replaceChildren(...Array.from({ length: task.pictures }, (_, position) => makeCard(position)));
  for (const { position, ...marks } of task.marks) setMarks(position, marks, { isStored: true });
  $("saved").textContent = task.marks.length ? "Saved" : "";
  showMissing();
  window.scrollTo(0, 0);
  (sliders().find(isUnset) || sliders()[0]).focus({ preventScroll: true });
  showAgreement();
}

function letter(position) {
  return position < 26 ? String.fromCharCode(65 + position) : String(position + 1);
}

function makeCard(position) {
  const card = $("card").content.firstElementChild.cloneNode(true);
  card.dataset.position = position;
  card.querySelector("h3").textContent = letter(position);
  const image = card.querySelector("img");
  image.src = `/api/tasks/${task.key}/pictures/${position}.png`;
  image.alt = `Candidate ${letter(position)}`;
  card.querySelector(".picture").addEventListener("click", () => zoom(position));
  for (const slider of card.querySelectorAll("input")) {
    slider.classList.add("unset");
    slider.setAttribute("aria-label", `${slider.name} of ${letter(position)}`);
    slider.nextElementSibling.textContent = "–";
    // A click on the middle changes no value, so `input` alone would miss it.
    for (const event of ["input", "pointerup"]) slider.addEventListener(event, () => setSlider(slider, slider.value));
  }
  return card;
}

function showProgress({ judged, skipped, done, needed }) {
  $("bar").value = needed ? done / needed : 0;
  const skips = skipped ? `, ${skipped} skipped` : "";
  $("progress-text").textContent = `All: ${done} of ${needed} · you: ${judged}${skips}`;
}

function number(value) {
  return value === null ? "–" : value.toFixed(2);
}

function showConsistency({ images, mean_absolute_difference: difference, weighted_kappa: kappa }) {
  $("consistency").textContent = images
    ? `With yourself, on ${images} pictures seen twice: marks differ by ` +
      MARKS.map((name) => `${number(difference[name])} (${name})`).join(", ") +
      `; weighted kappa ${MARKS.map((name) => number(kappa[name])).join(", ")}.`
    : "With yourself: nothing was shown to you twice yet.";
}

async function showAgreement() {
  const figures = await ask("GET", "/agreement").catch(() => null);
  if (figures === null) return;
  const alpha = figures.krippendorff_alpha;
  $("agreement").textContent = figures.images_scored_by_several
    ? `Between people, on ${figures.images_scored_by_several} pictures: Krippendorff’s alpha ` +
      MARKS.map((name) => `${number(alpha[name])} (${name})`).join(", ") + "."
    : "Between people: no picture was scored by two yet.";
}

function showMissing() {
  const missing = sliders().filter(isUnset).length;
  $("missing").textContent = missing ? `${missing} of ${sliders().length} marks to go` : "";
  for (const button of document.querySelectorAll("[data-verb]")) {
    button.disabled = isBusy || (button.dataset.verb === "finish" && missing > 0);
  }
}

// Sliders

function sliders() {
  return [...$("pictures").querySelectorAll("input")];
}

function isUnset(slider) {
  return slider.classList.contains("unset");
}

function cardAt(position) {
  return $("pictures").querySelector(`[data-position="${position}"]`);
}

function setSlider(slider, value, { isStored = false } = {}) {
  if (!isUnset(slider) && slider.dataset.mark === String(value)) return;
  const card = slider.closest(".card");
  slider.value = value;
  slider.dataset.mark = slider.value;
  slider.classList.remove("unset");
  slider.nextElementSibling.textContent = slider.value;
  const position = Number(card.dataset.position);
  card.classList.toggle("judged", readMarks(position) !== null);
  if (!isStored) queue(position);
  showMissing();
}

function setMarks(position, marks, options) {
  for (const slider of cardAt(position).querySelectorAll("input")) setSlider(slider, marks[slider.name], options);
}

function readMarks(position) {
  const inputs = [...cardAt(position).querySelectorAll("input")];
  return inputs.some(isUnset) ? null : Object.fromEntries(inputs.map((slider) => [slider.name, Number(slider.value)]));
}

function focusedSlider() {
  const all = sliders();
  return all.find((slider) => slider === document.activeElement) || all.find(isUnset) || all[0];
}

function moveFocus(from, offset) {
  const all = sliders();
  const next = all[all.indexOf(from) + offset];
  if (!next) return;
  next.focus({ preventScroll: true });
  next.closest(".card").scrollIntoView({ block: "nearest" });
}

// Actions

const verbs = {
  again: reload,
  async finish() {
    await flush();
    show(await ask("POST", `/api/tasks/${task.key}/finish`));
  },
  async skip() {
    pending.clear();
    await flush();
    show(await ask("POST", `/api/tasks/${task.key}/skip`));
  },
  async undo() {
    if (task) await flush();
    show(await ask("POST", "/api/undo", { annotator: person }));
  },
  async same() {
    const marks = readMarks(0);
    if (marks === null) return tell("Score picture A first; the others then get its marks.");
    for (let position = 1; position < task.pictures; position++) setMarks(position, marks);
    await flush();
  },
  async export() {
    await flush();
    const { judgements, file } = await ask("POST", "/api/export");
    tell(`${judgements} judgements are in ${file}`);
  },
};

function zoom(position) {
  const dialog = $("zoom");
  dialog.dataset.position = position;
  $("zoom-picture").src = `/api/tasks/${task.key}/pictures/${position}.png`;
  $("zoom-name").textContent = letter(position);
  $("zoom-masked").src = $("masked").src;
  if (!dialog.open) dialog.showModal();
}

function togglePixels(isOn = !document.body.classList.contains("pixelated")) {
  document.body.classList.toggle("pixelated", isOn);
  localStorage.setItem("pixelated", isOn ? "1" : "");
  $("pixels").setAttribute("aria-pressed", isOn);
  $("pixels").textContent = isOn ? "smooth pictures" : "show pixels";
}

// Keys

function onZoomKey(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step) zoom((Number($("zoom").dataset.position) + step + task.pictures) % task.pictures);
  else if (event.key.toLowerCase() === "z") $("zoom").close();
  else return event.key.toLowerCase() === "p" ? togglePixels() : undefined;
  event.preventDefault();
}

function onSliderKey(event) {
  const slider = focusedSlider();
  if (/^[0-7]$/.test(event.key)) {
    setSlider(slider, event.key);
    lastSet = slider;
    moveFocus(slider, 1);
  } else if ((event.key === "." || event.key === ",") && lastSet) {
    setSlider(lastSet, String(Math.min(7, Math.floor(Number(lastSet.value)) + 0.5)));
  } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    moveFocus(slider, event.key === "ArrowDown" ? 1 : -1);
  } else if (event.key.toLowerCase() === "z") {
    zoom(Number(slider.closest(".card").dataset.position));
  } else {
    return;
  }
  event.preventDefault();
}

function onKey(event) {
  renew();
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.id === "name") return;
  if ($("zoom").open) return onZoomKey(event);
  if (!$("welcome").hidden) return;
  const key = event.key.toLowerCase();
  const verb = { e: "same", s: "skip", u: "undo", enter: "finish" }[key];
  if (key === "enter" && event.target.tagName === "BUTTON") return;
  if (verb === "undo" || (verb && task)) {
    event.preventDefault();
    if (event.repeat) return;
    const missing = sliders().find(isUnset);
    if (verb === "finish" && missing) missing.focus();
    else act(verbs[verb]);
  } else if (key === "p") {
    togglePixels();
  } else if (task) {
    onSliderKey(event);
  }
}

// Start

function welcome() {
  $("welcome").hidden = false;
  for (const id of ["task", "actions", "finished", "person"]) $(id).hidden = true;
  $("name").value = person;
  $("name").focus();
}

document.addEventListener("keydown", onKey);
document.addEventListener("pointerdown", renew);
addEventListener("pagehide", () => flush().catch(() => {}));
$("welcome").addEventListener("submit", (event) => {
  event.preventDefault();
  act(async () => {
    person = $("name").value.trim();
    task = null;
    await reload();
    localStorage.setItem("annotator", person);
  });
});
$("person").addEventListener("click", () => act(async () => {
  await flush();
  welcome();
}));
$("pixels").addEventListener("click", () => togglePixels());
$("zoom").addEventListener("click", () => $("zoom").close());
document.querySelector("[data-zoom=masked]").addEventListener("click", () => zoom(0));
for (const button of document.querySelectorAll("[data-verb]")) {
  button.addEventListener("click", () => act(verbs[button.dataset.verb]));
}
togglePixels(Boolean(localStorage.getItem("pixelated")));
if (person) act(reload).then(() => task === null && $("finished").hidden && welcome());
else welcome();
