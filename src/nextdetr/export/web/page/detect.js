// From the graph's outputs to boxes in pixels, as in nextdetr predict: the best of all queries and classes, no NMS.

/**
 * @param logits [Q * C] before the sigmoid; @param boxes [Q * 4] centre, width and height as fractions.
 * @param classes C names; @param most most detections; @param least lowest confidence, 0 to 1.
 * @returns {box: [x1, y1, x2, y2], confidence, class_id, class_name} each, the best first; null where a logit is not a number.
 */
export function detections(logits, boxes, classes, most, least, width, height) {
  const lowest = Math.log(least / (1 - least)), kept = [];
  for (let place = 0; place < logits.length; place += 1) {
    if (logits[place] >= lowest) kept.push(place);
    else if (Number.isNaN(logits[place])) return null;
  }
  kept.sort((one, other) => logits[other] - logits[one] || one - other);
  const inside = (fraction, side) => Math.min(Math.max(fraction, 0), 1) * side;
  return kept.slice(0, most).map((place) => {
    const label = place % classes.length, from = ((place - label) / classes.length) * 4;
    const [x, y, halfWidth, halfHeight] = [boxes[from], boxes[from + 1], boxes[from + 2] / 2, boxes[from + 3] / 2];
    return {
      box: [inside(x - halfWidth, width), inside(y - halfHeight, height), inside(x + halfWidth, width), inside(y + halfHeight, height)],
      confidence: 1 / (1 + Math.exp(-logits[place])), class_id: label, class_name: classes[label],
    };
  });
}
