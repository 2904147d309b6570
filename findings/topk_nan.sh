#!/usr/bin/env bash
# One NaN among the scores makes OpenVINO's TopK lose several real ones, and its output is no longer sorted.
#
# Expected (written before testing): runtimes differ in whether NaN counts as the largest or the smallest value. Either way
# it takes at most one place. The other places hold the best real scores in descending order.
#
# Observed (openvino 2026.4.1, onnxruntime 1.32.0, onnx 1.23.2, 2026-11-28; the best 100 of 300 scores, one of them NaN, at
# each of the 300 positions): ONNX Runtime always puts the NaN first (like PyTorch), followed by the 99 best scores in order.
# OpenVINO's output depends on the position of the NaN. It came first for 11 of the 300 positions; otherwise it was somewhere
# in the output, or not in it. For 58 positions more than one of the best scores was missing, at worst 43 of 100, with lower
# ones in their place. For 170 positions the rest was not in descending order.
#
# Who is affected: detectors that select queries or boxes with TopK. One bad score of one query, say from float16, costs
# other, good boxes in OpenVINO, and code that stops at the first score below a threshold stops too early. ONNX Runtime shows
# the NaN first for the same model, so tests there do not find this.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1

"$work/venv/bin/python" - <<'PY'
import platform
import sys

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

if platform.machine().lower() not in ("x86_64", "amd64"):
    print("Not checked: this was seen on x86-64 processors, and this machine has another.")
    sys.exit(0)

COUNT, BEST = 300, 100
node = helper.make_node("TopK", ["scores", "best"], ["values", "places"])
kinds = (("scores", TensorProto.FLOAT, COUNT), ("values", TensorProto.FLOAT, BEST), ("places", TensorProto.INT64, BEST))
ends = [helper.make_tensor_value_info(name, kind, [1, count]) for name, kind, count in kinds]
graph = helper.make_graph([node], "best", ends[:1], ends[1:], [numpy_helper.from_array(np.array([BEST]), "best")])
model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 18)])
onnx.checker.check_model(model, full_check=True)
content = model.SerializeToString()
session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
core = openvino.Core()
compiled = core.compile_model(core.read_model(content), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
runtimes = {
    "ONNX Runtime": lambda scores: session.run(None, {"scores": scores})[0],
    "OpenVINO": lambda scores: compiled(scores)[0],
}

scores = np.random.default_rng(0).random((1, COUNT)).astype(np.float32)
for name, best in runtimes.items():  # without NaN both are right
    assert np.array_equal(best(scores), -np.sort(-scores)[:, :BEST]), name
seen = {}
for name, best in runtimes.items():
    lost, first, unsorted = [], 0, 0
    for place in range(COUNT):
        spoilt = scores.copy()
        spoilt[0, place] = np.nan
        got = best(spoilt)[0].copy()
        real = got[~np.isnan(got)]
        lost.append(len(set(np.sort(spoilt[~np.isnan(spoilt)])[-BEST:]) - set(real)))
        first += bool(np.isnan(got[0]))
        unsorted += bool((np.diff(real) > 0).any())
    seen[name] = {"first": first, "most lost": max(lost), "several lost": sum(n > 1 for n in lost), "unsorted": unsorted}
    print(f"{name}: NaN first at {first} of {COUNT} places; at most {max(lost)} real scores lost,", end=" ")
    print(f"more than one at {seen[name]['several lost']} places; the rest out of order at {unsorted}")
right = seen["ONNX Runtime"] == {"first": COUNT, "most lost": 1, "several lost": 0, "unsorted": 0}
if not (right and seen["OpenVINO"]["most lost"] > 1 and seen["OpenVINO"]["unsorted"]):
    sys.exit("The behaviour has changed.")
PY
