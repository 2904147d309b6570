#!/usr/bin/env bash
# GridSample in ONNX Runtime reads the first pixel for a NaN coordinate, and nothing or the wrong edge far outside.
#
# Expected (written before testing): with zeros padding, every point outside the map is 0, however far away. With border
# padding it is the nearest edge. A NaN coordinate gives NaN, as in PyTorch.
#
# Observed (onnxruntime 1.32.0, onnx 1.23.2, 2026-11-28; a map of 4 x 4 with values 1 to 16, point (v, v), bilinear):
#   v        1e3   1e8   1e20   inf    nan
#   zeros    0     0     0.25   0.25   0.25    a quarter of the first pixel, read as if the point were (-0.5, -0.5)
#   border   16    0     1      1      1       the edge there is 16
# PyTorch 2.14.1 gives 0 for zeros padding up to 1e38 and NaN for inf and NaN. OpenVINO 2026.4.1 gives 16 for border padding
# at 1e8 and 1e20.
#
# Who is affected: detectors with deformable attention sample their maps with GridSample at computed points. If the points
# go bad (float16, a bad checkpoint, a division by 0), PyTorch shows it with NaN in the output. The exported model hides it
# behind finite, plausible boxes, and checking the output for NaN finds nothing.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0

"$work/venv/bin/python" - <<'PY'
import platform
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

if platform.machine().lower() not in ("x86_64", "amd64"):
    print("Not checked: this was seen on x86-64 processors, and this machine has another.")
    sys.exit(0)

POINTS = np.array([1e3, 1e8, 1e20, np.inf, np.nan], np.float32)


def sample(padding):
    node = helper.make_node("GridSample", ["map", "points"], ["read"], mode="linear", padding_mode=padding)
    kinds = (("map", [1, 1, 4, 4]), ("points", [1, 1, 5, 2]), ("read", [1, 1, 1, 5]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in kinds]
    graph = helper.make_graph([node], "sample", ends[:2], ends[2:])
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 20)])
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)
    points = np.stack([POINTS, POINTS], axis=-1).reshape(1, 1, 5, 2)
    return session.run(None, {"map": values, "points": points})[0].ravel().tolist()


print("coordinates", POINTS.tolist())
seen = {padding: sample(padding) for padding in ("zeros", "border")}
for padding, values in seen.items():
    print(f"{padding:6} padding", values)
if seen != {"zeros": [0, 0, 0.25, 0.25, 0.25], "border": [16, 0, 1, 1, 1]}:
    sys.exit("The behaviour has changed.")
PY
