// The detector, in a worker so that the page never blocks: one picture after the other.

import * as ort from '../runtime/ort.wasm.bundle.min.mjs';
import { detections } from './detect.js';
import { resized } from './resize.js';

const MOST_PIXELS = 178_956_970;  // per picture, as in nextdetr predict
let session = null, terms = null;

/** An error with a text of the page: its key, and its values. */
class Told extends Error {
  constructor(word, ...values) {
    super(word);
    this.told = { word, values };
  }
}

async function load(message) {
  terms = message.terms;
  ort.env.logLevel = 'error';
  Object.assign(ort.env.wasm, { numThreads: message.threads, wasmBinary: message.wasm });
  const options = { executionProviders: ['wasm'], graphOptimizationLevel: 'all' };
  session = await ort.InferenceSession.create(new Uint8Array(message.model), options).catch((error) => {
    throw new Told('noRuntime', error.message);
  });
}

/** A file as a viewer shows it: upright by its EXIF orientation, with colours as stored. */
async function decoded(file) {
  const picture = await createImageBitmap(file, { imageOrientation: 'from-image', colorSpaceConversion: 'none' }).catch(() => {
    throw new Told('noRead');
  });
  if (picture.width * picture.height <= MOST_PIXELS) return picture;
  picture.close();
  throw new Told('tooLarge', picture.width, picture.height);
}

async function detect({ source, least }) {
  const times = [performance.now()], size = terms.image_size;
  const picture = source instanceof Blob ? await decoded(source) : source;
  const { width, height } = picture;
  let pixels;
  try {
    pixels = resized(picture, size);
  } catch {
    throw new Told('tooLarge', width, height);
  } finally {
    picture.close();
  }
  times.push(performance.now());
  const outputs = await session.run({ images: new ort.Tensor('uint8', pixels, [1, size, size, 3]) });
  times.push(performance.now());
  const found = detections(outputs.logits.data, outputs.boxes.data, terms.classes, terms.max_detections, least, width, height);
  if (!found) throw new Told('noNumber');
  times.push(performance.now());
  const [preprocess, model, postprocess] = [0, 1, 2].map((step) => (times[step + 1] - times[step]) / 1000);
  return { width, height, detections: found, seconds: { preprocess, model, postprocess } };
}

let last = Promise.resolve();
onmessage = ({ data }) => {
  last = last.then(() => (data.kind === 'load' ? load(data) : detect(data))).then(
    (result) => postMessage({ id: data.id, result }),
    (error) => postMessage({ id: data.id, told: error.told || { word: 'noRuntime', values: [String(error.message || error)] } }),
  );
};
