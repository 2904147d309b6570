#!/usr/bin/env bash
# A COCO file that passes through datumaro comes back with different category ids.
#
# Expected (written before testing): COCO in, COCO out keeps all ids, since result files refer to them. Image and annotation
# ids are in fact kept.
#
# Observed (datumaro 1.13.12, 2026-11-29): categories are renumbered from 1, in their order: 3 and 7 become 1 and 2. Ids of
# images and annotations stay the same. There is no warning.
#
# Who is affected: anyone who scores detections against annotations that were merged, split or filtered this way. With the
# ids the detector was trained on, an object of the second class counts as one of a class that the file does not have, or of
# a different class. COCO's own 80 classes, numbered 1 to 90 with gaps, are shifted from the twelfth on. Match classes by
# name instead.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet datumaro==1.13.12

cd "$work"
"$work/venv/bin/python" - <<'PY'
import json
import sys
from pathlib import Path

import datumaro
from PIL import Image

content = {
    "images": [{"id": 9, "file_name": "a.jpg", "width": 80, "height": 60}],
    "categories": [{"id": 3, "name": "cell"}, {"id": 7, "name": "nucleus"}],
    "annotations": [
        {"id": 5, "image_id": 9, "category_id": 3, "bbox": [5, 6, 20, 10], "area": 200, "iscrowd": 0, "segmentation": []},
        {"id": 6, "image_id": 9, "category_id": 7, "bbox": [9, 8, 7, 7], "area": 49, "iscrowd": 0, "segmentation": []},
    ],
}
Path("in/annotations").mkdir(parents=True)
Path("in/images/train").mkdir(parents=True)
Image.new("RGB", (80, 60)).save("in/images/train/a.jpg")
Path("in/annotations/instances_train.json").write_text(json.dumps(content))
datumaro.Dataset.import_from("in", "coco_instances").export("out", "coco_instances")
back = json.loads(Path("out/annotations/instances_train.json").read_text())
seen = {
    "images": [image["id"] for image in back["images"]],
    "categories": [(category["id"], category["name"]) for category in back["categories"]],
    "annotations": sorted((item["id"], item["category_id"]) for item in back["annotations"]),
}
print(seen)
expected = {"images": [9], "categories": [(1, "cell"), (2, "nucleus")], "annotations": [(5, 1), (6, 2)]}
if seen != expected:
    sys.exit("The behaviour has changed.")
PY
