"""Operators of an exported file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

__all__ = ["count_operators", "float_operators"]

#: Common names of the operators of both formats.
KINDS = {
    "Conv": "convolution", "Convolution": "convolution", "GroupConvolution": "depthwise convolution",
    "MatMul": "matrix product", "Gemm": "matrix product",
}  # fmt: skip

#: Operators that pass 8-bit values through.
PASSING = ("Transpose", "Concat", "Reshape", "Resize", "Interpolate", "Unsqueeze", "Squeeze")


def count_operators(path: Path) -> dict[str, int]:
    """Count the operators of an ONNX file or OpenVINO model by the format's names, most frequent first."""
    if path.suffix == ".onnx":
        import onnx

        return dict(Counter(node.op_type for node in onnx.load(str(path)).graph.node).most_common())
    import openvino

    operators = openvino.Core().read_model(path).get_ordered_ops()
    return dict(Counter(operator.get_type_name() for operator in operators).most_common())


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
