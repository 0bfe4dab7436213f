// Four candidates, and the comparison of one with the photograph or the base model's.
import { closeUp, drawAsked, fullSize, isExtended } from "./edit_picture.js";

const ASKED_WIDTH_PX = 544;
const $ = (id) => document.getElementById(id);

export function letter(position) {
  return String.fromCharCode(65 + position);
}

// The best first: ordered by the lower ends, or by the noise if there are none.
export function sortCandidates(candidates) {
  const lower = (candidate) => candidate.lower ?? -Infinity;
  return [...candidates].sort((a, b) => (lower(a) === lower(b) ? a.index - b.index : lower(b) - lower(a)));
}

export function hasRewards(candidates) {
  return candidates.some(({ reward }) => reward !== null);
}

function number(value) {
  return value.toFixed(2).replace("-", "−");
}

// An unknown end counts as infinite.
function describeBound({ lower, upper }) {
  if (lower === null && upper === null) return "no bound";
  return `[${lower === null ? "−∞" : number(lower)}, ${upper === null ? "∞" : number(upper)}]`;
}

// Shows reward and bound in words, and draws them on the common scale of all candidates.
function makeScore(scored, all) {
  const { reward, lower, upper } = scored;
  const words = document.createElement("p");
  if (reward === null) {
    words.textContent = "No reward";
    return [words];
  }
  const value = Object.assign(document.createElement("strong"), { textContent: number(reward) });
  const bound = Object.assign(document.createElement("span"), { textContent: describeBound(scored) });
  words.append("Reward ", value, " ", bound);
  return lower === null || upper === null ? [words] : [words, makeInterval(scored, all)];
}

function makeInterval({ reward, lower, upper }, all) {
  const ends = all.flatMap((each) => [each.lower, each.reward, each.upper]).filter((value) => value !== null);
  const [from, to] = [Math.min(...ends), Math.max(...ends)];
  const share = (value) => (to > from ? (100 * (value - from)) / (to - from) : 50);
  const box = Object.assign(document.createElement("div"), { className: "interval" });
  const range = document.createElement("i");
  const mark = document.createElement("b");
  Object.assign(range.style, { left: `${share(lower)}%`, right: `${100 - share(upper)}%` });
  mark.style.left = `${share(reward)}%`;
  box.append(range, mark);
  box.setAttribute("aria-hidden", "true");
  return box;
}

// Shows the whole pictures, or the surroundings of the hole.
export function frameCandidates(picture) {
  const around = closeUp(picture);
  $("framing").hidden = around === null;
  const isClose = around !== null && document.querySelector("[name=framing]:checked").value === "close";
  $("candidates").classList.toggle("close", isClose);
  for (const image of document.querySelectorAll("#candidates img")) {
    const percent = (pixels) => `${(100 * pixels) / around.side}%`;
    const style = { width: picture.width, height: picture.height, left: -around?.left, top: -around?.top };
    for (const [name, pixels] of Object.entries(style)) image.style[name] = isClose ? percent(pixels) : "";
  }
}

export function showRound(picture, round, choose) {
  const { candidates } = round;
  const cards = candidates.map((candidate, position) => {
    const card = $("card").content.firstElementChild.cloneNode(true);
    const image = card.querySelector("img");
    image.src = candidate.url;
    image.alt = `Candidate ${letter(position)}`;
    card.querySelector("h3").textContent = `Candidate ${letter(position)}`;
    card.querySelector(".picture").setAttribute("aria-label", `Look at candidate ${letter(position)}`);
    card.querySelector(".picture").addEventListener("click", () => choose(candidate));
    if (hasRewards(candidates)) card.querySelector(".score").append(...makeScore(candidate, candidates));
    return card;
  });
  $("candidates").replaceChildren(...cards);
  const [width, height] = fullSize(picture);
  $("candidates").classList.toggle("upright", width < height);
  frameCandidates(picture);
  const facts = { Model: round.model, Policy: round.policyVersion, Seed: round.seed, Size: round.size?.replace("x", " × "), Note: round.note };
  $("facts").replaceChildren(
    ...Object.entries(facts).filter(([, value]) => value).flatMap(([name, value]) => [
      Object.assign(document.createElement("dt"), { textContent: name }),
      Object.assign(document.createElement("dd"), { textContent: value }),
    ]),
  );
  return drawAsked($("asked"), picture, ASKED_WIDTH_PX);
}

// Comparison

function shareStyle(picture) {
  const [width, height] = fullSize(picture);
  const { left, top } = picture.expand;
  const percent = (part, whole) => `${(100 * part) / whole}%`;
  return {
    left: percent(left, width),
    top: percent(top, height),
    width: percent(picture.width, width),
    height: percent(picture.height, height),
  };
}

// `base` is the base model's candidate from the same noise, or null if the photograph is left of the line.
export function showComparison(picture, round, candidate, base) {
  const position = round.candidates.indexOf(candidate);
  const [width, height] = fullSize(picture);
  const box = document.querySelector(".pair-box");
  box.style.setProperty("--ratio", width / height);
  $("right-picture").src = candidate.url;
  $("right-picture").alt = `Candidate ${letter(position)}`;
  $("right-name").textContent = `Candidate ${letter(position)}`;
  const whole = { left: "0", top: "0", width: "100%", height: "100%" };
  $("left-picture").src = base === null ? picture.url : base.url;
  $("left-picture").alt = $("left-name").textContent = base === null ? "Photograph" : "Base model";
  Object.assign($("left-picture").style, base === null ? shareStyle(picture) : whole);
  $("left-layer").classList.toggle("extends", base === null && isExtended(picture));
  const compared = base === null ? [candidate] : [base, candidate];
  const isScored = hasRewards(compared);
  $("scores").replaceChildren(
    ...(isScored ? compared : []).map((scored) => {
      const line = document.createElement("div");
      const name = document.createElement("h3");
      name.textContent = scored === base ? "Base model, same noise" : `Candidate ${letter(position)}`;
      line.append(name, ...makeScore(scored, [...round.candidates, ...compared]));
      return line;
    }),
  );
  moveLine();
}

export function moveLine() {
  const share = Number($("split").value);
  document.querySelector(".pair-box").style.setProperty("--split", `${share}%`);
  $("split").setAttribute("aria-valuetext", `${Math.round(share)} % from the left`);
}

// Returns the reason why the base model cannot be compared, or nothing.
export function whyNoBase(models, modelId, seed) {
  const model = models.find(({ id }) => id === modelId);
  if (seed === null) return "The service did not say which seed it used.";
  if (models.length < 2) return "One model is served alone, without its base model.";
  if (!model?.base) return `${modelId ?? "This model"} is itself a base model.`;
  if (!models.some(({ id }) => id === model.base)) return `Its base model, ${model.base}, is not served.`;
  return "";
}
