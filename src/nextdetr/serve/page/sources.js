// Where pictures come from: files, folders, what is dropped, and the frames of a video or a camera.

import { Stream, Failure } from './api.js';
import { word } from './words.js';

const PICTURE = /\.(avif|bmp|gif|hei[cf]|jfif|jpe?g|jp2|pbm|pgm|png|pnm|ppm|tiff?|webp)$/i;
const VIDEO = /\.(mp4|m4v|mov|webm|ogv|mkv)$/i;
const LONGEST_SIDE = 1280, QUALITY = 0.9;

export const isVideo = (file) => file.type.startsWith('video/') || VIDEO.test(file.name);
export const isPicture = (file) => file.type.startsWith('image/') || PICTURE.test(file.name);

/** All files of a drop, those in folders too, as [file, name with its folders]. */
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => [file, file.name]);
  const found = [];
  const walk = async (entry, path) => {
    if (entry.isFile) {
      found.push([await new Promise((resolve, reject) => { entry.file(resolve, reject); }), path + entry.name]);
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((resolve, reject) => { reader.readEntries(resolve, reject); });
      if (!some.length) break;
      for (const child of some) await walk(child, `${path}${entry.name}/`);
    }
  };
  for (const entry of entries) await walk(entry, '');
  return found.sort((a, b) => a[1].localeCompare(b[1], undefined, { numeric: true }));
}

/** A video or a camera, whose frames go to the server one after the other, as fast as it answers. */
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
      const answer = await this.stream.send(frame.blob);
      if (!this.running) return;
      const now = performance.now();
      rate += 0.3 * (1000 / Math.max(1, now - last) - rate);
      last = now;
      this.onFrame(answer.images[0], frame, rate);
    }
  }

  /** The frame that is shown now, as an encoded picture and one that can be drawn. */
  async grab() {
    const { videoWidth: w, videoHeight: h } = this.video, scale = Math.min(1, LONGEST_SIDE / Math.max(w, h));
    Object.assign(this.canvas, { width: Math.round(w * scale), height: Math.round(h * scale) });
    this.canvas.getContext('2d').drawImage(this.video, 0, 0, this.canvas.width, this.canvas.height);
    const blob = await new Promise((resolve) => { this.canvas.toBlob(resolve, 'image/jpeg', QUALITY); });
    return { blob, picture: await createImageBitmap(this.canvas) };
  }

  close() {
    this.running = false;
    this.stream.close();
    this.video.pause();
    this.camera?.getTracks().forEach((track) => track.stop());
    if (this.url) URL.revokeObjectURL(this.url);
  }
}
