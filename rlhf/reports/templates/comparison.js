const gallery = document.getElementById("gallery");
const cards = [...gallery.children].map((node) => ({ node, keys: JSON.parse(node.dataset.keys) }));
const chosen = (id) => document.getElementById(id).value;

function arrange() {
  const [family, photograph, order, contestant, judge] =
    ["family", "photograph", "order", "contestant", "judge"].map(chosen);
  const key = order === "disagreement" ? "disagreement" : judge;
  const value = (card) => card.keys[contestant][key];
  const sign = order === "worst" ? 1 : -1;
  const hidden = new Set([...document.querySelectorAll("#controls input:not(:checked)")].map((box) => box.value));
  let count = 0;
  for (const card of [...cards].sort((a, b) => sign * (value(a) - value(b)))) {
    const { node } = card;
    node.hidden = (family && node.dataset.family !== family) || (photograph && node.dataset.photograph !== photograph);
    count += node.hidden ? 0 : 1;
    for (const part of node.querySelectorAll("[data-contestant]")) part.hidden = hidden.has(part.dataset.contestant);
    const what = order === "disagreement" ? "judges disagree by" : "gain";
    node.querySelector(".key").textContent = `· ${contestant}: ${what} ${value(card).toFixed(3)}`;
    gallery.append(node);
  }
  document.getElementById("judge").disabled = order === "disagreement";
  document.getElementById("count").textContent = `${count} ${count === 1 ? "prompt" : "prompts"}`;
}

document.getElementById("controls").addEventListener("change", arrange);
arrange();
