/* The network, away from the page so that it stays responsive. Takes ImageData; answers {done, pixels} or {error}. */

import * as ort from "./ort/ort.wasm.min.mjs";

const TILE = 512, OVERLAP = 32;
const STRIDE = 8; // of the network: where tiles begin, so that they meet its grid as the whole picture does
const NETWORK = "denoise.onnx";

// Threads share memory, which a browser allows only to a page served with the headers that prepare.py sends.
ort.env.wasm.numThreads = crossOriginIsolated ? navigator.hardwareConcurrency : 1;
let session;

onmessage = async ({ data }) => {
  try {
    session ??= await ort.InferenceSession.create(NETWORK);
    const pixels = await restored(data, (done) => postMessage({ done }));
    postMessage({ done: 1, pixels, threads: ort.env.wasm.numThreads }, [pixels.data.buffer]);
  } catch (error) {
    session = undefined; // It may have run out of memory.
    postMessage({ error: `${NETWORK}: ${error.message ?? error}` });
  }
};

/* Restored in tiles, which are blended where they overlap. Transparency stays as it is. */
async function restored(picture, tell) {
  const { width, height, data } = picture;
  const total = new Float32Array(3 * width * height);
  const [rows, columns] = [cuts(height), cuts(width)];
  for (const [i, row] of rows.entries()) {
    for (const [j, column] of columns.entries()) {
      const tile = await run(data, width, row, column);
      blend(total, [height, width], tile, row, column);
      tell((i + (j + 1) / columns.length) / rows.length);
    }
  }
  for (let at = 0; at < width * height; at++) {
    for (let c = 0; c < 3; c++) data[4 * at + c] = 255 * total[c * width * height + at];
  }
  return picture;
}

/* The network's output for one tile, (3, rows, columns). */
async function run(data, width, row, column) {
  const [tall, wide] = [row.weights.length, column.weights.length];
  const image = new Float32Array(3 * tall * wide);
  for (let y = 0; y < tall; y++) {
    for (let x = 0; x < wide; x++) {
      const from = 4 * ((row.start + y) * width + column.start + x);
      for (let c = 0; c < 3; c++) image[(c * tall + y) * wide + x] = data[from + c] / 255;
    }
  }
  const found = await session.run({ image: new ort.Tensor("float32", image, [1, 3, tall, wide]) });
  return found.restored.data;
}

function blend(total, [height, width], tile, row, column) {
  const [tall, wide] = [row.weights.length, column.weights.length];
  for (let c = 0; c < 3; c++) {
    for (let y = 0; y < tall; y++) {
      const to = (c * height + row.start + y) * width + column.start;
      for (let x = 0; x < wide; x++) {
        total[to + x] += row.weights[y] * column.weights[x] * tile[(c * tall + y) * wide + x];
      }
    }
  }
}

/* Where an axis is cut into tiles of nearly one length, and what each of a tile's pixels counts; in all, one each. */
function cuts(length) {
  const whole = Math.ceil(length / STRIDE);
  const [most, shared] = [TILE / STRIDE, OVERLAP / STRIDE];
  const count = Math.max(1, Math.ceil((whole - shared) / (most - shared)));
  const size = Math.ceil((whole + (count - 1) * shared) / count);
  const tiles = Array.from({ length: count }, (_, i) => {
    const start = STRIDE * Math.round((i * (whole - size)) / Math.max(1, count - 1));
    const end = Math.min(start + STRIDE * size, length);
    return { start, weights: Float64Array.from({ length: end - start }, (_, p) => Math.min(p + 1, end - start - p)) };
  });
  const sums = new Float64Array(length);
  for (const { start, weights } of tiles) weights.forEach((weight, p) => { sums[start + p] += weight; });
  for (const { start, weights } of tiles) weights.forEach((weight, p) => { weights[p] = weight / sums[start + p]; });
  return tiles;
}
