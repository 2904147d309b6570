"""ONNX files in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nextdetr.errors import ModelFileError, missing_extra
from nextdetr.inference.session import Arrays

__all__ = ["OnnxSession", "open_onnx", "session_of", "start_session"]


class OnnxSession:
    """An ONNX file, opened in ONNX Runtime on the processor."""

    name = "onnxruntime"

    def __init__(self, session: Any) -> None:
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, inputs: Arrays) -> Arrays:
        """Map inputs to outputs, by their names."""
        return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))


def open_onnx(path: Path, *, threads: int | None = None) -> tuple[OnnxSession, dict[str, str]]:
    """Open an ONNX file; return it and its metadata.

    Raises:
        ModelFileError: the file is damaged or needs what this ONNX Runtime does not have.
        ConfigError: onnxruntime is not installed.
    """
    try:
        import onnxruntime  # noqa: F401 - refused before the file is
    except ImportError as error:
        raise missing_extra("onnxruntime", "export", f"opening {path}") from error
    try:
        session = start_session(str(path), threads)
    except Exception as error:  # the runtime's own exceptions have no base of their own
        reason = " ".join(str(error).split())
        raise ModelFileError(f"{path}: ONNX Runtime cannot open it ({reason}); is the file complete?") from error
    return OnnxSession(session), dict(session.get_modelmeta().custom_metadata_map)


def session_of(model: Any) -> OnnxSession:
    """Open an ONNX model that is in memory."""
    return OnnxSession(start_session(model.SerializeToString()))


def start_session(model: str | bytes, threads: int | None = None) -> Any:
    """Start ONNX Runtime's own session on the processor, for a file's path or its content."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
