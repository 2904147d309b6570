#!/usr/bin/env bash
# The box of a mask in supervision is a pixel narrower and shorter than in COCO.
#
# Expected (written before testing): supervision.mask_to_xyxy returns the corners of the box that pycocotools' toBbox returns
# as x, y, width and height.
#
# Observed (supervision 0.31.2, pycocotools 2.0.11, 2026-11-29): supervision's right and bottom edges are the last pixel of
# the mask; COCO's are one pixel further. A mask of pixels 5 to 14 by 3 to 8 is [5, 3, 14, 8] in supervision and [5, 3, 15, 9]
# in COCO, and the box of a single pixel has no area. polygon_to_xyxy and mask_to_polygons together do the same. An object of
# 10 x 6 pixels loses a quarter of its box: its IoU with itself is 0.75.
#
# Who is affected: anyone who makes boxes from masks (SAM, segmentation labels) with supervision, and trains or scores a
# detector on them together with COCO boxes: small objects fall below the IoU thresholds. Add 1 to the right and bottom
# edges.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 pycocotools==2.0.11 supervision==0.31.2

"$work/venv/bin/python" - <<'PY'
import sys

import numpy as np
import supervision as sv
from pycocotools import mask as coco


def boxes(x1, y1, x2, y2):
    """The box of a filled rectangle, edges behind its last pixels, in supervision and in COCO, as corners."""
    mask = np.zeros((20, 20), dtype=bool)
    mask[y1:y2, x1:x2] = True
    x, y, width, height = coco.toBbox(coco.encode(np.asfortranarray(mask.astype(np.uint8)))).tolist()
    return sv.mask_to_xyxy(mask[None])[0].tolist(), [x, y, x + width, y + height]


seen = [boxes(5, 3, 15, 9), boxes(4, 4, 5, 5)]
for here, there in seen:
    print("supervision", here, "COCO", there)
if seen != [([5, 3, 14, 8], [5.0, 3.0, 15.0, 9.0]), ([4, 4, 4, 4], [4.0, 4.0, 5.0, 5.0])]:
    sys.exit("The behaviour has changed.")
PY
