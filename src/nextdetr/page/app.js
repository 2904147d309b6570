// The page: open pictures, display, buttons and keys.

import { askForKey, correct, models, predict, promise, Failure } from './api.js';
import { classesOf, DEFAULT, Item } from './boxes.js';
import { View } from './canvas.js';
import { keyHandler } from './keys.js';
import { element, showClasses, showObjects, showStrip, focusObject, renameObject } from './panel.js';
import { asCoco, asJpeg, asJson, asPicture, asYolo, download } from './save.js';
import { dropped, isPicture, isVideo, Player } from './sources.js';
import { chooseLanguage, otherLanguage, word } from './words.js';

const LEAST = 0.05, AT_ONCE = 2;  // lower end of the slider; pictures processed at once

const state = {
  models: [], model: null, classes: [], threshold: 0.3, hidden: new Set(), items: [], item: null, corrections: false, live: null,
  lastName: null,
  newName: () => state.lastName || state.item?.chosen?.name || state.classes[0] || 'object',
};
const view = new View(element('canvas'), state, { changed: refresh, chosen: () => { refresh(); focusObject(state, false); }, added });

// -- showing

function tell(error) {
  if (error && !(error instanceof Failure)) console.error(error);
  element('error').hidden = !error;
  element('error').querySelector('p').textContent = error ? error.message : '';
}

function refresh() {
  const item = state.item, ready = item?.state === 'done';
  state.classes = classesOf(state.model, item ? [...state.items, item] : state.items);
  if (item?.chosen && view.item === item && !view.shown().includes(item.chosen)) item.chosen = null;  // no key changes what is not shown
  view.draw();
  showClasses(state, () => { refresh(); });
  showObjects(state, view.shown(), {
    choose: (box) => { item.chosen = box; refresh(); focusObject(state, true); },
    rename: (box, name) => {
      item.rename(box, name);
      state.lastName = name;
      state.hidden.delete(box.name);
      refresh();
      focusObject(state, true);
    },
  });
  showStrip(state, turnTo);
  element('time').textContent = ready && item.seconds ? word('time', item.seconds) : '';
  element('remove').disabled = !item?.chosen || !!state.live;
  element('undo').disabled = !item?.steps.length;
  element('add').disabled = !ready || !!state.live;
  element('save').disabled = !ready || !!state.live || item.isSaved(state.threshold);
  element('saving').hidden = !state.corrections;
  element('unlike').hidden = !(item?.unlikeness > 1);
  for (const button of document.querySelectorAll('[data-download]')) {
    const own = button.dataset.download === 'picture' ? ready : state.items.some((other) => other.state === 'done');
    button.disabled = !own;
  }
  element('empty').hidden = state.items.length > 0 || !!state.live;
  element('work').hidden = !element('empty').hidden;
  element('player').hidden = !state.live;
  busy();
}

function busy(text) {
  const waiting = state.item?.state === 'looking' || state.item?.state === 'waiting';
  element('busy').textContent = text || word('looking');
  element('busy').hidden = !(text || (waiting && !state.live));
}

/** What is wrong with a picture. Detection and this browser's own decoding end in either order; both ask here. */
function problem(item) {
  if (item?.state === 'failed') return item.error;
  return item?.state === 'done' && item.unseen ? new Failure(word('noView')) : null;
}

/** Show what is wrong with a picture, if it is the open one; other messages are left alone. */
function tellProblem(item) {
  if (item === state.item && problem(item)) tell(problem(item));
}

async function open(item) {
  state.item = item;
  tell(problem(item));
  element('saved').textContent = word('saveText');
  if (item && !item.bitmap && item.file) {
    item.bitmap = await createImageBitmap(item.file).catch(() => null);
    if (item.state !== 'done' && item.bitmap) Object.assign(item, { width: item.bitmap.width, height: item.bitmap.height });
    item.unseen = !item.bitmap;
    tellProblem(item);
    for (const other of state.items) {  // decoded pictures are large, so only the open one is kept
      if (other !== state.item) { other.bitmap?.close(); other.bitmap = null; }
    }
  }
  if (state.item !== item) return;
  view.show(item, item?.bitmap || null);
  refresh();
}

// -- pictures

function addFiles(pairs) {
  const pictures = pairs.filter(([file]) => isPicture(file));
  const video = pairs.find(([file]) => isVideo(file));
  if (!pictures.length && video) { play((player) => player.openFile(video[0])); return; }
  if (!pictures.length) { if (pairs.length) tell(new Failure(word('noPicture', pairs[0][1]))); return; }
  haveModel();
  stopPlaying();
  tell(null);
  const items = pictures.map(([file, name]) => Object.assign(new Item(file, name), { url: URL.createObjectURL(file) }));
  state.items.push(...items);
  open(items[0]);
  work();
}

let working = 0;
async function work() {
  while (state.model && working < AT_ONCE) {
    const item = state.items.find((other) => other.state === 'waiting');
    if (!item) return;
    item.state = 'looking';
    working += 1;
    look(item).finally(() => { working -= 1; work(); });
  }
}

async function look(item) {
  const model = state.model.name, turn = {};
  item.turn = turn;
  try {
    const answer = await predict(model, item.file, least(), (seconds) => { if (item === state.item) busy(word('waiting', seconds)); });
    if (item.turn !== turn) return;  // another model looks at it, or has done so
    if (model !== state.model.name) { item.state = 'waiting'; return; }
    item.found(answer.images[0], answer.seconds);
    item.model = model;
  } catch (error) {
    if (item.turn !== turn) return;
    if (model !== state.model.name) { item.state = 'waiting'; return; }
    const message = (error instanceof Failure ? error.message : String(error)).replace(/^image\b/, () => item.name);
    Object.assign(item, { state: 'failed', error: new Failure(message) });
  }
  tellProblem(item);
  refresh();
}

// -- video and camera

async function play(openIt) {
  if (!await haveModel()) return;
  stopPlaying();
  tell(null);
  const player = new Player(state.model.name, least(), (answer, frame, rate) => {
    const [result] = answer.images, item = new Item(null, result.name);
    item.found(result, answer.seconds);
    item.frame = frame;
    state.item?.frame?.picture.close();
    state.item = item;
    view.show(item, frame.picture, true);
    element('rate').textContent = word('perSecond', rate);
    const { duration, currentTime } = player.video;
    element('seek').hidden = !Number.isFinite(duration);
    if (Number.isFinite(duration)) element('seek').value = String(Math.round(1000 * currentTime / duration));
    element('play').textContent = player.video.paused ? '▶' : '❚❚';
    refresh();
  });
  try {
    state.live = player;
    state.item = null;
    refresh();
    await openIt(player);
    if (state.live !== player) { player.close(); return; }  // closed meanwhile, while the browser asked for the camera
    if (!player.camera) player.video.play().catch(() => {});
    await player.run();
  } catch (error) {
    if (state.live === player) { stopPlaying(); tell(error); }
  }
}

function stopPlaying(next = state.items.at(-1) || null) {
  if (!state.live) return;
  state.live.close();
  state.live = null;
  open(next);
}

/** Open one of the pictures; a video would show its next frame instead, and is closed. */
function turnTo(item) {
  if (state.live) stopPlaying(item); else open(item);
}

/** Turn the shown frame into a picture, which can be corrected. */
async function grab() {
  const { item } = state;
  if (!item?.frame) return;
  const name = `frame-${state.items.length + 1}.jpg`, blob = item.frame.blob || await asJpeg(item.frame.picture);
  const kept = Object.assign(new Item(new File([blob], name, { type: 'image/jpeg' }), name), { url: URL.createObjectURL(blob) });
  Object.assign(kept, { width: item.width, height: item.height, boxes: item.boxes, unlikeness: item.unlikeness, model: state.model.name, state: 'done' });
  state.items.push(kept);
  refresh();
}

// -- corrections

function added() {
  setAdding(false);
  refresh();
  renameObject(state);
}

function setAdding(on) {
  view.adding = on;
  element('add').setAttribute('aria-pressed', String(on));
  view.canvas.style.cursor = on ? 'crosshair' : 'default';
}

/** With the keyboard a new box starts in the middle of the picture. */
function addInTheMiddle() {
  const { width, height } = state.item;
  const box = state.item.add([width * 0.4, height * 0.4, width * 0.6, height * 0.6], state.newName());
  state.hidden.delete(box.name);
  added();
}

function change(doIt) {
  if (!state.item?.chosen || state.live) return;
  doIt(state.item, state.item.chosen);
  refresh();
}

async function save() {
  const { item } = state;
  element('save').disabled = true;
  try {
    const boxes = item.above(state.threshold), detections = boxes.map((box) => ({ box: box.box, class_name: box.name })), step = item.steps.at(-1);
    const answer = await correct(item.model, item.file, item.name, detections);
    if (item.steps.at(-1) === step) Object.assign(item, { saved: boxes, changed: false });  // else it was changed meanwhile
    tell(null);
    refresh();
    if (state.item === item) element('saved').textContent = word('saved', answer.images);
  } catch (error) {
    tell(error);
    refresh();
  }
}

async function saveAs(kind) {
  const items = state.items.filter((item) => item.state === 'done'), one = state.item;
  const { threshold, classes, hidden } = state;
  const makers = {
    json: () => [asJson(items, threshold, classes, state.model.name), 'detections.json'],
    coco: () => [asCoco(items, threshold, classes), 'instances_train.json'],
    yolo: async () => [await asYolo(items, threshold, classes), 'yolo.zip'],
    picture: async () => [await asPicture(one, one.bitmap || one.frame?.picture, threshold, hidden, classes), `${one.name.replace(/^.*[/\\]|\.[^.]*$/g, '')}-boxes.png`],
  };
  const steps = items.map((item) => item.steps.at(-1));
  download(...await makers[kind]());
  if (kind !== 'picture') items.forEach((item, place) => { item.downloaded = steps[place]; });
}

// -- models

async function useModel(model) {
  stopPlaying();
  tell(null);
  Object.assign(state, { model, hidden: new Set(), lastName: null });
  const { confidence, thresholds, calibrated } = model;
  setThreshold(confidence === 'auto' ? thresholds || DEFAULT : confidence === 'calibrated' ? calibrated.threshold : Math.max(LEAST, confidence));
  element('auto').hidden = !thresholds;
  element('calibrated').hidden = !calibrated;
  for (const item of state.items) if (!item.changed && !item.saved) Object.assign(item, { state: 'waiting', boxes: [], chosen: null, steps: [], unlikeness: null });
  refresh();
  work();
}

/** Requested confidence: the lowest that the page can show. */
const least = () => Math.min(LEAST, state.model.calibrated?.threshold ?? LEAST, ...Object.values(state.model.thresholds || {}));

/** Use one threshold for all classes or, given an object, the model's own for each. */
function setThreshold(value) {
  const own = typeof value !== 'number';
  state.threshold = value;
  if (!own) element('threshold').value = String(value);
  element('level').textContent = own ? word('auto') : value.toFixed(2);
  element('auto').setAttribute('aria-pressed', String(own));
  const calibrated = state.model?.calibrated;
  if (calibrated) element('calibrated').textContent = word('calibratedText', calibrated.recall);
  element('calibrated').setAttribute('aria-pressed', String(value === calibrated?.threshold));
}

/** Show the runtime, on the empty page and beside the results; while it loads, the progress. */
function tellRuntime(text) {
  for (const id of ['loading', 'runtime']) Object.assign(element(id), { textContent: text, hidden: !text });
}

async function begin() {
  const answer = await models((share) => tellRuntime(word('loading', share)));
  Object.assign(state, { models: answer.models, corrections: answer.corrections });
  element('model').replaceChildren(...answer.models.map((model) => new Option(model.name)));
  element('model').disabled = answer.models.length < 2;
  await useModel(answer.models[0]);
  tellRuntime(word('runtime', state.model));
}

// -- buttons, keys and dropped files

function wire() {
  const click = (id, action) => element(id).addEventListener('click', action);
  click('language', () => {
    chooseLanguage(otherLanguage());
    setThreshold(state.threshold);
    if (state.model) tellRuntime(word('runtime', state.model));
    refresh();
  });
  click('cancel', () => element('ask').close('cancel'));
  click('auto', () => { setThreshold(state.model.thresholds); refresh(); });
  click('calibrated', () => { setThreshold(state.model.calibrated.threshold); refresh(); });
  click('help', () => element('shortcuts').showModal());
  click('key', () => askForKey().then((given) => { if (given) start(); }));
  element('error').querySelector('button').addEventListener('click', () => tell(null));
  click('add', () => setAdding(!view.adding));
  click('remove', () => change((item, box) => item.remove(box)));
  click('undo', () => { state.item.undo(); refresh(); });
  click('larger', () => view.zoomBy(1.4));
  click('smaller', () => view.zoomBy(1 / 1.4));
  click('more', () => element('pictures').click());
  click('save', save);
  click('grab', grab);
  click('stop', () => stopPlaying());
  click('play', () => { const { video } = state.live; if (video.paused) video.play(); else video.pause(); });
  element('seek').addEventListener('input', (event) => { const { video } = state.live; video.currentTime = video.duration * event.target.value / 1000; });
  element('model').addEventListener('change', (event) => useModel(state.models[event.target.selectedIndex]));
  element('threshold').addEventListener('input', (event) => { setThreshold(Number(event.target.value)); refresh(); });
  for (const button of document.querySelectorAll('[data-download]')) button.addEventListener('click', () => saveAs(button.dataset.download).catch(tell));
  for (const button of document.querySelectorAll('[data-open]')) {
    const source = button.dataset.open;
    button.addEventListener('click', () => (source === 'camera' ? play((player) => player.openCamera()) : element(source).click()));
  }
  for (const id of ['pictures', 'folder', 'video']) {
    element(id).addEventListener('change', (event) => {
      addFiles([...event.target.files].map((file) => [file, file.webkitRelativePath || file.name]));
      event.target.value = '';
    });
  }
  document.addEventListener('keydown', keyHandler(state, view, { addInTheMiddle, change, refresh, save, setAdding, turnTo }));
  document.addEventListener('paste', (event) => addFiles([...event.clipboardData.files].map((file) => [file, file.name])));
  const over = (on) => element('stage').classList.toggle('over', on);
  document.addEventListener('dragover', (event) => { event.preventDefault(); over(true); });
  document.addEventListener('dragleave', (event) => { if (!event.relatedTarget) over(false); });
  document.addEventListener('drop', (event) => {
    event.preventDefault();
    over(false);
    dropped(event.dataTransfer).then(addFiles).catch(tell);
  });
  window.addEventListener('beforeunload', (event) => {
    if (state.items.some((item) => item.isUnsaved())) event.preventDefault();
  });
}

let begun = Promise.resolve(false), failed = false;  // whether there is a model, once known
function start() {
  failed = false;
  begun = begin().then(() => { tell(null); return true; }).catch((error) => {
    failed = true;
    tellRuntime('');
    tell(error);
    element('key').hidden = error.status !== 401;
    return false;
  });
}

/** Whether there is a model; if there was none at the last try, try again. */
function haveModel() {
  if (failed) start();
  return begun;
}

element('promise').dataset.word = promise;
chooseLanguage();
wire();
start();
