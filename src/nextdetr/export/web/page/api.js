// Pictures are not sent anywhere: a worker of the page runs the detector in onnxruntime-web.

import { word } from './words.js';

export const promise = 'here';  // key of the text about where pictures go

/** A sentence for the user. */
export class Failure extends Error {}

// There is no key, and corrections are not stored; they can be downloaded.
export const askForKey = async () => false;
export const correct = null;

const packed = globalThis.nextdetrFile;  // in a single-file page, which contains the other files
const MOST_THREADS = 8;

let worker = null, asked = 0, stopped = null;
const waiting = new Map();

function start() {
  worker = packed ? packed.worker() : new Worker(new URL('./worker.js', import.meta.url), { type: 'module' });
  worker.onmessage = ({ data }) => {
    const { resolve, reject } = waiting.get(data.id);
    waiting.delete(data.id);
    if (data.told) reject(Object.assign(new Failure(word(data.told.word, ...data.told.values)), data.told));
    else resolve(data.result);
  };
  worker.onerror = (event) => {  // it failed to load, or ran out of memory
    event.preventDefault();
    stopped = new Failure(word('stopped', event.message || ''));
    for (const { reject } of waiting.values()) reject(stopped);
    waiting.clear();
  };
}

function ask(message, transfer = []) {
  if (stopped) return Promise.reject(stopped);
  return new Promise((resolve, reject) => {
    asked += 1;
    waiting.set(asked, { resolve, reject });
    worker.postMessage({ id: asked, ...message }, transfer);
  });
}

/** A file of the export; `told` is called with the number of bytes received. */
async function bytesOf(name, told = () => {}) {
  if (packed) return packed.bytes(name);
  const failure = (reason) => new Failure(word('noFile', name, reason));
  const response = await fetch(new URL(`../${name}`, import.meta.url)).catch(() => null);
  if (!response?.ok) throw failure(response ? String(response.status) : word('unreachable'));
  const parts = [], reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read().catch(() => { throw failure(word('unreachable')); });
    if (done) return new Blob(parts).arrayBuffer();
    parts.push(value);
    told(value.length);
  }
}

/** Number of threads, and the key of the reason if it is only one. */
function chooseThreads() {
  if (packed) return { threads: 1, why: 'oneFile' };
  if (!globalThis.crossOriginIsolated) return { threads: 1, why: 'noHeaders' };
  const wanted = Number(new URLSearchParams(location.search).get('threads'));
  return { threads: Math.max(1, Math.trunc(wanted) || Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1)), why: null };
}

/** Load the detector; `told` is called with the loaded fraction. */
export async function models(told) {
  const terms = JSON.parse(new TextDecoder().decode(await bytesOf('detector.json')));
  const names = ['model.onnx', 'runtime/ort-wasm-simd-threaded.wasm'], sizes = names.map((name) => terms.bytes[name]);
  const total = sizes[0] + sizes[1], { threads, why } = chooseThreads();
  let have = 0;
  told(0);
  const files = await Promise.all(names.map((name) => bytesOf(name, (more) => { have += more; told(Math.min(1, have / total)); })));
  files.forEach((file, place) => {
    if (file.byteLength !== sizes[place]) throw new Failure(word('noFile', names[place], word('otherBytes', file.byteLength, sizes[place])));
  });
  told(1);
  start();
  await ask({ kind: 'load', model: files[0], wasm: files[1], threads, terms }, files);
  return { models: [{ ...terms, confidence: 'auto', threads, why }], corrections: false };
}

async function detect(source, name, least, transfer) {
  const { seconds, ...found } = await ask({ kind: 'detect', source, least }, transfer).catch((error) => {
    throw error.word === 'noRead' ? new Failure(word('noRead', name)) : error;
  });
  return { images: [{ name, ...found }], seconds };
}

/** Detect in one file; returns all but the least confident boxes, so that the slider needs no further run. */
export const predict = (model, file, least) => detect(file, file.name, least);

/** A stream: `send(frame)` resolves to the detections in the frame. */
export class Stream {
  constructor(model, least) {
    this.least = least;
    this.frame = 0;
    this.longestSide = Infinity;  // nothing is sent, so frames keep their size
  }

  async send(frame) {
    this.frame += 1;
    const copy = await createImageBitmap(frame.picture);
    return detect(copy, `frame-${this.frame}`, this.least, [copy]);
  }

  close() {}
}
