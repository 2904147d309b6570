// Sources of pictures: files, folders, drag and drop, and the frames of a video or camera.

import { Stream, Failure } from './api.js';
import { word } from './words.js';

const PICTURE = /\.(avif|bmp|gif|hei[cf]|jfif|jpe?g|jp2|pbm|pgm|png|pnm|ppm|tiff?|webp)$/i;
const VIDEO = /\.(mp4|m4v|mov|webm|ogv|mkv)$/i;
const LONGEST_SIDE = 1280;  // requested from a camera

export const isVideo = (file) => file.type.startsWith('video/') || VIDEO.test(file.name);
export const isPicture = (file) => file.type.startsWith('image/') || PICTURE.test(file.name);

/** All dropped files, including those in folders, as [file, name with its folders]. */
export async function dropped(transfer) {
  const found = [], folders = [];
  let listed = false;
  for (const item of transfer.items) {  // before any await, after which they are gone
    const entry = item.webkitGetAsEntry?.(), file = item.kind === 'file' ? item.getAsFile() : null;
    listed ||= Boolean(entry);
    if (entry?.isDirectory) folders.push(entry); else if (file) found.push([file, file.name]);
  }
  const walk = async (folder, path) => {
    const reader = folder.createReader();
    for (;;) {
      const some = await new Promise((resolve, reject) => { reader.readEntries(resolve, reject); });
      if (!some.length) return;
      for (const child of some) {
        if (child.isFile) found.push([await new Promise((resolve, reject) => { child.file(resolve, reject); }), path + child.name]);
        else await walk(child, `${path}${child.name}/`);
      }
    }
  };
  for (const folder of folders) {
    await walk(folder, `${folder.name}/`).catch(() => { throw new Failure(word('noFolder', folder.name)); });
  }
  return listed ? found.sort((a, b) => a[1].localeCompare(b[1], undefined, { numeric: true })) : found;
}

/** A video or a camera; frames are processed one after the other, as fast as results arrive, without a queue. */
export class Player {
  constructor(model, least, onFrame) {
    this.video = Object.assign(document.createElement('video'), { muted: true, playsInline: true, loop: false });
    this.stream = new Stream(model, least);
    this.onFrame = onFrame;
    this.canvas = document.createElement('canvas');
    this.running = false;
    this.camera = null;
  }

  async openFile(file) {
    this.url = URL.createObjectURL(file);
    this.video.src = this.url;
    await new Promise((resolve, reject) => {
      this.video.onloadeddata = resolve;
      this.video.onerror = () => reject(new Failure(word('noVideo')));
    });
  }

  async openCamera() {
    try {
      this.camera = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment', width: { ideal: LONGEST_SIDE } } });
    } catch {
      throw new Failure(word('noCamera'));
    }
    this.video.srcObject = this.camera;
    await this.video.play();
  }

  async run() {
    this.running = true;
    let last = performance.now(), rate = 0, shown = -1;
    while (this.running) {
      const waits = this.video.paused && this.video.currentTime === shown;
      if (waits || this.video.readyState < 2 || !this.video.videoWidth) {
        await new Promise((resolve) => { setTimeout(resolve, 60); });
        last = performance.now();
        continue;
      }
      shown = this.video.currentTime;
      const frame = await this.grab();
      const answer = await this.stream.send(frame);
      if (!this.running) return;
      const now = performance.now();
      rate += 0.3 * (1000 / Math.max(1, now - last) - rate);
      last = now;
      this.onFrame(answer, frame, rate);
    }
  }

  /** The current frame, no larger than the stream accepts. */
  async grab() {
    const { videoWidth: w, videoHeight: h } = this.video, scale = Math.min(1, this.stream.longestSide / Math.max(w, h));
    Object.assign(this.canvas, { width: Math.round(w * scale), height: Math.round(h * scale) });
    this.canvas.getContext('2d').drawImage(this.video, 0, 0, this.canvas.width, this.canvas.height);
    return { picture: await createImageBitmap(this.canvas) };
  }

  close() {
    this.running = false;
    this.stream.close();
    this.video.pause();
    this.camera?.getTracks().forEach((track) => track.stop());
    if (this.url) URL.revokeObjectURL(this.url);
  }
}
