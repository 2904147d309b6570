// The lists beside the picture: classes, objects, and the strip of pictures below it.

import { colourOf } from './boxes.js';
import { word } from './words.js';

export const element = (id) => document.getElementById(id);

function make(kind, properties = {}, ...children) {
  const made = Object.assign(document.createElement(kind), properties);
  made.append(...children);
  return made;
}

function swatch(index) {
  const made = make('span', { className: 'swatch' });
  made.style.background = colourOf(index);
  return made;
}

/** Classes with their counts, the most frequent first; a checkbox hides or shows them. */
export function showClasses(state, changed) {
  const counts = new Map();
  for (const box of state.item?.above(state.threshold) || []) counts.set(box.name, (counts.get(box.name) || 0) + 1);
  const rows = state.classes.map((name, index) => ({ name, index, count: counts.get(name) || 0 }))
    .sort((a, b) => b.count - a.count || a.index - b.index);
  const key = JSON.stringify([rows, [...state.hidden]]);
  const list = element('classes');
  if (list.dataset.key === key) return;
  const focused = list.contains(document.activeElement) ? document.activeElement.value : null;
  list.dataset.key = key;
  list.replaceChildren(...rows.map(({ name, index, count }) => {
    const mark = make('input', { type: 'checkbox', value: name, checked: !state.hidden.has(name) });
    mark.addEventListener('change', () => {
      if (mark.checked) state.hidden.delete(name); else state.hidden.add(name);
      changed();
    });
    return make('li', {}, make('label', {}, mark, swatch(index), make('span', { className: 'name', textContent: name, title: name }),
      make('span', { className: 'number', textContent: count || '' })));
  }));
  if (focused !== null) [...list.querySelectorAll('input')].find((mark) => mark.value === focused)?.focus();
  element('names').replaceChildren(...state.classes.map((name) => make('option', { value: name })));
}

const sure = (box) => (box.own ? word('added') : box.confidence.toFixed(2));

/** Objects of the open picture; the selected one has a field with its class. */
export function showObjects(state, boxes, { choose, rename }) {
  const list = element('objects'), chosen = state.item?.chosen;
  element('count').textContent = String(boxes.length);
  element('nothing').hidden = boxes.length > 0 || state.item?.state !== 'done';
  const now = [...boxes, chosen, !!state.live, word('added'), ...boxes.map((box) => box.name + box.own), ...state.classes];
  if (list.shown && list.shown.length === now.length && list.shown.every((part, place) => part === now[place])) return;
  list.shown = now;  // not redrawn needlessly, since the user may be typing
  const place = boxes.indexOf(chosen);
  element('selected').textContent = place < 0 ? '' : `${chosen.name} ${sure(chosen)}, ${place + 1} / ${boxes.length}`;  // for screen readers
  list.replaceChildren(...boxes.map((box) => {
    const number = make('span', { className: 'number', textContent: sure(box) });
    const what = box === chosen && !state.live ? field(box, rename) : row(box, choose);
    return make('li', { className: box === chosen ? 'chosen' : '' }, swatch(state.classes.indexOf(box.name)), what, number);
  }));
}

function row(box, choose) {
  const button = make('button', { type: 'button', textContent: box.name });
  button.addEventListener('click', () => choose(box));
  return button;
}

function field(box, rename) {
  const input = make('input', { type: 'text', value: box.name, maxLength: 100, ariaLabel: word('name') });
  input.setAttribute('list', 'names');
  input.addEventListener('focus', () => input.select());
  input.addEventListener('change', () => rename(box, input.value.trim()));
  input.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' || event.key === 'Escape') {
      if (event.key === 'Escape') input.value = box.name;
      event.preventDefault();
      event.stopPropagation();
      element('canvas').focus();
    }
  });
  return input;
}

/** Scroll lists until an element is visible, but not the page: on a phone that would move the picture under the finger. */
function reveal(part) {
  if (!part) return;
  for (let list = part.parentElement; list !== document.body; list = list.parentElement) {
    const inner = part.getBoundingClientRect(), outer = list.getBoundingClientRect();
    list.scrollTop += Math.max(0, inner.bottom - outer.bottom) + Math.min(0, inner.top - outer.top);
    list.scrollLeft += Math.max(0, inner.right - outer.right) + Math.min(0, inner.left - outer.left);
  }
}

/** Scroll to the selected object; with `take` the canvas gets keyboard focus, to move the box. */
export function focusObject(state, take) {
  reveal(element('objects').querySelector('.chosen'));
  if (take && state.item?.chosen) element('canvas').focus();
}

/** Let the user type another class for the selected object. */
export function renameObject(state) {
  focusObject(state, false);
  element('objects').querySelector('.chosen input')?.focus();
}

/** The open pictures, each with its number of objects. */
export function showStrip(state, open) {
  const strip = element('strip');
  while (strip.children.length > state.items.length) strip.lastChild.remove();
  state.items.forEach((item, number) => {
    let button = strip.children[number];
    if (button?.item !== item) {
      const made = make('button', { type: 'button', title: item.name, ariaLabel: item.name },
        make('img', { src: item.url, alt: '', loading: 'lazy' }), make('span', { className: 'mark' }));
      made.setAttribute('role', 'option');
      made.item = item;
      made.addEventListener('click', () => open(item));
      made.firstChild.addEventListener('error', () => made.firstChild.remove());  // not displayable
      if (button) button.replaceWith(made); else strip.append(made);
      button = made;
    }
    button.setAttribute('aria-selected', String(item === state.item));
    const saved = item.isSaved(state.threshold);
    button.className = item.state === 'failed' ? 'failed' : saved ? 'saved' : '';
    const marks = { failed: '!', waiting: '…', looking: '…' };
    button.querySelector('.mark').textContent = marks[item.state] || (saved ? '✓' : `${item.above(state.threshold).length}${item.changed ? '*' : ''}`);
  });
  if (strip.shown !== state.item) reveal(strip.querySelector('[aria-selected=true]'));  // not at each result: the user may scroll it
  strip.shown = state.item;
}
