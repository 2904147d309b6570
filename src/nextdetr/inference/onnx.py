"""ONNX files in ONNX Runtime; no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nextdetr.errors import ModelFileError, missing_extra
from nextdetr.inference.session import Arrays, Port, Session, reason

__all__ = ["OnnxSession", "open_onnx", "session_of", "start_session"]

#: ONNX Runtime's names for what numpy calls otherwise.
KINDS = {"float": "float32", "double": "float64"}


class OnnxSession(Session):
    """An ONNX file, opened in ONNX Runtime on the processor; its sessions may be run by several threads."""

    name = "onnxruntime"

    def __init__(self, session: Any, source: str = "") -> None:
        self.source = source
        self.inputs = {entry.name: _port(entry) for entry in session.get_inputs()}
        self.outputs = {entry.name: _port(entry) for entry in session.get_outputs()}
        self._session = session

    def _run(self, inputs: Arrays) -> Arrays:
        names = list(self.outputs)
        return dict(zip(names, self._session.run(names, inputs), strict=True))


def _port(entry: Any) -> Port:
    kind = entry.type.removeprefix("tensor(").removesuffix(")")
    return Port(KINDS.get(kind, kind), tuple(side if isinstance(side, int) else None for side in entry.shape) or None)


def open_onnx(path: Path, *, threads: int | None = None) -> OnnxSession:
    """Open an ONNX file.

    Raises:
        ModelFileError: the file is damaged or needs what this ONNX Runtime does not have.
        ConfigError: onnxruntime is not installed.
    """
    try:
        import onnxruntime  # noqa: F401 - refused before the file is
    except ImportError as error:
        raise missing_extra("onnxruntime", "", f"opening {path}") from error
    try:
        session = start_session(str(path), threads)
    except Exception as error:  # the runtime's own exceptions have no base of their own
        raise ModelFileError(f"{path}: ONNX Runtime cannot open it ({reason(error)}); is the file complete?") from error
    return OnnxSession(session, str(path))


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
