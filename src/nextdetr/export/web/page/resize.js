// The resize used in training: Pillow's antialiased bilinear filter on 8 bits, exact to the last digit.
//
// A canvas scales with another filter, which costs accuracy. This one is separable: a triangle whose half width is a pixel of the
// smaller of the two pictures. Weights are whole numbers of 2^-22, and the sums along rows and along columns are each rounded to
// 8 bits, so that their order matters: rows come first, but where the height shrinks by more than twice as many pixels as the
// width (as of Pillow 13; others differ there by a grey level).

const BITS = 22, HALF = 1 << (BITS - 1);
const STRIP = 1 << 20;  // pixels read from a canvas at a time: phones do not support large ones

/** For each of `size` positions along a side of `length` pixels: the first source pixel, their number, and weights. */
function taps(length, size) {
  const scale = length / size, reach = Math.max(scale, 1), most = 2 * Math.ceil(reach) + 1;
  const first = new Int32Array(size), count = new Int32Array(size), weights = new Int32Array(size * most);
  for (let place = 0; place < size; place += 1) {
    const centre = (place + 0.5) * scale;
    const begin = Math.max(0, Math.trunc(centre - reach + 0.5)), end = Math.min(length, Math.trunc(centre + reach + 0.5));
    const shares = Array.from({ length: end - begin }, (_, tap) => Math.max(0, 1 - Math.abs((tap + begin - centre + 0.5) * (1 / reach))));
    const sum = shares.reduce((total, share) => total + share, 0);
    first[place] = begin;
    count[place] = end - begin;
    shares.forEach((share, tap) => { weights[place * most + tap] = Math.trunc(0.5 + (share / sum) * (1 << BITS)); });
  }
  return { first, count, weights, most };
}

/** Resize `rows` lines of `width` pixels, `step` channels each, to the positions in `columns`, 3 channels each. */
function alongRows(pixels, step, width, rows, columns, out, at) {
  const { first, count, weights, most } = columns, size = first.length;
  let to = at;
  for (let row = 0; row < rows; row += 1) {
    const start = row * width;
    for (let place = 0; place < size; place += 1, to += 3) {
      let from = (start + first[place]) * step, red = HALF, green = HALF, blue = HALF;
      const begin = place * most, end = begin + count[place];
      for (let tap = begin; tap < end; tap += 1, from += step) {
        const weight = weights[tap];
        red += pixels[from] * weight;
        green += pixels[from + 1] * weight;
        blue += pixels[from + 2] * weight;
      }
      out[to] = red >> BITS;
      out[to + 1] = green >> BITS;
      out[to + 2] = blue >> BITS;
    }
  }
}

/** Likewise resize columns, into lines of `line` bytes, starting at `at` in each. */
function alongColumns(pixels, step, width, rows, out, line, at) {
  const { first, count, weights, most } = rows, size = first.length, sums = new Int32Array(width * 3);
  for (let place = 0; place < size; place += 1) {
    sums.fill(HALF);
    for (let tap = 0; tap < count[place]; tap += 1) {
      const weight = weights[place * most + tap];
      let from = (first[place] + tap) * width * step;
      for (let to = 0; to < sums.length; to += 3, from += step) {
        sums[to] += pixels[from] * weight;
        sums[to + 1] += pixels[from + 1] * weight;
        sums[to + 2] += pixels[from + 2] * weight;
      }
    }
    const to = place * line + at;
    for (let channel = 0; channel < sums.length; channel += 1) out[to + channel] = sums[channel] >> BITS;
  }
}

/** Reads parts of a picture, no larger than `most` by `high`, as 4 channels, composed onto white. */
function reader(picture, most, high) {
  const c = new OffscreenCanvas(most, high).getContext('2d', { willReadFrequently: true });
  c.fillStyle = '#fff';
  return (left, top, width, height) => {
    c.fillRect(0, 0, width, height);
    c.drawImage(picture, left, top, width, height, 0, 0, width, height);
    return c.getImageData(0, 0, width, height).data;
  };
}

/** A picture as [size, size, 3] bytes of red, green and blue, without keeping the aspect ratio. */
export function resized(picture, size) {
  const { width, height } = picture, columns = taps(width, size), rows = taps(height, size), out = new Uint8Array(size * size * 3);
  const rowsFirst = height <= size || height - size <= 2 * (width - size);
  const [along, across] = rowsFirst ? [width, height] : [height, width];
  const between = new Uint8Array(across * size * 3), most = Math.min(across, Math.max(1, Math.floor(STRIP / along)));
  const read = rowsFirst ? reader(picture, width, most) : reader(picture, most, height);
  for (let at = 0; at < across; at += most) {
    const some = Math.min(most, across - at);
    if (rowsFirst) alongRows(read(0, at, width, some), 4, width, some, columns, between, at * size * 3);
    else alongColumns(read(at, 0, some, height), 4, some, rows, between, width * 3, at * 3);
  }
  if (rowsFirst) alongColumns(between, 3, size, rows, out, size * 3, 0);
  else alongRows(between, 3, width, size, columns, out, 0);
  return out;
}
