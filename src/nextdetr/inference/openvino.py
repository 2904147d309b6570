"""OpenVINO models (``model.xml`` beside ``model.bin``) and ONNX files in OpenVINO's runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nextdetr.errors import ModelFileError, missing_extra
from nextdetr.inference.session import Arrays

__all__ = ["SECTION", "OpenVinoSession", "compile_on_cpu", "open_openvino"]

SECTION = "nextdetr"  # of the model's rt_info
SECTION_ONNX = "framework"  # where OpenVINO keeps an ONNX file's metadata_props


class OpenVinoSession:
    """A model, compiled for the processor by OpenVINO."""

    name = "openvino"

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._outputs = [output.get_any_name() for output in compiled.outputs]

    def run(self, inputs: Arrays) -> Arrays:
        """Map inputs to outputs, by their names."""
        self._request.infer(inputs)
        # Copies: the request keeps its memory for the next image.
        return {name: self._request.get_output_tensor(i).data.copy() for i, name in enumerate(self._outputs)}


def open_openvino(path: Path, *, threads: int | None = None) -> tuple[OpenVinoSession, dict[str, str]]:
    """Open an OpenVINO model or an ONNX file; return it and its metadata.

    Raises:
        ModelFileError: the file is damaged, or ``model.bin`` is missing beside ``model.xml``.
        ConfigError: openvino is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise missing_extra("openvino", "export", f"opening {path}") from error
    xml = path.suffix == ".xml"
    if xml and not path.with_suffix(".bin").is_file():
        raise ModelFileError(f"{path}: its weights, {path.with_suffix('.bin').name}, are not beside it.")
    try:
        core = openvino.Core()
        model = core.read_model(path)
        metadata = {}
        section = SECTION if xml else SECTION_ONNX
        if model.has_rt_info(section):
            metadata = {name: str(model.get_rt_info([section, name]).value) for name in model.get_rt_info(section).value}
        if metadata.get("precision") == "int8":
            _unpack_weights(model)
        compiled = compile_on_cpu(core, model, threads)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ModelFileError(f"{path}: OpenVINO cannot open it ({reason}); is the file complete?") from error
    return OpenVinoSession(compiled), metadata


def compile_on_cpu(core: Any, model: Any, threads: int | None = None) -> Any:
    """Compile a model, or the file of a path, for single images in float32 arithmetic, whatever the processor prefers."""
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
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
