"""8-bit arithmetic by NNCF, calibrated on the user's own images; the decoder and its heads stay float.

Post-training quantisation as in Jacob et al., arXiv 1712.05877, section 2. Boxes are refined by small steps, for which 256
values are too few, while backbone and encoder hold nearly all of the arithmetic.
"""

from __future__ import annotations

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

__all__ = ["float_operators", "quantize"]


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
        return save_checked(quantized, contract, target)
    return save_openvino(quantized, contract, target)


def float_operators(path: Path) -> dict[str, int]:
    """Count the convolutions and matrix products of an ONNX file whose input is not 8-bit, by operator."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    counts: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm") and made_by.get(node.input[0]) != "DequantizeLinear":
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts
