// The picture with its boxes on a canvas: drawing, zooming, and changing boxes with a pointer.

import { colourOf } from './boxes.js';

const HANDLE = 9, NEAR = 12, NEAR_TOUCH = 22, LEAST = 3, LEAST_SIDE = 1, MOST_ZOOM = 16;

export class View {
  /** `tell` has `changed()`, `chosen()` and `added()`; `state` has threshold, hidden (set of names) and classes. */
  constructor(canvas, state, tell) {
    Object.assign(this, { canvas, state, tell, item: null, picture: null, zoom: 1, offset: [0, 0], adding: false, drag: null });
    this.context = canvas.getContext('2d');
    new ResizeObserver(() => this.draw()).observe(canvas);
    canvas.addEventListener('pointerdown', (event) => this.down(event));
    canvas.addEventListener('pointermove', (event) => this.moved(event));
    for (const end of ['pointerup', 'pointercancel']) canvas.addEventListener(end, (event) => this.up(event));
    canvas.addEventListener('wheel', (event) => {
      event.preventDefault();
      this.zoomBy(event.deltaY < 0 ? 1.15 : 1 / 1.15, this.at(event));
    }, { passive: false });
  }

  /** Show an item, or nothing; `picture` is anything that can be drawn, or null. */
  show(item, picture, keepZoom = false) {
    this.item = item;
    this.picture = picture;
    if (!keepZoom) { this.zoom = 1; this.offset = [0, 0]; }
    this.draw();
  }

  shown() {
    if (!this.item) return [];
    return this.item.above(this.state.threshold).filter((box) => !this.state.hidden.has(box.name));
  }

  // -- coordinates: of the picture in CSS pixels of the canvas

  layout() {
    const width = this.canvas.clientWidth, height = this.canvas.clientHeight;
    const fit = Math.min(width / (this.item?.width || 1), height / (this.item?.height || 1));
    const scale = fit * this.zoom;
    const spare = [width - (this.item?.width || 1) * scale, height - (this.item?.height || 1) * scale];
    const offset = [0, 1].map((axis) => (spare[axis] >= 0 ? spare[axis] / 2 : Math.min(0, Math.max(spare[axis], this.offset[axis]))));
    return { scale, offset, width, height };
  }

  at(event) {
    const frame = this.canvas.getBoundingClientRect();
    return [event.clientX - frame.left, event.clientY - frame.top];
  }

  inPicture([x, y]) {
    const { scale, offset } = this.layout();
    return [(x - offset[0]) / scale, (y - offset[1]) / scale];
  }

  zoomBy(factor, around) {
    const centre = around || [this.canvas.clientWidth / 2, this.canvas.clientHeight / 2];
    const point = this.inPicture(centre);
    this.zoom = Math.min(MOST_ZOOM, Math.max(1, this.zoom * factor));
    const { scale } = this.layout();
    this.offset = [centre[0] - point[0] * scale, centre[1] - point[1] * scale];
    this.offset = this.layout().offset;
    this.draw();
  }

  // -- drawing

  draw() {
    const ratio = window.devicePixelRatio || 1, { width, height, scale, offset } = this.layout();
    const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.canvas.width !== w || this.canvas.height !== h) Object.assign(this.canvas, { width: w, height: h });
    const c = this.context;
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.clearRect(0, 0, width, height);
    if (!this.item || !this.item.width) return;
    if (this.picture) c.drawImage(this.picture, offset[0], offset[1], this.item.width * scale, this.item.height * scale);
    const boxes = this.shown();
    drawBoxes(c, boxes, this.state.classes, (x, y) => [x * scale + offset[0], y * scale + offset[1]], 13, this.item.chosen);
    if (this.item.chosen && boxes.includes(this.item.chosen)) this.drawHandles(this.item.chosen, scale, offset);
  }

  drawHandles(box, scale, offset) {
    for (const [x, y] of corners(box.box)) {
      this.context.fillStyle = '#fff';
      this.context.strokeStyle = '#17202c';
      this.context.lineWidth = 1.5;
      this.context.beginPath();
      this.context.rect(x * scale + offset[0] - HANDLE / 2, y * scale + offset[1] - HANDLE / 2, HANDLE, HANDLE);
      this.context.fill();
      this.context.stroke();
    }
  }

  // -- the pointer

  /** Whether a drag adds a box; while a result is awaited it would replace that box. */
  get adds() { return this.adding && this.item.state === 'done'; }

  cornerAt(point, reach) {
    const box = this.item.chosen;
    if (!box) return -1;
    const { scale, offset } = this.layout();
    return corners(box.box).findIndex(([x, y]) => Math.hypot(x * scale + offset[0] - point[0], y * scale + offset[1] - point[1]) <= reach);
  }

  /** The box under a point: the smallest, since it may be inside a larger one. */
  boxAt([x, y]) {
    const area = ({ box: [x1, y1, x2, y2] }) => (x2 - x1) * (y2 - y1);
    return this.shown().filter(({ box: [x1, y1, x2, y2] }) => x >= x1 && x <= x2 && y >= y1 && y <= y2)
      .sort((a, b) => area(a) - area(b))[0] || null;
  }

  down(event) {
    if (!this.item || !this.item.width || this.drag || this.state.live || event.button > 0) return;
    const point = this.at(event), place = this.inPicture(point);
    this.canvas.setPointerCapture(event.pointerId);
    const corner = this.adds ? -1 : this.cornerAt(point, event.pointerType === 'mouse' ? NEAR : NEAR_TOUCH);
    if (this.adds) {
      this.drag = { kind: 'add', from: place };
    } else if (corner >= 0) {
      this.drag = { kind: 'corner', from: corners(this.item.chosen.box)[(corner + 2) % 4], moved: false };
    } else {
      const box = this.boxAt(place);
      if (box !== this.item.chosen) { this.item.chosen = box; this.tell.chosen(); }
      this.drag = box ? { kind: 'move', from: place, moved: false } : { kind: 'pan', from: point, offset: this.layout().offset };
    }
    this.draw();
  }

  moved(event) {
    const { drag } = this;
    if (!drag) { this.hover(event); return; }
    const point = this.at(event), place = this.inPicture(point);
    if (drag.kind === 'pan') {
      this.offset = [0, 1].map((axis) => drag.offset[axis] + point[axis] - drag.from[axis]);
    } else if (drag.kind === 'add') {
      const far = Math.max(Math.abs(place[0] - drag.from[0]), Math.abs(place[1] - drag.from[1])) >= LEAST;
      if (!drag.box && far) {
        drag.box = this.item.add([...drag.from, ...drag.from], this.state.newName());
        this.state.hidden.delete(drag.box.name);
      }
      if (drag.box) this.item.place(drag.box, [...drag.from, ...place]);
    } else {
      if (!drag.moved && Math.hypot(place[0] - drag.from[0], place[1] - drag.from[1]) * this.layout().scale < 2) return;
      if (!drag.moved) { this.item.remember(); drag.moved = true; }
      if (drag.kind === 'corner') this.item.place(this.item.chosen, [...drag.from, ...place]);
      else { this.item.move(this.item.chosen, place[0] - drag.from[0], place[1] - drag.from[1]); drag.from = place; }
    }
    this.draw();
  }

  up() {
    const { drag } = this;
    this.drag = null;
    if (!drag) return;
    const box = drag.box || (drag.moved && this.item.chosen);
    if (!box) return;
    const [x1, y1, x2, y2] = box.box, empty = drag.kind !== 'move' && Math.min(x2 - x1, y2 - y1) < LEAST_SIDE;
    if (empty) this.item.undo();  // a line, or beside the picture
    if (drag.kind === 'add' && !empty) this.tell.added(); else this.tell.changed();
  }

  hover(event) {
    if (!this.item || this.state.live) return;
    const point = this.at(event), corner = this.adds ? -1 : this.cornerAt(point, NEAR);
    const styles = ['nwse-resize', 'nesw-resize'];
    this.canvas.style.cursor = this.adds ? 'crosshair' : corner >= 0 ? styles[corner % 2] : this.boxAt(this.inPicture(point)) ? 'move' : 'default';
  }
}

const corners = ([x1, y1, x2, y2]) => [[x1, y1], [x2, y1], [x2, y2], [x1, y2]];

/** Draw boxes and their names; `to` maps a point of the picture to the canvas, `size` is the font size. */
export function drawBoxes(c, boxes, classes, to, size, chosen = null) {
  c.font = `600 ${size}px system-ui, sans-serif`;
  c.textBaseline = 'middle';
  const labels = [];
  for (const box of [...boxes].reverse()) {
    const [left, top] = to(box.box[0], box.box[1]), [right, bottom] = to(box.box[2], box.box[3]);
    const colour = colourOf(classes.indexOf(box.name));
    c.lineWidth = (box === chosen ? 3.5 : 2) * (size / 13);
    c.strokeStyle = colour;
    if (box === chosen) { c.fillStyle = `${colour}33`; c.fillRect(left, top, right - left, bottom - top); }
    c.strokeRect(left, top, right - left, bottom - top);
    labels.unshift({ box, colour, left, top, bottom });
  }
  const placed = [];
  for (const { box, colour, left, top, bottom } of labels) {  // the most confident first: labels do not overlap
    const text = box.own ? box.name : `${box.name} ${box.confidence.toFixed(2)}`;
    const width = c.measureText(text).width + size * 0.7, height = size * 1.45;
    const spots = [top - height, bottom, top].map((y) => [Math.max(0, left - 1), y]);
    const spot = spots.find(([x, y]) => y >= 0 && !placed.some((p) => x < p[0] + p[2] && p[0] < x + width && y < p[1] + height && p[1] < y + height));
    if (!spot && box !== chosen) continue;
    const [x, y] = spot || spots[0];
    placed.push([x, y, width]);
    c.fillStyle = colour;
    c.fillRect(x, y, width, height);
    c.fillStyle = bright(colour) ? '#000' : '#fff';
    c.fillText(text, x + size * 0.35, y + height / 2 + 0.5);
  }
}

function bright(colour) {
  const [red, green, blue] = [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
  return 0.299 * red + 0.587 * green + 0.114 * blue > 140;
}
