// What the page asks the server.

import { asJpeg } from './save.js';
import { word } from './words.js';

export const promise = 'private';  // the word about where pictures go

let key = null;
try { key = sessionStorage.getItem('nextdetr-key'); } catch { /* storage is off */ }
let asking = null;

/** A sentence for the user. */
export class Failure extends Error {}

export const hasKey = () => key !== null;

/** Ask for the key; several requests that miss it ask once. */
export function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById('ask'), field = document.getElementById('secret');
    field.value = '';
    dialog.returnValue = 'cancel';
    dialog.addEventListener('close', () => {
      asking = null;
      const given = dialog.returnValue === 'ok' && field.value.trim() !== '';
      if (given) {
        key = field.value.trim();
        try { sessionStorage.setItem('nextdetr-key', key); } catch { /* likewise */ }
      }
      field.value = '';
      resolve(given);
    }, { once: true });
    dialog.showModal();
    field.focus();
  });
  return asking;
}

async function send(path, options = {}) {
  for (;;) {
    const headers = { ...options.headers };
    if (key !== null) headers.Authorization = `Bearer ${key}`;
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === 'AbortError') throw error;
      throw new Failure(word('noServer'));
    }
    if (response.ok) return response.json();
    if (response.status === 401 && await askForKey()) continue;
    const body = await response.json().catch(() => null);
    const failure = new Failure(body?.error?.message || `${response.status} ${response.statusText}`);
    failure.status = response.status;
    failure.wait = Number(response.headers.get('Retry-After')) || 1;
    throw failure;
  }
}

export const models = () => send('/models');

const MOST_TRIES = 6;  // of a busy server

/** Ask again while the server is busy; `wait` returns the seconds until then, or null for another error. */
async function patiently(ask, wait) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await ask();
    } catch (error) {
      const seconds = attempt === MOST_TRIES ? null : wait(error);
      if (seconds === null) throw error;
      await new Promise((resolve) => { setTimeout(resolve, 1000 * seconds); });
    }
  }
}

const address = (model, what) => `/models/${encodeURIComponent(model)}/${what}`;

/** Detect in one file; all but the least confident boxes come, so that the slider needs no other request. */
export function predict(model, file, least, onWait) {
  const ask = () => send(`${address(model, 'predict')}?confidence=${least}`, {
    method: 'POST', body: file, headers: { 'Content-Type': file.type.startsWith('image/') ? file.type : 'application/octet-stream' },
  });
  return patiently(ask, (error) => {
    if (error.status !== 503) return null;
    onWait(error.wait);
    return error.wait;
  });
}

export function correct(model, file, name, detections) {
  const form = new FormData();
  form.append('image', file, name);
  form.append('annotations', JSON.stringify({ detections }));
  return send(address(model, 'corrections'), { method: 'POST', body: form });
}

/** A stream: `send(frame)` resolves to what was found in the frame. */
export class Stream {
  constructor(model, least) {
    Object.assign(this, { model, least });
    this.longestSide = 1280;  // of the frames that are sent
    this.closed = false;
    this.connect();
  }

  connect() {
    this.waiting = this.failure = null;
    const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
    this.socket = new WebSocket(`${scheme}://${location.host}${address(this.model, 'stream')}`);
    this.open = new Promise((resolve, reject) => {
      this.socket.onopen = () => {
        if (key !== null) this.socket.send(JSON.stringify({ api_key: key }));
        this.socket.send(JSON.stringify({ confidence: this.least }));
        resolve();
      };
      this.socket.onclose = () => {
        const failure = this.failure || new Failure(word('noServer'));
        reject(failure);
        this.waiting?.reject(failure);
      };
    });
    this.open.catch(() => {});
    this.socket.onmessage = (event) => {
      const message = JSON.parse(event.data);
      if (message.error && message.frame === undefined) this.failure = new Failure(message.error.message);
      else if (message.error) this.waiting?.reject(Object.assign(new Failure(message.error.message), { busy: message.error.type === 'Busy' }));
      else this.waiting?.resolve(message);
    };
  }

  send(frame) { return patiently(() => this.ask(frame), (error) => (error.busy ? 1 : null)); }

  async ask(frame) {
    if (this.closed) throw new Failure(word('noServer'));  // while the server was busy
    if (this.socket.readyState > WebSocket.OPEN) this.connect();  // the server closes an idle stream, as of a paused video
    await this.open;
    frame.blob = await asJpeg(frame.picture);
    return new Promise((resolve, reject) => {
      if (this.socket.readyState !== WebSocket.OPEN) { reject(this.failure || new Failure(word('noServer'))); return; }
      this.waiting = { resolve, reject };
      this.socket.send(frame.blob);
    });
  }

  close() {
    this.closed = true;
    this.socket.onclose = null;
    this.socket.close();
  }
}
