#!/usr/bin/env bash
# OpenVINO reads an ONNX Resize with antialias=1 and does not antialias.
#
# Expected (written before testing): ONNX's Resize with mode linear and antialias=1 (opset 18) equals Pillow's bilinear
# filter to within a grey level in both runtimes. A runtime without such a filter refuses the model.
#
# Observed (openvino 2026.4.1, onnxruntime 1.32.0, onnx 1.23.2, 2026-11-29): ONNX Runtime is within 1.2 grey levels of
# Pillow. OpenVINO opens the model without a warning and gives exactly the result of antialias=0. From 640 x 480 to
# 320 x 320, a pixel is off by up to 6.6 of 255, on a smooth image. Upscaling needs no filter, so there all of them agree.
#
# Who is affected: anyone who puts the resize into the exported graph to make preprocessing the same everywhere. It is the
# same in ONNX Runtime, but in OpenVINO the detector sees other images than it was trained on. Resize before the graph.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1 pillow==13.0.0

cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import helper, numpy_helper
from PIL import Image

SIZE = 320


def outputs(pixels, antialias):
    shape = list(pixels.shape)
    node = helper.make_node(
        "Resize", ["x", "", "", "s"], ["y"], mode="linear", antialias=antialias, coordinate_transformation_mode="half_pixel"
    )
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info("y", 1, [1, 3, SIZE, SIZE])],
        [numpy_helper.from_array(np.array([1, 3, SIZE, SIZE], np.int64), "s")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, "m.onnx")
    first = onnxruntime.InferenceSession("m.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": pixels})[0]
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    second = openvino.compile_model(openvino.Core().read_model("m.onnx"), "CPU", settings)([pixels])[0]
    return first, second


def compare(width, height):
    noise = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    planes = [np.asarray(p, dtype=np.float32).transpose(2, 0, 1)[None].copy() for p in (
        picture, picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    )]
    ort, ov = outputs(planes[0], 1)
    plain = outputs(planes[0], 0)[1]
    largest = [float(np.abs(values - planes[1]).max()) for values in (ort, ov)]
    print(
        f"{width} x {height} to {SIZE} x {SIZE}, antialias=1, largest difference from Pillow of 255: ONNX Runtime "
        f"{largest[0]:.2f}, OpenVINO {largest[1]:.2f}; OpenVINO with antialias=1 and 0 differ by {np.abs(ov - plain).max():g}"
    )
    return largest[0] < 1.5, largest[1] > 5, bool(np.array_equal(ov, plain))


if compare(640, 480) != (True, True, True) or compare(150, 100) != (True, False, True):
    sys.exit("The behaviour has changed.")
PY
