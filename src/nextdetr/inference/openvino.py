"""OpenVINO models (``model.xml`` beside ``model.bin``) and ONNX files in OpenVINO's runtime; no torch."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from nextdetr.errors import ModelFileError, missing_extra
from nextdetr.inference.session import Arrays, Port, Session, reason

__all__ = ["OpenVinoSession", "compile_on_cpu", "open_openvino"]

#: OpenVINO's names for what numpy calls otherwise.
KINDS = {"f32": "float32", "f16": "float16", "u8": "uint8", "i64": "int64", "i32": "int32"}


class OpenVinoSession(Session):
    """A model, compiled for the processor by OpenVINO.

    A request serves one thread at a time, so that there are as many as threads that run at once.
    """

    name = "openvino"

    def __init__(self, compiled: Any, source: str = "") -> None:
        self.source = source
        self.inputs = {entry.get_any_name(): _port(entry) for entry in compiled.inputs}
        self.outputs = {entry.get_any_name(): _port(entry) for entry in compiled.outputs}
        self._compiled = compiled
        self._idle = deque([compiled.create_infer_request()])

    def _run(self, inputs: Arrays) -> Arrays:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            request.infer(inputs)
            # Copies: the request keeps its memory for the next image.
            return {name: request.get_output_tensor(i).data.copy() for i, name in enumerate(self.outputs)}
        finally:
            self._idle.append(request)


def _port(entry: Any) -> Port:
    kind, shape = entry.get_element_type().get_type_name(), entry.get_partial_shape()
    sides = None if shape.rank.is_dynamic else tuple(None if side.is_dynamic else side.get_length() for side in shape)
    return Port(KINDS.get(kind, kind), sides)


def open_openvino(path: Path, *, threads: int | None = None, unpack: bool = False) -> OpenVinoSession:
    """Open an OpenVINO model or an ONNX file.

    Args:
        path: ``*.xml`` or ``*.onnx``.
        threads: processor threads; None leaves it to OpenVINO.
        unpack: turn the 8-bit weights of float products into float32, for files of 8 bits.

    Raises:
        ModelFileError: the file is damaged, or ``model.bin`` is missing beside ``model.xml``.
        ConfigError: openvino is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise missing_extra("openvino", "openvino", f"opening {path}") from error
    if path.suffix == ".xml" and not path.with_suffix(".bin").is_file():
        raise ModelFileError(f"{path}: its weights, {path.with_suffix('.bin').name}, are not beside it.")
    try:
        core = openvino.Core()
        model = core.read_model(path)
        if unpack:
            _unpack_weights(model)
        return OpenVinoSession(compile_on_cpu(core, model, threads), str(path))
    except Exception as error:  # the binding raises RuntimeError, ValueError and its own
        raise ModelFileError(f"{path}: OpenVINO cannot open it ({reason(error)}); is the file complete?") from error


def compile_on_cpu(core: Any, model: Any, threads: int | None = None) -> Any:
    """Compile a model, or the file of a path, for single images in float32 arithmetic, whatever the processor prefers."""
    # With VNNI it would round what meets weights of 8 bits to 8 bits as well, and scores differ by 0.01.
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", **exact}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    return core.compile_model(model, "CPU", settings)


def _unpack_weights(model: Any) -> None:
    """Turn the 8-bit weights of float products into float32, in place.

    Left as they are, the processor's plugin unpacks them at each call, which costs the reference model 2 % of its time.
    Weights of 8-bit products are signed, and stay.
    """
    from openvino import Type, opset13

    for product in model.get_ordered_ops():
        if product.get_type_name() != "MatMul":
            continue
        for port in product.inputs():
            if _first_constant(port.get_source_output().get_node()) == Type.u8:
                values = _constant_value(port.get_source_output().get_node())
                if values is not None:
                    port.replace_source_output(opset13.constant(values.astype(np.float32)).output(0))


def _first_constant(node: Any) -> Any:
    """Element type of the constant that a node's first inputs lead to; None where they lead to none."""
    while node.get_type_name() != "Constant":
        if not node.get_input_size():
            return None
        node = node.input_value(0).get_node()
    return node.get_element_type()


def _constant_value(node: Any) -> np.ndarray[Any, Any] | None:
    """Value of a chain of constants as NNCF stores weights, (weights - zero point) x scale; None of anything else."""
    kind = node.get_type_name()
    if kind == "Constant":
        stored: np.ndarray[Any, Any] = node.data
        return stored
    if kind not in ("Convert", "Subtract", "Multiply", "Reshape"):
        return None
    inputs = [_constant_value(node.input_value(number).get_node()) for number in range(node.get_input_size())]
    if any(value is None for value in inputs):
        return None
    first, *others = (np.asarray(value) for value in inputs)
    result: np.ndarray[Any, Any]
    if kind == "Convert":
        result = first.astype(np.float32)
    elif kind == "Reshape":
        result = first.reshape(others[0])
    else:
        result = first - others[0] if kind == "Subtract" else first * others[0]
    return result
