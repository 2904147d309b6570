"""8-bit arithmetic with NNCF, calibrated on the user's images; decoder and heads compute in float, with 8-bit weights.

Post-training quantisation as in Jacob et al., arXiv 1712.05877, section 2. Boxes are refined in small steps, for which 256
values are too few, while backbone and encoder have nearly all of the arithmetic.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nextdetr.data.raw import plural
from nextdetr.errors import ExportError, missing_extra
from nextdetr.export.onnx import quiet, save_checked
from nextdetr.export.openvino import convert_onnx, save_openvino
from nextdetr.export.progress import Bar, Progress, silent
from nextdetr.inference.contract import Contract
from nextdetr.inference.exported import ExportedModel, OpenedExport, as_input
from nextdetr.inference.onnx import session_of
from nextdetr.inference.openvino import OpenVinoSession
from nextdetr.models.names import row_name

__all__ = ["Search", "make_maps_unsigned", "quantize", "store_weights_as_int8"]

SEARCH_IMAGES = 300  # images for repeated scoring; the gate scores all


@dataclass(frozen=True, slots=True)
class Search:
    """How to find the layers that must stay in float.

    Attributes:
        score: returns the AP of an opened detector on the images with these numbers.
        images: number of available images; at most SEARCH_IMAGES are used.
        accuracy_drop: maximum loss of AP.
    """

    score: Callable[[OpenedExport, Sequence[int]], float]
    images: int
    accuracy_drop: float


def quantize(
    source: Path, contract: Contract, target: Path, images: Sequence[Tensor], decoder: int, search: Search | None = None,
    progress: Progress = silent,
) -> Path:  # fmt: skip
    """Quantise an ONNX file into ``target``, an ONNX file or an OpenVINO model.

    Args:
        source: the float32 graph.
        contract: contract of the result.
        target: ``*.onnx`` or ``*.xml``; may be ``source``.
        images: [3, S, S] float RGB, 0 to 1, for calibration.
        decoder: row number of the decoder, which stays in float with everything after it.
        search: if AP falls by more than its limit, layers are returned to float, worst first, until it does not (NNCF's
            accuracy control); None quantises all of backbone and encoder.
        progress: shows the images and scores; NNCF's own bars are not shown.

    Raises:
        ConfigError: nncf is not installed.
        ExportError: NNCF cannot quantise the graph.
    """
    nncf = _nncf()
    import onnx

    if target.suffix == ".onnx":
        model: Any = onnx.load(str(source))
        _fold_slices(model)  # NNCF can return only whole weights to float, not slices of them
    else:
        model = convert_onnx(source)
    owner = re.escape(row_name(decoder, "").rstrip("."))
    settings: dict[str, Any] = {
        "preset": nncf.QuantizationPreset.MIXED, "subset_size": len(images), "model_type": nncf.ModelType.TRANSFORMER,
        "ignored_scope": nncf.IgnoredScope(patterns=[rf"^{owner}[./].*", r"^graph/.*"], validate=False),
    }  # fmt: skip
    advanced = _arithmetic(nncf, model if target.suffix == ".onnx" else None)
    own = (nncf.ValidationError, nncf.InternalError, nncf.UnsupportedModelError)
    try:
        with progress() as bar, quiet():
            shown = _Shown(bar, len(images), is_searching=search is not None)
            calibration = nncf.Dataset(list(images), _feed(contract, shown))
            if search is None:
                quantized = nncf.quantize(model, calibration, advanced_parameters=advanced, **settings)
            else:
                numbers = np.linspace(0, search.images - 1, min(search.images, SEARCH_IMAGES)).astype(int).tolist()
                quantized = nncf.quantize_with_accuracy_control(
                    model, calibration, nncf.Dataset(numbers), _validation(search, contract, str(target), shown),
                    max_drop=search.accuracy_drop, advanced_quantization_parameters=advanced, **settings,
                )  # fmt: skip
    except (RuntimeError, ValueError, LookupError, *own) as error:
        raise ExportError(f"NNCF cannot quantise the graph: {' '.join(str(error).split())}") from error
    if target.suffix == ".onnx":
        store_weights_as_int8(quantized)
        make_maps_unsigned(quantized)
        return save_checked(quantized, contract, target)
    with quiet():
        # Anchors are gathered as if they were embedding weights, but 8 bits would move them by pixels.
        scope = nncf.IgnoredScope(types=["Gather"], validate=False)
        stored = nncf.compress_weights(quantized, mode=nncf.CompressWeightsMode.INT8_ASYM, ignored_scope=scope)
    return save_openvino(stored, contract, target)


def _nncf() -> Any:
    """Import NNCF, which asks PyTorch's compiler of extensions for CUDA.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        with quiet(), contextlib.redirect_stdout(sys.stderr):  # NNCF keeps it for its errors
            import nncf
            import nncf.quantization.advanced_parameters
    except ImportError as error:
        raise missing_extra("nncf", "export", "8-bit arithmetic") from error
    return nncf


def _arithmetic(nncf: Any, model: Any) -> Any:
    """Return NNCF's settings for what the processors and runtimes compute; ``model``: an ONNX model, None for OpenVINO."""
    # CPUs without VNNI add pairs of products in 16 bits, which overflow with 8-bit weights, but not with 7-bit ones.
    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    if model is not None and _has_depthwise_behind_convolution(model):
        # NNCF quantises each channel of a depthwise convolution's input separately; ONNX Runtime cannot do so if another
        # convolution produces them, because it fuses that with the quantisation.
        parameters = nncf.quantization.advanced_parameters.QuantizationParameters(per_channel=False)
        advanced.activations_quantization_params = parameters
    return advanced


class _Shown:
    """What is shown of NNCF's work, by the images and scores that it asks for."""

    def __init__(self, bar: Bar, images: int, *, is_searching: bool) -> None:
        self._bar, self._images, self._seen, self._scores = bar, images, 0, 0
        then = "; then AP is measured, and what costs too much of it returns to float" if is_searching else ""
        bar.line(f"8 bits: calibrating on {plural(images, 'image')}{then}.")

    def image(self) -> None:
        """Count an image; NNCF may go through them more than once."""
        turn, place = divmod(self._seen, self._images)
        self._seen += 1
        self._bar.update("calibrating", (place + 1) / self._images, f"image {place + 1}/{self._images}, pass {turn + 1}")

    def score(self, score: float) -> None:
        """Count a score."""
        self._scores += 1
        self._bar.update("measuring", 1.0, f"AP {score:.4f}, score {self._scores}")


def _feed(contract: Contract, shown: _Shown) -> Callable[[Tensor], dict[str, Any]]:
    """Return what makes inputs of an image [3, S, S]."""
    unit = np.ones((1, 2), np.int64)

    def feed(image: Tensor) -> dict[str, Any]:
        shown.image()
        given = {"images": as_input(image[None].numpy(), contract)}
        return given if contract.raw else {**given, "sizes": unit}

    return feed


def _fold_slices(model: Any) -> None:
    """Turn slices of weights (attention's joint projection) into weights, in place."""
    from onnxscript import optimizer

    largest = 1 << 28  # bytes
    with quiet():
        optimizer.fold_constants(
            model, input_size_limit=largest, output_size_limit=largest,
            should_fold=lambda node: True if node.op_type == "Slice" else None,
        )  # fmt: skip
        optimizer.remove_unused_nodes(model)


def _has_depthwise_behind_convolution(model: Any) -> bool:
    """Whether an ONNX graph has a grouped convolution that reads the output of another convolution."""
    written = {name for node in model.graph.node if node.op_type == "Conv" for name in node.output}
    return any(
        node.op_type == "Conv" and node.input[0] in written and any(a.name == "group" and a.i > 1 for a in node.attribute)
        for node in model.graph.node
    )


def _validation(search: Search, contract: Contract, name: str, shown: _Shown) -> Callable[[Any, Iterable[int]], float]:
    """Return the AP of NNCF's argument: an ONNX model, or a compiled OpenVINO model."""

    def validate(model: Any, numbers: Iterable[int]) -> float:
        session = session_of(model) if hasattr(model, "SerializeToString") else OpenVinoSession(model)
        exported = ExportedModel(session, contract, name)
        opened = OpenedExport(exported, contract.classes, contract.image_size, name, contract.to_metadata())
        score = search.score(opened, [int(number) for number in numbers])
        shown.score(score)
        return score

    return validate


def store_weights_as_int8(model: Any) -> None:
    """Store the remaining float weights in 8 bits for float arithmetic, with one scale per output; in place.

    NNCF's own function misses weights that a graph slices (attention's joint projection).

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
        sides = {list(node.input).index(weight.name) if node.op_type == "MatMul" else None for node in products}
        if weight.data_type != 1 or len(weight.dims) != 2 or sides not in ({0}, {1}) or min(weight.dims) < 8:
            continue
        axis = int(sides == {1})  # axis of the outputs: rows of a left factor, columns of a right one
        values = numpy_helper.to_array(weight)
        scale = np.maximum(np.abs(values).max(axis=1 - axis), 1e-12) / np.float32(127)
        stored = np.rint(values / np.expand_dims(scale, 1 - axis)).clip(-127, 127).astype(np.int8)
        name = weight.name
        graph.initializer.remove(weight)
        graph.initializer.append(numpy_helper.from_array(stored, f"{name}_int8"))
        graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}_scale"))
        parts = [f"{name}_int8", f"{name}_scale"]
        added.append(helper.make_node("DequantizeLinear", parts, [name], axis=axis, name=f"weights/{name}"))
    for node in added:
        graph.node.insert(0, node)


def make_maps_unsigned(model: Any) -> None:
    """Quantise maps to 0 to 255 instead of NNCF's -128 to 127, in place; the represented values are the same.

    OpenVINO 2026.4.1 computes a 1 × 1 convolution after a Concat of signed maps incorrectly (an AP of 0.17 fell by 0.02),
    but of unsigned ones exactly.

    Args:
        model: an ONNX model.
    """
    from onnx import numpy_helper

    graph = model.graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            readers.setdefault(node.input[0], []).append(node)
    turned: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or len(node.input) < 3 or node.input[2] not in values:
            continue
        zero = numpy_helper.to_array(values[node.input[2]])
        if zero.dtype != np.int8:
            continue
        name = turned.setdefault(node.input[2], f"{node.input[2]}_unsigned")
        if name not in values:
            values[name] = numpy_helper.from_array((zero.astype(np.int16) + 128).astype(np.uint8), name)
            graph.initializer.append(values[name])
        for reader in (node, *readers.get(node.output[0], [])):
            reader.input[2] = name
    used = {name for node in graph.node for name in node.input}
    for old in turned:
        if old not in used:
            graph.initializer.remove(values[old])
    del graph.value_info[:]  # it may contain the old types
