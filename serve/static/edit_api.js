// The page's requests to the service, and its retries while the service is busy.

const KEY = "api-key"; // in sessionStorage alone: it is gone with the tab
const RETRY_S = 2; // where a busy service does not say when to come back

// An error of the service with its HTTP status, or of the page (a file, the connection) with 0.
export class Refusal extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

function headers() {
  const key = sessionStorage.getItem(KEY);
  return key ? { authorization: `Bearer ${key}` } : {};
}

// Returns the answer to a request; after a 429 it retries when the service says.
async function request(path, options, onBusy = () => {}) {
  for (;;) {
    let answer;
    try {
      answer = await fetch(path, { ...options, headers: headers() });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refusal("The service does not answer. Look whether it runs, then try again.");
    }
    if (answer.ok) return answer;
    const refusal = await readRefusal(answer);
    if (answer.status !== 429) throw refusal;
    await pause(readRetryAfter(answer), options.signal, (seconds) => onBusy(refusal.message, seconds));
  }
}

async function readRefusal(answer) {
  const text = await answer.text();
  let message = answer.headers.get("content-type")?.startsWith("text/plain") ? text.slice(0, 300) : "";
  try {
    message = JSON.parse(text).error.message || message;
  } catch {
    // no JSON, from a proxy for instance
  }
  return new Refusal(message || `The service answered ${answer.status} ${answer.statusText}.`, answer.status);
}

function readRetryAfter(answer) {
  const seconds = Number(answer.headers.get("retry-after") || NaN);
  return Number.isFinite(seconds) ? Math.max(1, Math.ceil(seconds)) : RETRY_S;
}

function pause(seconds, signal, onTick) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearInterval(timer);
      reject(new DOMException("cancelled", "AbortError"));
    };
    const timer = setInterval(() => {
      seconds -= 1;
      onTick(seconds);
      if (seconds > 0) return;
      clearInterval(timer);
      signal?.removeEventListener("abort", stop);
      resolve();
    }, 1000);
    signal?.addEventListener("abort", stop, { once: true });
    onTick(seconds);
  });
}

export async function listModels(signal) {
  const { data } = await (await request("v1/models", { signal })).json();
  return data;
}

// Returns candidates in the order of their noise, so that those of two models can be compared.
export async function paint(form, signal, onBusy) {
  const answer = await request("v1/images/edits", { method: "POST", body: form, signal }, onBusy);
  const content = await answer.json();
  return {
    seed: answer.headers.get("x-seed") ?? form.get("seed"),
    policyVersion: answer.headers.get("x-policy-version"),
    size: content.size,
    candidates: content.data.map(({ b64_json, reward = null, lower = null, upper = null }, index) => {
      const blob = toBlob(b64_json);
      return { index, blob, url: URL.createObjectURL(blob), reward, lower, upper };
    }),
  };
}

function toBlob(base64) {
  const characters = atob(base64);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < characters.length; i++) bytes[i] = characters.charCodeAt(i);
  return new Blob([bytes], { type: "image/png" });
}
