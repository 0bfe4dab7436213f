// The page of the inpainting service. All state is here: the service keeps nothing between requests.
import { listModels, paint, setKey } from "./edit_api.js";
import { SIDES, closePicture, closeRound, fullSize, isExtended, makeMask, makeUpload, openPicture } from "./edit_picture.js";
import { frameCandidates, hasRewards, moveLine, showComparison, showRound, sortCandidates, whyNoBase } from "./edit_results.js";
import * as stage from "./edit_stage.js";
import { act, cancel, fail, isWaiting, start as startWaiting, tell } from "./edit_waiting.js";

const CANDIDATES = 4;
const MOST_FORMER = 10; // photographs that can be gone back to
const SETTINGS = ["num_inference_steps", "prompt", "guidance_scale"];

const $ = (id) => document.getElementById(id);

let models = [];
let picture = null; // the opened photograph
let former = []; // what was worked on before, the latest last
let chosen = null; // the candidate that is looked at
let view = "empty";

// View

function setView(name) {
  view = name;
  $("empty").hidden = view !== "empty";
  $("work").hidden = $("actions").hidden = view === "empty";
  showControls();
  if (view === "edit") stage.show(picture);
  window.scrollTo(0, 0);
}

function showControls() {
  for (const element of document.querySelectorAll("[data-views]")) {
    element.hidden = !element.dataset.views.split(" ").includes(view) || (isWaiting() && Boolean(element.dataset.verb));
  }
  if (picture === null) return;
  if (view === "candidates") frameCandidates(picture);
  if (former.length === 0) $("former").hidden = true;
  if (view === "edit" && picture.round === null) $("all").hidden = true;
  $("reading").hidden ||= !hasRewards(picture.round.candidates);
  $("paint").textContent = view === "candidates" ? "Paint four others" : "Paint four candidates";
  $("paint").disabled = !hasHole();
  $("undo").disabled = $("clear").disabled = picture.strokes.length === 0;
  if (!isWaiting()) $("status").textContent = view === "edit" ? describeHole() : "";
}

function hasHole() {
  return picture.coverage > 0 || isExtended(picture) || picture.isTransparent;
}

function describeHole() {
  const [width, height] = fullSize(picture);
  const size = `${picture.width} × ${picture.height}`;
  const extended = isExtended(picture) ? `${size} → ${width} × ${height}` : size;
  if (!hasHole()) return `${extended} · paint what is to be replaced, or drag a border outwards`;
  if (picture.coverage === 0 && picture.isTransparent) return `${extended} · its transparent part is painted`;
  const percent = 100 * picture.coverage;
  return percent ? `${extended} · hole ${percent < 0.1 ? "under 0.1" : percent.toFixed(1)} %` : extended;
}

// Photographs

async function open(blob, name) {
  tell("");
  let opened;
  try {
    opened = await openPicture(blob, name);
  } catch (error) {
    return fail(error);
  }
  cancel();
  if (picture !== null) former.push(picture);
  if (former.length > MOST_FORMER) closePicture(former.shift());
  picture = opened;
  setView("edit");
  $("hole").focus({ preventScroll: true });
}

async function showCandidates() {
  setView("candidates");
  const drawn = showRound(picture, picture.round, choose);
  showControls();
  await drawn;
}

// Asking

function chosenModel() {
  return $("model").disabled ? null : $("model").value;
}

async function makeForm() {
  picture.upload ??= await makeUpload(picture);
  const form = new FormData();
  form.append("image", picture.upload.blob, picture.upload.name);
  const mask = picture.coverage > 0 ? await makeMask(picture) : null;
  if (mask !== null) {
    form.append("mask", mask, "mask.png");
    form.append("mask_convention", "white");
  }
  if (isExtended(picture)) form.append("expand", SIDES.map((side) => picture.expand[side]).join(","));
  form.append("n", CANDIDATES);
  form.append("seed", $("seed").value || crypto.getRandomValues(new Uint32Array(1))[0] >>> 1);
  form.append("output_format", "png");
  if (chosenModel()) form.append("model", chosenModel());
  for (const name of SETTINGS) {
    const { value } = document.querySelector(`.settings [name=${name}]`);
    if (value) form.append(name, value);
  }
  return form;
}

async function paintCandidates(signal, onBusy) {
  if (models.length === 0) await loadModels(signal);
  const form = await makeForm();
  signal.throwIfAborted();
  const answer = await paint(form, signal, onBusy);
  if (picture.round) closeRound(picture.round);
  const { candidates, ...facts } = answer;
  const { note } = picture.upload;
  const model = form.get("model") ?? models[0]?.id ?? null;
  picture.round = { ...facts, note, form, model, candidates: sortCandidates(candidates), base: null };
  await showCandidates();
}

// Sends the same request to the base model: same hole and seed, so the same noise for each candidate.
async function paintBase(signal, onBusy) {
  const { round } = picture;
  const form = new FormData();
  for (const [name, value] of round.form) if (name !== "model" && name !== "seed") form.append(name, value);
  form.append("model", models.find(({ id }) => id === round.model).base);
  form.append("seed", round.seed);
  round.base = await paint(form, signal, onBusy);
}

// Comparing

function choose(candidate) {
  chosen = candidate;
  const { round } = picture;
  const reason = whyNoBase(models, round.model, round.seed);
  const option = document.querySelector("[name=against][value=base]");
  option.disabled = reason !== "";
  $("no-base").textContent = reason;
  if (reason) setLeft("photograph");
  $("split").value = 50;
  setView("compare");
  compare();
}

function setLeft(value) {
  document.querySelector(`[name=against][value=${value}]`).checked = true;
}

function compare() {
  const { round } = picture;
  const wantsBase = document.querySelector("[name=against]:checked").value === "base";
  if (wantsBase && round.base === null) {
    setLeft("photograph");
    showComparison(picture, round, chosen, null);
    return act("Asking the base model …", async (signal, onBusy) => {
      await paintBase(signal, onBusy);
      setLeft("base");
      compare();
    });
  }
  const base = wantsBase ? round.base.candidates.find(({ index }) => index === chosen.index) ?? null : null;
  showComparison(picture, round, chosen, base);
  return undefined;
}

function nameAnswer() {
  const stem = picture.name.replace(/\.[^.]*$/, "").replace(/-inpainted(-\d+)?$/, "");
  return `${stem || "photograph"}-inpainted-${former.length + 1}.png`;
}

const verbs = {
  paint: () => act("Painting four candidates …", paintCandidates),
  edit: () => setView("edit"),
  candidates: showCandidates,
  save() {
    Object.assign(document.createElement("a"), { href: chosen.url, download: nameAnswer() }).click();
  },
  async take() {
    await open(chosen.blob, nameAnswer());
  },
  former() {
    const left = picture;
    picture = former.pop();
    closePicture(left);
    return picture.round ? showCandidates() : setView("edit");
  },
};

// Keys

function onKey(event) {
  const isTyping = event.target.matches("input:not([type=range], [type=radio]), select");
  if (view === "empty" || isWaiting() || isTyping || event.altKey || $("key-dialog").open) return;
  const key = event.key.toLowerCase();
  const isUndo = key === "z" && (event.ctrlKey || event.metaKey);
  if (!isUndo && (event.ctrlKey || event.metaKey)) return;
  if (view === "edit" && (isUndo || key === "u")) stage.undo();
  else if (view === "edit" && (key === "b" || key === "e")) {
    document.querySelector(`[name=tool][value=${key === "b" ? "brush" : "eraser"}]`).checked = true;
  } else if (view === "compare" && key === "escape") showCandidates();
  else if (view !== "edit" && /^[1-4]$/.test(key) && picture.round.candidates[key - 1]) {
    choose(picture.round.candidates[key - 1]);
  } else return;
  event.preventDefault();
}

// Start

async function loadModels(signal) {
  models = await listModels(signal);
  const options = models.map(({ id }) => Object.assign(document.createElement("option"), { value: id, textContent: id }));
  $("model").replaceChildren(...options);
  $("model").disabled = models.length === 0;
  const aligned = models.find(({ base }) => base && models.some(({ id }) => id === base));
  if (models.length) $("model").value = (aligned ?? models[0]).id;
  showServed();
}

function askModels() {
  return loadModels().catch((error) => fail(error, askModels));
}

function showServed() {
  const model = models.find(({ id }) => id === $("model").value);
  const version = model?.policy_version;
  $("served").textContent = model ? `${model.id}${version === undefined ? "" : ` · policy ${version}`}` : "";
}

function openFirst(list) {
  const file = [...(list ?? [])].find(({ type }) => type.startsWith("image/")) ?? list?.[0];
  if (file) open(file, file.name || "photograph");
}

startWaiting(showControls);
stage.start(() => view === "edit" && showControls());
for (const id of ["open", "choose"]) $(id).addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  openFirst($("file").files);
  $("file").value = "";
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => event.relatedTarget === null && document.body.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  openFirst(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => openFirst(event.clipboardData.files));
document.addEventListener("keydown", onKey);
$("undo").addEventListener("click", stage.undo);
$("clear").addEventListener("click", stage.clear);
$("model").addEventListener("change", showServed);
$("split").addEventListener("input", moveLine);
for (const option of document.querySelectorAll("[name=framing]")) {
  option.addEventListener("change", () => frameCandidates(picture));
}
for (const option of document.querySelectorAll("[name=against]")) option.addEventListener("change", compare);
for (const button of document.querySelectorAll("[data-verb]")) {
  button.addEventListener("click", () => verbs[button.dataset.verb]());
}
$("key-form").addEventListener("submit", () => {
  setKey($("key").value);
  setTimeout($("key-form").again);
});
askModels();
