// The boxes of a picture: display, changes and undo.

// As drawn by nextdetr predict.
const COLOURS = ['#1f9bff', '#ff7f0e', '#00c853', '#ff2d95', '#ffd600', '#8c5bff', '#00d5d5', '#ff3b30', '#a4de02', '#c77dff',
  '#ffb3ba', '#00897b', '#b5651d', '#5c6bc0', '#f06292', '#cddc39'];
const MOST_STEPS = 100;
export const DEFAULT = 0.3;  // confidence for models without their own, as in nextdetr predict

/** Names of classes: the model's, then those that only boxes of these pictures have, which the user or an earlier model named. */
export function classesOf(model, items) {
  const names = new Set(model?.classes);
  for (const item of items) for (const box of item.boxes) names.add(box.name);
  return [...names];
}

export const colourOf = (index) => COLOURS[((index % COLOURS.length) + COLOURS.length) % COLOURS.length];

/** A picture: its file, and its boxes in its pixels, the most confident first; `saved` is null, or the boxes that the server has;
 * `downloaded` is the last change that a downloaded file has. */
export class Item {
  constructor(file, name) {
    Object.assign(this, { file, name, state: 'waiting', error: null, bitmap: null, unseen: false, url: null, width: 0, height: 0, unlikeness: null, seconds: null });
    Object.assign(this, { boxes: [], steps: [], chosen: null, model: null, changed: false, saved: null, downloaded: null });
  }

  /** Store a result; `seconds` per step, including time in a queue. */
  found(result, seconds) {
    const { queue: waited, ...work } = seconds;
    this.seconds = { model: work.model, all: Object.values(work).reduce((sum, part) => sum + part, 0) };
    this.width = result.width;
    this.height = result.height;
    this.unlikeness = result.unlikeness ?? null;  // above 1 the picture is unlike the training images
    this.boxes = result.detections.map((row) => ({ box: [...row.box], name: row.class_name, confidence: row.confidence, own: false }));
    this.state = 'done';
  }

  /** Boxes above a confidence, a number or one per class; boxes edited by the user are always included. */
  above(threshold) {
    const least = (name) => (typeof threshold === 'number' ? threshold : threshold[name] ?? DEFAULT);
    return this.boxes.filter((box) => box.own || box.confidence >= least(box.name));
  }

  /** Whether the server has the boxes above a confidence. */
  isSaved(threshold) {
    const boxes = this.above(threshold);
    return this.saved?.length === boxes.length && boxes.every((box, place) => box === this.saved[place]);
  }

  /** Whether its changes are neither on the server nor in a downloaded file. */
  isUnsaved() {
    return this.changed && this.steps.at(-1) !== this.downloaded;
  }

  /** Save the state before a change, for undo. */
  remember() {
    this.steps.push({ boxes: this.boxes.map((box) => ({ ...box, box: [...box.box] })), changed: this.changed || this.saved !== null });
    if (this.steps.length > MOST_STEPS) this.steps.shift();
    this.changed = true;
    this.saved = null;
  }

  undo() {
    const before = this.steps.pop();
    if (!before) return;
    this.boxes = before.boxes;
    this.changed = before.changed || this.saved !== null;
    this.saved = null;
    this.chosen = null;
  }

  add(box, name) {
    this.remember();
    const added = { box, name, confidence: 1, own: true };
    this.boxes.unshift(added);
    this.chosen = added;
    return added;
  }

  remove(box) {
    this.remember();
    this.boxes = this.boxes.filter((other) => other !== box);
    this.chosen = null;
  }

  rename(box, name) {
    if (!name || name === box.name) return;
    this.remember();
    box.name = name;
    box.own = true;
  }

  /** Set a box, in order and inside the picture. */
  place(box, [x1, y1, x2, y2]) {
    const inside = (value, most) => Math.min(Math.max(value, 0), most);
    box.box = [inside(Math.min(x1, x2), this.width), inside(Math.min(y1, y2), this.height),
      inside(Math.max(x1, x2), this.width), inside(Math.max(y1, y2), this.height)];
    box.own = true;
  }

  move(box, dx, dy) {
    const [x1, y1, x2, y2] = box.box;
    const x = Math.min(Math.max(dx, -x1), this.width - x2), y = Math.min(Math.max(dy, -y1), this.height - y2);
    this.place(box, [x1 + x, y1 + y, x2 + x, y2 + y]);
  }
}
