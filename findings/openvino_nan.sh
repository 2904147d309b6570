#!/usr/bin/env bash
# In OpenVINO, NaN disappears at the next ReLU: later layers compute with 0, as if nothing were wrong.
#
# Expected (written before testing): NaN passes through Relu, Clip, MaxPool and Max as in PyTorch and ONNX Runtime, so a
# broken model is visible by NaN in its outputs, in any runtime.
#
# Observed (openvino 2026.4.1, onnxruntime 1.32.0, onnx 1.23.2, 2026-11-29; 64 values, one of them NaN; number of NaNs in
# the output):
#              Relu   Clip   Max   MaxPool   HardSigmoid   Exp   Sigmoid   LeakyRelu
#   ONNX R.    1      1      1     1         1             1     1         1
#   OpenVINO   0      0      0     0         0             0     1         1
# In OpenVINO the output is 0 after Relu, Clip (0 to 6) and Max (with 0), 1 after HardSigmoid, and infinity after Exp. Relu
# and Clip behave the same after a convolution.
#
# Who is affected: anyone who checks a model's outputs with isnan, in tests or in production. If the model contains ReLU
# (ResNet, most YOLO heads), broken weights give finite scores and boxes in OpenVINO. Check the weights, or run ONNX Runtime
# once.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1

cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import helper, numpy_helper

values = np.full((1, 1, 4, 16), -1, np.float32)
values[0, 0, 1, 3] = np.nan
low, high = (numpy_helper.from_array(np.array(value, np.float32), name) for name, value in (("low", 0), ("high", 6)))
one = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "one")
node = helper.make_node
CASES = {
    "Relu": [node("Relu", ["x"], ["y"])], "Clip": [node("Clip", ["x", "low", "high"], ["y"])],
    "Max": [node("Max", ["x", "low"], ["y"])],
    "MaxPool": [node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2])],
    "HardSigmoid": [node("HardSigmoid", ["x"], ["y"])], "Exp": [node("Exp", ["x"], ["y"])],
    "Sigmoid": [node("Sigmoid", ["x"], ["y"])], "LeakyRelu": [node("LeakyRelu", ["x"], ["y"])],
    "Conv, Relu": [node("Conv", ["x", "one"], ["c"]), node("Relu", ["c"], ["y"])],
    "Conv, Clip": [node("Conv", ["x", "one"], ["c"]), node("Clip", ["c", "low", "high"], ["y"])],
}


def count(nodes):
    used = {name for item in nodes for name in item.input}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, list(values.shape))], [helper.make_tensor_value_info("y", 1, None)],
        [constant for constant in (low, high, one) if constant.name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, "m.onnx")
    first = onnxruntime.InferenceSession("m.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": values})[0]
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    second = openvino.compile_model(openvino.Core().read_model("m.onnx"), "CPU", settings)([values])[0]
    return int(np.isnan(first).sum()), int(np.isnan(second).sum())


seen = {name: count(nodes) for name, nodes in CASES.items()}
for name, (ort, ov) in seen.items():
    print(f"{name}: ONNX Runtime {ort}, OpenVINO {ov}")
expected = {name: (1, int(name in ("Sigmoid", "LeakyRelu"))) for name in CASES}
if seen != expected:
    sys.exit("The behaviour has changed.")
PY
