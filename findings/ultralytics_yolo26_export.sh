#!/usr/bin/env bash
# YOLO26's default ONNX export is not NMS-free.
#
# Expected (written before testing): YOLO26 predicts without NMS, using a second head that is trained one-to-one. So
# `YOLO("yolo26n.yaml").export(format="onnx")` writes that head, 300 final boxes, and only nms=True would add NMS.
#
# Observed (ultralytics 8.4.190, 2026-11-29): the default (nms=None) disables the one-to-one head and writes the other one,
# [1, 84, 2100] at 320 px: every cell of every level, with duplicates that NMS has to remove. nms=False, which sounds like the
# same thing, is what keeps the NMS-free head, [1, 300, 6] with TopK in the graph.
#
# Who is affected: anyone who uses the first 300 rows, or compares the time of a default export with detectors that output
# final boxes: NMS is missing from the measurement. For a model without NMS, pass nms=False.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 ultralytics==8.4.190 onnx==1.23.2 onnxscript==0.7.2

cat > "$work/export.py" <<'PY'
import onnx
from ultralytics import YOLO

for nms in (None, False):
    path = YOLO("yolo26n.yaml").export(format="onnx", imgsz=320, simplify=False, **({} if nms is None else {"nms": nms}))
    graph = onnx.load(path).graph
    shape = [axis.dim_value for axis in graph.output[0].type.tensor_type.shape.dim]
    print(f"nms={nms}: {shape}, {sum(node.op_type == 'TopK' for node in graph.node)} TopK")
PY
cd "$work"
found=$(YOLO_OFFLINE=true YOLO_CONFIG_DIR="$work" "$work/venv/bin/python" export.py 2>/dev/null | grep "^nms=")
echo "$found"
[ "$found" = "nms=None: [1, 84, 2100], 0 TopK
nms=False: [1, 300, 6], 2 TopK" ] || { echo "The behaviour has changed."; exit 1; }
