#!/usr/bin/env bash
# Label Studio's converter writes a rotated rectangle as a box in the wrong place: in COCO, YOLO and VOC.
#
# Expected (written before testing): the COCO box of a rotated rectangle is the upright box that encloses it, since the
# format has no rotation. YOLO and VOC have the same box in their own form.
#
# Observed (label-studio-sdk 2.1.2, 2026-11-29; image of 200 x 100 pixels, rectangle of 40 x 10 at (80, 40) rotated about
# its upper left corner, as Label Studio stores it; x, y, width, height):
#   rotated by  enclosing box            COCO                     YOLO and VOC
#   0           80, 40, 40.0, 10.0       80, 40, 40.0, 10.0       80, 40, 40, 10
#   30          75, 40, 39.6, 28.7       70, 40, 44.6, 18.7       80, 40, 40, 10
#   90          70, 40, 10.0, 40.0       60, 40, 20.0, 20.0       80, 40, 40, 10
# For COCO the corners are rotated in percent of width and height, so the box is correct on square images only. For YOLO and
# VOC the rotation is dropped. There is no warning.
#
# Who is affected: anyone who rotated rectangles while labelling, which is on by default (`canRotate`), and trains on an
# export. Compute the boxes from Label Studio's own JSON, or export YOLO OBB and use the corners.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet label-studio-sdk==2.1.2

cd "$work"
"$work/venv/bin/python" - <<'PY'
import json
import math
import sys
from pathlib import Path
from xml.etree import ElementTree

from label_studio_sdk.converter import Converter
from PIL import Image

WIDTH, HEIGHT, BOX = 200, 100, (80, 40, 40, 10)
VIEW = (
    '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">'
    '<Label value="cell"/></RectangleLabels></View>'
)
Image.new("RGB", (WIDTH, HEIGHT)).save("a.png")


def exports(turn):
    x, y, width, height = BOX
    value = {
        "x": x / WIDTH * 100, "y": y / HEIGHT * 100, "width": width / WIDTH * 100, "height": height / HEIGHT * 100,
        "rotation": turn, "rectanglelabels": ["cell"],
    }
    result = {
        "from_name": "label", "to_name": "image", "type": "rectanglelabels", "original_width": WIDTH,
        "original_height": HEIGHT, "value": value,
    }
    task = {"id": 1, "data": {"image": str(Path("a.png").resolve())}, "annotations": [{"id": 1, "result": [result]}]}
    Path("tasks.json").write_text(json.dumps([task]))
    converter = Converter(VIEW, ".", upload_dir=".", download_resources=False)
    found = []
    for kind in ("coco", "yolo", "voc"):
        out = Path(f"{kind}-{turn}")
        getattr(converter, f"convert_to_{kind}")("tasks.json", str(out), output_image_dir=str(out / "images"), is_dir=False)
        if kind == "coco":
            found.append(json.loads(next(out.glob("*.json")).read_text())["annotations"][0]["bbox"])
        elif kind == "yolo":
            _, cx, cy, w, h = map(float, next(out.glob("labels/*.txt")).read_text().split())
            found.append([(cx - w / 2) * WIDTH, (cy - h / 2) * HEIGHT, w * WIDTH, h * HEIGHT])
        else:
            box = ElementTree.parse(next(out.rglob("*.xml"))).find(".//bndbox")
            x1, y1, x2, y2 = (float(box.findtext(name)) for name in ("xmin", "ymin", "xmax", "ymax"))
            found.append([x1, y1, x2 - x1, y2 - y1])
    return [[round(value, 1) for value in box] for box in found]


def encloses(turn):
    x, y, width, height = BOX
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    corners = [(x + a * cos - b * sin, y + a * sin + b * cos) for a in (0, width) for b in (0, height)]
    xs, ys = zip(*corners)
    return [round(value, 1) for value in (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))]


seen = {}
for turn in (0, 30, 90):
    seen[turn] = exports(turn)
    print(f"turned by {turn}: encloses {encloses(turn)}, COCO {seen[turn][0]}, YOLO {seen[turn][1]}, VOC {seen[turn][2]}")
plain = [80.0, 40.0, 40.0, 10.0]
expected = {
    0: [plain] * 3, 30: [[70.0, 40.0, 44.6, 18.7], plain, plain], 90: [[60.0, 40.0, 20.0, 20.0], plain, plain],
}
if seen != expected:
    sys.exit("The behaviour has changed.")
PY
