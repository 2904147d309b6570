// Downloads: the results as JSON, COCO or YOLO, and the picture with its boxes.

import { drawBoxes } from './canvas.js';

const rows = (item, threshold, classes) => item.above(threshold).map((box) => ({
  box: box.box, confidence: box.confidence, class_id: classes.indexOf(box.name), class_name: box.name,
}));

export function asJson(items, threshold, classes, model) {
  const images = items.map((item) => ({ name: item.name, width: item.width, height: item.height, detections: rows(item, threshold, classes),
    ...(item.unlikeness === null ? {} : { unlikeness: item.unlikeness, unlike_training: item.unlikeness > 1 }) }));
  return new Blob([JSON.stringify({ model, images }, null, 1)], { type: 'application/json' });
}

export function asCoco(items, threshold, classes) {
  const images = items.map((item, number) => ({ id: number + 1, file_name: item.name, width: item.width, height: item.height }));
  const annotations = items.flatMap((item, number) => rows(item, threshold, classes).map((row) => {
    const [x1, y1, x2, y2] = row.box;
    return { image_id: number + 1, category_id: row.class_id + 1, bbox: [x1, y1, x2 - x1, y2 - y1], area: (x2 - x1) * (y2 - y1), iscrowd: 0, score: row.confidence };
  })).map((row, number) => ({ id: number + 1, ...row }));
  const categories = classes.map((name, number) => ({ id: number + 1, name }));
  return new Blob([JSON.stringify({ images, annotations, categories })], { type: 'application/json' });
}

/** A zip: images, label files with the same names, and data.yaml, as read by nextdetr train and ultralytics. */
export async function asYolo(items, threshold, classes) {
  const files = [], used = new Set();
  for (const item of items) {
    const name = unique(item.name.replace(/^.*[/\\]/, ''), used);
    const lines = rows(item, threshold, classes).map(({ box: [x1, y1, x2, y2], class_id: label }) => [label,
      (x1 + x2) / 2 / item.width, (y1 + y2) / 2 / item.height, (x2 - x1) / item.width, (y2 - y1) / item.height]
      .map((value, place) => (place ? value.toFixed(6) : value)).join(' '));
    files.push([`images/train/${name}`, new Uint8Array(await item.file.arrayBuffer())]);
    files.push([`labels/train/${name.replace(/\.[^.]*$/, '')}.txt`, text(lines.map((line) => `${line}\n`).join(''))]);
  }
  const names = classes.map((name, number) => `  ${number}: ${JSON.stringify(name)}\n`).join('');
  files.push(['data.yaml', text(`path: .\ntrain: images/train\nnames:\n${names}`)]);
  return zip(files);
}

export async function asPicture(item, picture, threshold, hidden, classes) {
  const canvas = new OffscreenCanvas(item.width, item.height), c = canvas.getContext('2d');
  if (picture) c.drawImage(picture, 0, 0, item.width, item.height);
  const boxes = item.above(threshold).filter((box) => !hidden.has(box.name));
  drawBoxes(c, boxes, classes, (x, y) => [x, y], Math.max(12, Math.min(item.width, item.height) * 0.026));
  return canvas.convertToBlob({ type: 'image/png' });
}

/** A frame of a video as a file. */
export function asJpeg(picture) {
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  canvas.getContext('2d').drawImage(picture, 0, 0);
  return canvas.convertToBlob({ type: 'image/jpeg', quality: 0.9 });
}

export function download(blob, name) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const text = (value) => new TextEncoder().encode(value);

/** Two files with the same stem would share their labels. */
function unique(name, used) {
  const [, stem, ending] = /^(.*?)(\.[^.]*)?$/.exec(name);
  let candidate = stem, number = 1;
  while (used.has(candidate)) { number += 1; candidate = `${stem}-${number}`; }
  used.add(candidate);
  return candidate + (ending || '');
}

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

function checksum(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = (value >>> 8) ^ TABLE[(value ^ byte) & 255];
  return (value ^ 0xffffffff) >>> 0;
}

/** A zip archive of stored files (PKWARE's APPNOTE, sections 4.3.7, 4.3.12 and 4.3.16), names in UTF-8. */
function zip(files) {
  const parts = [], entries = [];
  let place = 0;
  for (const [name, content] of files) {
    const label = text(name), fields = new DataView(new ArrayBuffer(26));
    [[0, 20], [2, 0x800], [4, 0], [6, 0], [8, 0x21]].forEach(([at, value]) => fields.setUint16(at, value, true));
    [[10, checksum(content)], [14, content.length], [18, content.length]].forEach(([at, value]) => fields.setUint32(at, value, true));
    fields.setUint16(22, label.length, true);
    parts.push(Uint8Array.of(0x50, 0x4b, 3, 4), fields.buffer, label, content);
    const rest = new DataView(new ArrayBuffer(14));
    rest.setUint32(10, place, true);
    entries.push(Uint8Array.of(0x50, 0x4b, 1, 2, 20, 0), fields.buffer, rest.buffer, label);
    place += 30 + label.length + content.length;
  }
  const size = entries.reduce((sum, part) => sum + part.byteLength, 0), end = new DataView(new ArrayBuffer(18));
  [[4, files.length], [6, files.length]].forEach(([at, value]) => end.setUint16(at, value, true));
  [[8, size], [12, place]].forEach(([at, value]) => end.setUint32(at, value, true));
  return new Blob([...parts, ...entries, Uint8Array.of(0x50, 0x4b, 5, 6), end.buffer], { type: 'application/zip' });
}
