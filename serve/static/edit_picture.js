// A photograph on the page, the hole painted on it, and the files that are sent for both.
import { Refusal } from "./edit_api.js";
import { drawStroke, setInk } from "./edit_strokes.js";

export const SIDES = ["left", "top", "right", "bottom"];
const limits = document.body.dataset;
const STRIPE_PX = 8;

export async function openPicture(blob, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    throw new Refusal(`${name}: this browser cannot read it. Save it as JPEG or PNG first.`);
  }
  const { width, height } = bitmap;
  const isTransparent = hasTransparency(bitmap);
  bitmap.close();
  if (width * height > Number(limits.maxPixels)) {
    const megapixels = [width * height, limits.maxPixels].map((pixels) => Math.round(pixels / 1e6));
    throw new Refusal(`${name} has ${megapixels[0]} megapixels; the service takes ${megapixels[1]}. Scale it down first.`);
  }
  const expand = Object.fromEntries(SIDES.map((side) => [side, 0]));
  const url = URL.createObjectURL(blob);
  return { blob, name, url, width, height, isTransparent, expand, strokes: [], round: null, upload: null };
}

export function closePicture(picture) {
  URL.revokeObjectURL(picture.url);
  if (picture.round) closeRound(picture.round);
}

export function closeRound(round) {
  for (const { url } of [...round.candidates, ...(round.base?.candidates ?? [])]) URL.revokeObjectURL(url);
}

function makeCanvas(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

function hasTransparency(bitmap) {
  const scale = Math.min(1, 512 / Math.max(bitmap.width, bitmap.height));
  const canvas = makeCanvas(Math.ceil(bitmap.width * scale), Math.ceil(bitmap.height * scale));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  // Alpha below one half is a hole, as for the service.
  return countPixels(context, (alpha) => alpha < 128) > 0;
}

export function countPixels(context, isCounted) {
  const { data } = context.getImageData(0, 0, context.canvas.width, context.canvas.height);
  let count = 0;
  for (let i = 3; i < data.length; i += 4) if (isCounted(data[i])) count += 1;
  return count;
}

// Size with the extension.
export function fullSize({ width, height, expand }) {
  return [width + expand.left + expand.right, height + expand.top + expand.bottom];
}

export function isExtended({ expand }) {
  return SIDES.some((side) => expand[side] > 0);
}

// A square around the hole, twice as long: left, top and side in pixels; null if the photograph is hardly larger.
export function closeUp(picture) {
  const painted = picture.strokes.filter(({ erases }) => !erases);
  if (painted.length === 0 || isExtended(picture)) return null;
  const lengths = [picture.width, picture.height];
  const spans = lengths.map((length, axis) => {
    const reach = (sign) => painted.flatMap(({ points, diameter }) => points.map((at) => at[axis] + (sign * diameter) / 2));
    const ends = [reach(-1).reduce((a, b) => Math.min(a, b)), reach(1).reduce((a, b) => Math.max(a, b))];
    return ends.map((end) => Math.min(Math.max(end, 0), length));
  });
  const side = 2 * Math.max(...spans.map(([from, to]) => to - from));
  if (side === 0 || side > Math.min(...lengths)) return null;
  const [left, top] = spans.map(([from, to], axis) => Math.min(Math.max((from + to - side) / 2, 0), lengths[axis] - side));
  return { left, top, side };
}

// Stripes are visible on any photograph.
export function makeStripes(context) {
  const tile = makeCanvas(STRIPE_PX, STRIPE_PX);
  const brush = tile.getContext("2d");
  brush.fillStyle = "#2b6777";
  brush.fillRect(0, 0, STRIPE_PX, STRIPE_PX);
  brush.strokeStyle = "#8fc6d3";
  brush.lineWidth = 2;
  brush.beginPath();
  for (const shift of [-STRIPE_PX, 0, STRIPE_PX]) {
    brush.moveTo(shift - 2, STRIPE_PX + 2);
    brush.lineTo(shift + STRIPE_PX + 2, -2);
  }
  brush.stroke();
  return context.createPattern(tile, "repeat");
}

// The photograph with its hole, small, beside the candidates.
export async function drawAsked(canvas, picture, widthPx) {
  const image = Object.assign(new Image(), { src: picture.url });
  await image.decode();
  const [width, height] = fullSize(picture);
  const scale = widthPx / width;
  Object.assign(canvas, { width: widthPx, height: Math.max(1, Math.round(height * scale)) });
  const layer = makeCanvas(canvas.width, canvas.height);
  const strokes = layer.getContext("2d");
  const context = canvas.getContext("2d");
  for (const each of [context, strokes]) setInk(each, makeStripes(each));
  const [x, y] = [picture.expand.left * scale, picture.expand.top * scale];
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, x, y, picture.width * scale, picture.height * scale);
  for (const stroke of picture.strokes) drawStroke(strokes, stroke, { scale, x, y });
  context.drawImage(layer, 0, 0);
}

// Upload

// Encodes a PNG of the photograph's size, white = repaint, in a worker: after a click browsers
// postpone the encoding, and a large one blocks the page.
export function makeMask({ width, height, strokes }) {
  const worker = new Worker("static/edit_mask.js", { type: "module" });
  return new Promise((resolve, reject) => {
    const refuse = () => reject(new Refusal("The hole could not be drawn; is the photograph too large for this browser?"));
    worker.onmessage = ({ data }) => (data === null ? refuse() : resolve(data));
    worker.onerror = refuse;
    worker.postMessage({ width, height, strokes });
  }).finally(() => worker.terminate());
}

// Returns the file as it was opened, if the service accepts it and reads it as the browser does.
export async function makeUpload({ blob, name }) {
  const limit = Number(limits.maxUploadBytes);
  const turnsUnseen = await isWebpWithExif(blob);
  if (blob.size <= limit && !turnsUnseen) return { blob, name, note: "" };
  const bitmap = await createImageBitmap(blob);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  bitmap.close();
  const formats = [["png", 1], ["webp", 1], ["jpeg", 0.95], ["jpeg", 0.8]];
  for (const [format, quality] of turnsUnseen ? formats : formats.slice(1)) {
    const made = await canvas.convertToBlob({ type: `image/${format}`, quality });
    if (made.type !== `image/${format}` || made.size > limit) continue;
    const note = turnsUnseen ? "" : `The file is larger than ${limit / 1e6} MB, so it was sent as ${format.toUpperCase()}.`;
    return { blob: made, name: `photograph.${format}`, note };
  }
  throw new Refusal(`${name} is larger than ${limit / 1e6} MB in every format. Scale it down first.`);
}

// The service turns such a file upright; browsers do not.
async function isWebpWithExif(blob) {
  const bytes = new Uint8Array(await blob.slice(0, 21).arrayBuffer());
  const text = String.fromCharCode(...bytes.slice(0, 16));
  return text.startsWith("RIFF") && text.endsWith("WEBPVP8X") && (bytes[20] & 8) !== 0;
}
