#!/usr/bin/env bash
# torchvision's v2 transforms truncate boxes of integer type, so that they drift up and to the left.
#
# Expected (written before testing): Resize rounds integer boxes to the nearest pixel, since it has to return that type.
#
# Observed (torchvision 0.29.1, torch 2.14.1, 2026-11-29): fractions are truncated. A box at [5, 3, 16, 10], resized from
# 60 x 40 to 20 x 13 pixels, should be [1.67, 0.98, 5.33, 3.25] and becomes [1, 0, 5, 3]. For 10,000 random boxes of 32 x 32
# pixels, resized from 640 x 480 to 320 x 320, every result is exactly the floor: x is 0.25 pixels too small on average, y
# 0.33. The IoU with the exact box is 0.94 on average, 0.90 for the worst box. There is no warning.
#
# Who is affected: anyone who passes VOC's whole numbers, or COCO's after a cast, through several transforms: every step that
# scales truncates again, always in the same direction. Convert boxes to float32 before the first transform.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1

"$work/venv/bin/python" - <<'PY'
import sys

import torch
from torchvision import tv_tensors
from torchvision.ops import box_iou
from torchvision.transforms.v2 import functional


def resize(boxes, before, after):
    boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=before)
    return functional.resize(boxes, list(after)).as_subclass(torch.Tensor)


one = torch.tensor([[5, 3, 16, 10]])
exact, cut = resize(one.double(), (40, 60), (13, 20)), resize(one, (40, 60), (13, 20))
print("exact", exact.tolist(), "of whole numbers", cut.tolist())
torch.manual_seed(0)
corner = torch.stack((torch.randint(0, 608, (10000,)), torch.randint(0, 448, (10000,))), dim=1)
many = torch.cat((corner, corner + 32), dim=1)
wanted, got = resize(many.double(), (480, 640), (320, 320)), resize(many, (480, 640), (320, 320)).double()
drift = (got - wanted).mean(dim=0)
iou = torch.stack([box_iou(a[None], b[None])[0, 0] for a, b in zip(wanted, got)])
print("mean difference of the edges", [round(v, 2) for v in drift.tolist()], f"IoU {iou.mean():.3f}, worst {iou.min():.3f}")
if cut.tolist() != [[1, 0, 5, 3]] or not bool((got == wanted.floor()).all()):
    sys.exit("The behaviour has changed.")
PY
