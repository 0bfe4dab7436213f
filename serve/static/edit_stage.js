// The photograph under work: a brush on it, and borders that can be dragged outwards.
import { SIDES, countPixels, fullSize, makeStripes } from "./edit_picture.js";
import { drawStroke, setInk } from "./edit_strokes.js";

const MARGIN = { least_px: 40, share: 0.08, most_px: 90 }; // around the photograph, for handles and for dragging them
const LARGEST_SCALE = 6; // of a small photograph
const SMALLEST_BRUSH_PX = 3; // narrower strokes would hold no whole pixel
const KEY_STEP_PX = 16; // by which an arrow key extends
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const OUTWARDS = { left: [-1, 0], top: [0, -1], right: [1, 0], bottom: [0, 1] };

const $ = (id) => document.getElementById(id);
const canvas = $("hole");
const context = canvas.getContext("2d", { willReadFrequently: true });
const maxExpandPx = Number(document.body.dataset.maxExpandPx);

let picture = null;
let scale = 1; // pixels of the page per pixel of the photograph
let corner = [0, 0]; // of the photograph on the stage
let stroke = null; // the one that is being painted
let keyPoint = null; // where the brush stands that arrow keys move
let onChange = () => {};

export function start(listener) {
  onChange = listener;
  canvas.addEventListener("pointerdown", beginStroke);
  canvas.addEventListener("pointermove", goOnStroke);
  canvas.addEventListener("pointerup", endStroke);
  canvas.addEventListener("pointercancel", endStroke);
  canvas.addEventListener("pointerleave", () => ($("ring").hidden = true));
  canvas.addEventListener("keydown", onCanvasKey);
  canvas.addEventListener("blur", () => ($("ring").hidden = true));
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  $("size").addEventListener("input", showBrushSize);
  for (const handle of document.querySelectorAll(".handle")) listenToHandle(handle);
  for (const side of SIDES) field(side).addEventListener("change", () => extend(side, Number(field(side).value)));
  new ResizeObserver(() => picture && $("stage").clientWidth && fit()).observe($("stage"));
}

export function show(shown) {
  picture = shown;
  keyPoint = null;
  $("photo").src = picture.url;
  $("photo").alt = picture.name;
  fit();
  showBrushSize();
}

export function undo() {
  picture.strokes.pop();
  redraw();
}

export function clear() {
  picture.strokes = [];
  redraw();
}

// Layout

// As large as the stage allows, with the extension.
export function fit() {
  const stage = $("stage");
  const [width, height] = fullSize(picture);
  const room = [stage.clientWidth, stage.clientHeight].map((length) => length - 2 * marginOf(length));
  scale = Math.max(Math.min(room[0] / width, room[1] / height, LARGEST_SCALE), 1e-3);
  const { left, top } = picture.expand;
  corner = [
    (stage.clientWidth - width * scale) / 2 + left * scale,
    (stage.clientHeight - height * scale) / 2 + top * scale,
  ];
  place();
  const density = Math.min(devicePixelRatio || 1, 2);
  canvas.width = Math.max(1, Math.round(picture.width * scale * density));
  canvas.height = Math.max(1, Math.round(picture.height * scale * density));
  redraw();
}

function marginOf(length) {
  return Math.min(Math.max(MARGIN.least_px, length * MARGIN.share), MARGIN.most_px);
}

// Draws the paper around the photograph, which keeps its place.
function place() {
  const { left, top } = picture.expand;
  const [width, height] = fullSize(picture);
  put($("paper"), corner[0] - left * scale, corner[1] - top * scale, width * scale, height * scale);
  for (const layer of [$("photo"), canvas]) {
    put(layer, left * scale, top * scale, picture.width * scale, picture.height * scale);
  }
  for (const side of SIDES) {
    const handle = document.querySelector(`.handle[data-side=${side}]`);
    const pixels = picture.expand[side];
    handle.setAttribute("aria-valuenow", pixels);
    handle.setAttribute("aria-valuemin", 0);
    handle.setAttribute("aria-valuemax", maxExpandPx);
    handle.setAttribute("aria-valuetext", `${pixels} pixels`);
    handle.querySelector("output").textContent = pixels ? `+${pixels}` : "";
    // A field in use is not overwritten.
    if (document.activeElement !== field(side)) field(side).value = pixels;
  }
}

function put(element, left, top, width, height) {
  Object.assign(element.style, { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` });
}

function redraw() {
  context.clearRect(0, 0, canvas.width, canvas.height);
  setInk(context, makeStripes(context));
  for (const painted of picture.strokes) drawStroke(context, painted, { scale: canvas.width / picture.width });
  change();
}

// Share of the visible photograph that is painted.
function change() {
  const pixels = picture.strokes.length ? countPixels(context, (alpha) => alpha > 0) : 0;
  picture.coverage = pixels / (canvas.width * canvas.height);
  onChange();
}

// Brush

function brushDiameter() {
  const share = (Number($("size").value) / 100) ** 2 / 2;
  return Math.max(SMALLEST_BRUSH_PX, Math.round(share * Math.min(picture.width, picture.height)));
}

function showBrushSize() {
  $("size-text").textContent = picture ? `${brushDiameter()} px` : "";
}

function showRing([x, y]) {
  const diameter = brushDiameter() * scale;
  const { left, top } = picture.expand;
  put($("ring"), (left + x) * scale - diameter / 2, (top + y) * scale - diameter / 2, diameter, diameter);
  $("ring").hidden = false;
}

function toPoint(event) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / scale, (event.clientY - box.top) / scale];
}

function chosenTool() {
  return document.querySelector("[name=tool]:checked").value;
}

function beginStroke(event) {
  if (!event.isPrimary || (event.pointerType === "mouse" && event.button !== 0)) return;
  canvas.setPointerCapture(event.pointerId);
  const penEraser = 32; // of `buttons`: the other end of the pen
  const erases = chosenTool() === "eraser" || (event.buttons & penEraser) !== 0;
  stroke = { erases, diameter: brushDiameter(), points: [toPoint(event)] };
  picture.strokes.push(stroke);
  drawStroke(context, stroke, { scale: canvas.width / picture.width });
}

function goOnStroke(event) {
  if (!event.isPrimary) return;
  if (event.pointerType !== "touch" || stroke) showRing(toPoint(event));
  if (!stroke) return;
  const from = stroke.points.length - 1;
  const passed = event.getCoalescedEvents?.() ?? [];
  stroke.points.push(...(passed.length ? passed : [event]).map(toPoint));
  drawStroke(context, stroke, { scale: canvas.width / picture.width, from });
}

function endStroke(event) {
  if (!stroke || !event.isPrimary) return;
  stroke = null;
  if (event.pointerType === "touch") $("ring").hidden = true;
  change();
}

function onCanvasKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const direction = ARROWS[event.key];
  if (!direction && event.key !== " ") return;
  event.preventDefault();
  const diameter = brushDiameter();
  keyPoint ??= [picture.width / 2, picture.height / 2];
  if (direction) {
    const lengths = [picture.width, picture.height];
    keyPoint = keyPoint.map((at, axis) => Math.min(Math.max(at + (direction[axis] * diameter) / 2, 0), lengths[axis]));
  } else {
    picture.strokes.push({ erases: chosenTool() === "eraser", diameter, points: [keyPoint] });
    redraw();
  }
  showRing(keyPoint);
}

// Borders

function field(side) {
  return document.querySelector(`.sides [name=${side}]`);
}

function setExpand(side, pixels) {
  picture.expand[side] = Math.min(Math.max(Math.round(pixels) || 0, 0), maxExpandPx);
}

function extend(side, pixels) {
  setExpand(side, pixels);
  field(side).value = picture.expand[side];
  fit();
}

function listenToHandle(handle) {
  const side = handle.dataset.side;
  const [x, y] = OUTWARDS[side];
  let begun = null; // where the drag began, and from how many pixels
  handle.addEventListener("pointerdown", (event) => {
    if (!event.isPrimary || (event.pointerType === "mouse" && event.button !== 0)) return;
    handle.setPointerCapture(event.pointerId);
    begun = { at: x * event.clientX + y * event.clientY, pixels: picture.expand[side] };
  });
  handle.addEventListener("pointermove", (event) => {
    if (!begun || !event.isPrimary) return;
    // The scale stays until the drag ends, so that the border is where the pointer is.
    setExpand(side, begun.pixels + (x * event.clientX + y * event.clientY - begun.at) / scale);
    place();
    onChange();
  });
  for (const type of ["pointerup", "pointercancel"]) {
    handle.addEventListener(type, () => {
      if (begun) fit();
      begun = null;
    });
  }
  handle.addEventListener("keydown", (event) => {
    const direction = ARROWS[event.key];
    const towards = direction ? direction[0] * x + direction[1] * y : 0;
    if (towards === 0) return;
    event.preventDefault();
    extend(side, picture.expand[side] + towards * KEY_STEP_PX);
  });
}
