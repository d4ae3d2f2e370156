/**
 * A drawing made into what the network was trained on: 28x28 pixels like those of MNIST.
 *
 * The steps are those of minidiff/data/photos.py from the ink on, in the same order, with the
 * same numbers. What comes before them there, to find the ink in a photo, is not needed here:
 * a drawing is its ink. A test of the site holds that both make the same pixels of the same ink.
 */

/** Pixels along a side of what the network sees, and of the box within which the digit is. */
export const SIDE = 28;
const BOX = 20;
/** Widths of strokes in 20x20 pixels: thinner than the first they are thickened to the second. */
const THIN = 1.7;
const USUAL = 2.2;

/**
 * @typedef {object} Grey A picture.
 * @property {number} width
 * @property {number} height
 * @property {Float32Array} values Row by row: 0 is no ink, 1 is full ink.
 */

/**
 * Bring ink to 28x28 pixels: cropped, thickened if need be, scaled, centred by its mass.
 *
 * @param {Grey} drawing
 * @returns {?Uint8Array} 784 pixels, light ink on a ground of 0; null if there is no ink.
 */
export function prepare(drawing) {
  let ink = cropped(drawing);
  if (ink === null) return null;
  const longer = Math.max(ink.width, ink.height);
  const stroke = (strokeWidth(ink) * BOX) / longer;
  if (stroke < THIN) ink = thickened(ink, roundHalfEven((((USUAL - stroke) / 2) * longer) / BOX));

  const scale = BOX / Math.max(ink.width, ink.height);
  const small = resampled(ink, size(ink.width, scale), size(ink.height, scale));
  const [x, y] = centre(small);
  const left = Math.min(Math.max(0, roundHalfEven(SIDE / 2 - x)), SIDE - small.width);
  const top = Math.min(Math.max(0, roundHalfEven(SIDE / 2 - y)), SIDE - small.height);
  const pixels = new Uint8Array(SIDE * SIDE);
  for (let row = 0; row < small.height; row++) {
    for (let column = 0; column < small.width; column++) {
      const value = Math.min(1, Math.max(0, small.values[row * small.width + column]));
      pixels[(top + row) * SIDE + left + column] = roundHalfEven(255 * value);
    }
  }
  return pixels;
}

/** Round as Python does: a half goes to the even neighbour. */
function roundHalfEven(number) {
  const below = Math.floor(number);
  if (number - below !== 0.5) return Math.round(number);
  return below % 2 === 0 ? below : below + 1;
}

function size(length, scale) {
  return Math.max(1, roundHalfEven(length * scale));
}

/** Cut off the rows and columns around the ink; null if there is none. */
function cropped({ width, height, values }) {
  let [left, right, top, bottom] = [width, -1, height, -1];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (values[y * width + x] > 0) {
        if (x < left) left = x;
        if (x > right) right = x;
        if (y < top) top = y;
        bottom = y;
      }
    }
  }
  if (bottom < 0) return null;
  const [w, h] = [right - left + 1, bottom - top + 1];
  const out = new Float32Array(w * h);
  for (let y = 0; y < h; y++) {
    const start = (top + y) * width + left;
    out.set(values.subarray(start, start + w), y * w);
  }
  return { width: w, height: h, values: out };
}

/** Return how wide strokes are: twice the area over the length of the outline. */
function strokeWidth({ width, height, values }) {
  const at = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : values[y * width + x]);
  let area = 0;
  let outline = 0; // which is the total variation
  for (let y = 0; y <= height; y++) {
    for (let x = 0; x <= width; x++) {
      const here = at(x, y);
      area += here;
      outline += Math.hypot(here - at(x, y - 1), here - at(x - 1, y));
    }
  }
  return (2 * area) / outline;
}

/** Give each pixel the largest value within `reach` of it, along both axes; the picture grows. */
function thickened({ width, height, values }, reach) {
  const [w, h] = [width + 2 * reach, height + 2 * reach];
  const rows = new Float32Array(w * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const value = values[y * width + x];
      for (let to = x; value > 0 && to <= x + 2 * reach; to++) {
        if (rows[y * w + to] < value) rows[y * w + to] = value;
      }
    }
  }
  const out = new Float32Array(w * h);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < w; x++) {
      const value = rows[y * w + x];
      for (let to = y; value > 0 && to <= y + 2 * reach; to++) {
        if (out[to * w + x] < value) out[to * w + x] = value;
      }
    }
  }
  return { width: w, height: h, values: out };
}

/**
 * Resize with weights that fall off linearly, over as many pixels as become one.
 *
 * That is what Pillow, which photos.py uses, calls bilinear.
 */
function resampled({ width, height, values }, newWidth, newHeight) {
  const across = new Float32Array(newWidth * height);
  weights(width, newWidth).forEach(({ first, shares }, x) => {
    for (let y = 0; y < height; y++) {
      let sum = 0;
      shares.forEach((share, i) => (sum += share * values[y * width + first + i]));
      across[y * newWidth + x] = sum;
    }
  });
  const out = new Float32Array(newWidth * newHeight);
  weights(height, newHeight).forEach(({ first, shares }, y) => {
    for (let x = 0; x < newWidth; x++) {
      let sum = 0;
      shares.forEach((share, i) => (sum += share * across[(first + i) * newWidth + x]));
      out[y * newWidth + x] = sum;
    }
  });
  return { width: newWidth, height: newHeight, values: out };
}

/** Return, for each new pixel along an axis, the first old one that counts, and the shares. */
function weights(length, newLength) {
  const scale = length / newLength;
  const reach = Math.max(scale, 1);
  return Array.from({ length: newLength }, (_, i) => {
    const middle = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(middle - reach + 0.5));
    const end = Math.min(length, Math.trunc(middle + reach + 0.5));
    const shares = [];
    for (let j = first; j < end; j++) {
      shares.push(Math.max(0, 1 - Math.abs((j + 0.5 - middle) / reach)));
    }
    const sum = shares.reduce((a, b) => a + b, 0);
    return { first, shares: shares.map((share) => share / sum) };
  });
}

/** Return the column and the row of the centre of mass. */
function centre({ width, height, values }) {
  let [mass, across, down] = [0, 0, 0];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const value = values[y * width + x];
      mass += value;
      across += value * x;
      down += value * y;
    }
  }
  return [across / mass, down / mass];
}
