// The keyboard.

import { element, focusObject, renameObject } from './panel.js';

/** What answers a key, by the actions of the page. */
export function keyHandler(state, view, { addInTheMiddle, change, refresh, save, setAdding, turnTo }) {
  /** What selects the next object of the list; null at its end, where Tab leaves the picture. */
  const nextObject = (by) => {
    const boxes = view.shown(), box = boxes[boxes.indexOf(state.item.chosen) + by];
    return box ? () => { state.item.chosen = box; refresh(); focusObject(state, true); } : null;
  };

  const step = (by) => {
    const next = state.items[state.items.indexOf(state.item) + by];
    if (next) turnTo(next);
  };

  return (event) => {
    const typing = event.target.closest('input[type=text], input[type=password], select, dialog');
    if (typing || event.isComposing || !state.item) return;
    const far = event.shiftKey ? 10 : 1;
    const arrows = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far] };
    const command = event.ctrlKey || event.metaKey, key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const onRange = event.target.matches('input[type=range], input[type=checkbox]');
    const actions = {
      a: () => addInTheMiddle(), r: () => renameObject(state), s: () => { if (state.corrections && !element('save').disabled) save(); },
      Delete: () => change((item, box) => item.remove(box)), Backspace: () => change((item, box) => item.remove(box)),
      Escape: () => { setAdding(false); state.item.chosen = null; refresh(); },
      '[': () => step(-1), ']': () => step(1), '+': () => view.zoomBy(1.4), '=': () => view.zoomBy(1.4), '-': () => view.zoomBy(1 / 1.4),
      '?': () => element('shortcuts').showModal(),
    };
    let action = actions[key];
    if (command) action = key === 'z' ? () => { state.item.undo(); refresh(); } : null;
    else if (arrows[key] && state.item.chosen && !onRange) {
      action = () => change((item, box) => {
        const [dx, dy] = arrows[key];
        item.remember();
        if (event.altKey) item.place(box, [box.box[0], box.box[1], Math.max(box.box[0] + 1, box.box[2] + dx), Math.max(box.box[1] + 1, box.box[3] + dy)]);
        else item.move(box, dx, dy);
      });
    } else if (key === 'Tab' && event.target === element('canvas')) action = nextObject(event.shiftKey ? -1 : 1);
    else if (event.altKey) action = null;
    if ('as'.includes(key) && (state.item.state !== 'done' || state.live)) action = null;
    if (!action) return;
    event.preventDefault();
    action();
  };
}
