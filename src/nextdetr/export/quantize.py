"""8-bit arithmetic by NNCF, calibrated on the user's own images; decoder and heads compute in float, from 8-bit weights.

Post-training quantisation as in Jacob et al., arXiv 1712.05877, section 2. Boxes are refined by small steps, for which 256
values are too few, while backbone and encoder hold nearly all of the arithmetic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nextdetr.errors import ExportError, missing_extra
from nextdetr.export.onnx import quiet, save_checked
from nextdetr.export.openvino import convert_onnx, save_openvino
from nextdetr.inference.contract import Contract
from nextdetr.inference.exported import as_input

__all__ = ["float_operators", "quantize", "store_weights_as_int8"]


#: What to call the operators of both formats.
KINDS = {
    "Conv": "convolution", "Convolution": "convolution", "GroupConvolution": "depthwise convolution",
    "MatMul": "matrix product", "Gemm": "matrix product",
}  # fmt: skip

#: Operators that hand 8-bit values on as they are.
PASSING = ("Transpose", "Concat", "Reshape", "Resize", "Interpolate", "Unsqueeze", "Squeeze")


def quantize(source: Path, contract: Contract, target: Path, images: Sequence[Tensor], decoder: int) -> Path:
    """Quantise an ONNX file into ``target``, an ONNX file or an OpenVINO model.

    Args:
        source: the float32 graph.
        contract: the terms of the result.
        target: ``*.onnx`` or ``*.xml``; may be ``source``.
        images: [3, S, S] float RGB, 0 to 1, to calibrate on.
        decoder: number of the decoder's row, which stays float with all that comes behind it.

    Raises:
        ConfigError: nncf is not installed.
        ExportError: NNCF cannot quantise the graph.
    """
    try:
        import nncf
    except ImportError as error:
        raise missing_extra("nncf", "export", "8-bit arithmetic") from error
    import onnx

    model: Any = onnx.load(str(source)) if target.suffix == ".onnx" else convert_onnx(source)
    unit = np.ones((1, 2), np.int64)

    def feed(image: Tensor) -> dict[str, Any]:
        given = {"images": as_input(image.unsqueeze(0), contract)}
        return given if contract.raw else {**given, "sizes": unit}

    try:
        with quiet():
            quantized = nncf.quantize(
                model, nncf.Dataset(list(images), feed), preset=nncf.QuantizationPreset.MIXED, subset_size=len(images),
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=nncf.IgnoredScope(patterns=[rf"^rows\.{decoder}[./].*", r"^graph/.*"], validate=False),
            )  # fmt: skip
    except (RuntimeError, ValueError, nncf.ValidationError, nncf.InternalError, nncf.UnsupportedModelError) as error:
        raise ExportError(f"NNCF cannot quantise the graph: {' '.join(str(error).split())}") from error
    if target.suffix == ".onnx":
        store_weights_as_int8(quantized)
        return save_checked(quantized, contract, target)
    with quiet():
        stored = nncf.compress_weights(quantized, mode=nncf.CompressWeightsMode.INT8_ASYM)
    return save_openvino(stored, contract, target)


def store_weights_as_int8(model: Any) -> None:
    """Store what stayed float as 8-bit weights of float arithmetic, a scale for each column; in place.

    NNCF's own function for it does not know weights that a graph slices (attention's joint projection).

    Args:
        model: an ONNX model.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    added = []
    for weight in list(graph.initializer):
        products = users.get(weight.name, [])
        right = all(node.op_type == "MatMul" and node.input[1] == weight.name for node in products)
        if weight.data_type != 1 or len(weight.dims) != 2 or not products or not right or min(weight.dims) < 8:
            continue
        values = numpy_helper.to_array(weight)
        scale = np.maximum(np.abs(values).max(axis=0), 1e-12) / np.float32(127)  # [columns]
        stored = np.rint(values / scale).clip(-127, 127).astype(np.int8)
        name = weight.name
        graph.initializer.remove(weight)
        graph.initializer.append(numpy_helper.from_array(stored, f"{name}_int8"))
        graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}_scale"))
        added.append(
            helper.make_node("DequantizeLinear", [f"{name}_int8", f"{name}_scale"], [name], axis=1, name=f"weights/{name}")
        )
    for node in added:
        graph.node.insert(0, node)


def float_operators(path: Path) -> dict[str, int]:
    """Count the convolutions, depthwise convolutions and matrix products of a quantised file that compute in float."""
    counts: Counter[str] = Counter()
    if path.suffix == ".onnx":
        import onnx

        graph = onnx.load(str(path)).graph
        makers = {name: node for node in graph.node for name in node.output}
        for node in graph.node:
            maker = makers.get(node.input[0]) if node.op_type in KINDS else node
            while maker is not None and maker.op_type in PASSING:
                maker = makers.get(maker.input[0])
            if node.op_type in KINDS and (maker is None or maker.op_type != "DequantizeLinear"):
                grouped = any(entry.name == "group" and entry.i > 1 for entry in node.attribute)
                counts[KINDS["GroupConvolution" if grouped else node.op_type]] += 1
        return dict(counts)
    import openvino

    for operator in openvino.Core().read_model(path).get_ordered_ops():
        kind = operator.get_type_name()
        maker = operator
        while kind in KINDS and (maker is operator or maker.get_type_name() in PASSING):
            maker = maker.input_value(0).get_node()
        if kind in KINDS and maker.get_type_name() != "FakeQuantize":
            counts[KINDS[kind]] += 1
    return dict(counts)
