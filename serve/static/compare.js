// The comparison page: the annotation page, on which one choice marks both pictures of a pair.
"use strict";

const CHOICES = { 0: "none", 1: "0", 2: "1" }; // key -> position of the better picture

// A pair shares one point. It counts once it is stored, so the next pair follows at once.
function choose(better) {
  act(async () => {
    for (const position of [0, 1]) {
      const share = better === "none" ? 0.5 : Number(position === Number(better));
      setMarks(position, Object.fromEntries(MARKS.map((name) => [name, String(share)])));
    }
    await flush();
    show(await ask("POST", `/api/tasks/${task.key}/finish`));
  });
}

// Before the annotation page's own keys, which would set a slider.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("task").hidden || $("zoom").open) return;
  if (event.target.id === "name") return;
  if (event.key in CHOICES) {
    if (!event.repeat) choose(CHOICES[event.key]);
  } else if (!/^[3-7.,e]$|^Arrow|^Enter$/.test(event.key) || event.target.tagName === "BUTTON") {
    return;
  }
  event.preventDefault();
  event.stopImmediatePropagation();
}, true);
for (const button of document.querySelectorAll("[data-choice]")) {
  button.addEventListener("click", () => choose(button.dataset.choice));
}
