// A worker that encodes the hole as a PNG of the photograph's size, white = repaint.
import { drawStroke, setInk } from "./edit_strokes.js";

async function makeMask({ width, height, strokes }) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  setInk(context, "white");
  for (const stroke of strokes) drawStroke(context, stroke);
  context.globalCompositeOperation = "destination-over";
  setInk(context, "black");
  context.fillRect(0, 0, width, height);
  return canvas.convertToBlob({ type: "image/png" });
}

// Null if the canvas is too large for the browser.
addEventListener("message", async ({ data }) => postMessage(await makeMask(data).catch(() => null)));
