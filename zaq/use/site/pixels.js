// A photograph as the network reads it: as zaq.data.pixels does it, in a canvas.

const whole = ({ resize, crop, height }) => crop === null && (resize === null || resize === height);

// The part of an image that the network sees: left, top, width and height in its pixels.
export function region(image, { input: [, height, width], resize, crop }) {
  if (whole({ resize, crop, height })) return [0, 0, image.width, image.height];
  const ratio = (resize ?? crop ?? height) / Math.min(image.width, image.height);
  const [w, h] = [width / ratio, height / ratio];
  return [(image.width - w) / 2, (image.height - h) / 2, w, h];
}

// (1, C, H, W) floats, (x/255 - mean) / std.
export function prepare(image, facts) {
  const [channels, height, width] = facts.input;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = facts.interpolation !== "nearest";
  context.drawImage(shrunk(image, region(image, facts), width, height), 0, 0, width, height);
  const bytes = context.getImageData(0, 0, width, height).data;
  const values = new Float32Array(channels * height * width);
  for (let c = 0; c < channels; c++) {
    const from = facts.order === "bgr" ? channels - 1 - c : c;
    for (let i = 0; i < height * width; i++) {
      const value = channels === 1 ? 0.299 * bytes[4 * i] + 0.587 * bytes[4 * i + 1] + 0.114 * bytes[4 * i + 2] : bytes[4 * i + from];
      values[c * height * width + i] = (value / 255 - facts.mean[c]) / facts.std[c];
    }
  }
  return { values, shape: [1, channels, height, width] };
}

// A canvas reads four neighbours whatever the scale: halve first, so that every pixel of a large image counts.
function shrunk(image, [left, top, w, h], width, height) {
  let canvas = new OffscreenCanvas(Math.max(1, Math.round(w)), Math.max(1, Math.round(h)));
  canvas.getContext("2d").drawImage(image, left, top, w, h, 0, 0, canvas.width, canvas.height);
  while (canvas.width >= 2 * width && canvas.height >= 2 * height) {
    const half = new OffscreenCanvas(Math.floor(canvas.width / 2), Math.floor(canvas.height / 2));
    half.getContext("2d").drawImage(canvas, 0, 0, half.width, half.height);
    canvas = half;
  }
  return canvas;
}
