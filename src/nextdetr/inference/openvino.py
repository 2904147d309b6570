"""OpenVINO models (``model.xml`` beside ``model.bin``) and ONNX files in OpenVINO's runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nextdetr.errors import ModelFileError, missing_extra
from nextdetr.inference.exported import Arrays

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
