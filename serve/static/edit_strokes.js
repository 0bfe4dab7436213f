// Strokes of the brush. Their points and diameters are pixels of the photograph, so that they are drawn at any scale.

export function drawStroke(context, stroke, { scale = 1, from = 0, x = 0, y = 0 } = {}) {
  const points = stroke.points.slice(from).map((point) => [x + point[0] * scale, y + point[1] * scale]);
  context.globalCompositeOperation = stroke.erases ? "destination-out" : "source-over";
  context.lineWidth = stroke.diameter * scale;
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  if (points.length === 1) {
    context.arc(...points[0], context.lineWidth / 2, 0, 2 * Math.PI);
    context.fill();
  } else {
    context.moveTo(...points[0]);
    for (const point of points.slice(1)) context.lineTo(...point);
    context.stroke();
  }
  context.globalCompositeOperation = "source-over";
}

export function setInk(context, ink) {
  context.fillStyle = context.strokeStyle = ink;
}
