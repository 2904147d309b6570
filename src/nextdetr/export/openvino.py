"""OpenVINO IR: ``model.xml`` and ``model.bin``, with the contract in ``rt_info``."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from nextdetr.errors import ExportError, missing_extra
from nextdetr.files import atomic_write, make_directory
from nextdetr.inference.contract import Contract
from nextdetr.inference.header import SECTION

__all__ = ["convert_onnx", "save_openvino"]


def convert_onnx(path: Path) -> Any:
    """Convert an ONNX file to an OpenVINO model in memory, with the same names.

    Raises:
        ConfigError: openvino is not installed.
        ExportError: OpenVINO does not support an operator.
    """
    try:
        import openvino
    except ImportError as error:
        raise missing_extra("openvino", "export", "the export to OpenVINO") from error
    try:
        # It prints a table if the program's own arguments contain --verbose; standard output is for the result.
        with contextlib.redirect_stdout(sys.stderr):
            return openvino.convert_model(str(path))
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot convert the graph: {' '.join(str(error).split())}") from error


def save_openvino(model: Any, contract: Contract, path: Path) -> Path:
    """Write ``path`` (``*.xml``) and the ``*.bin`` beside it; weights as float16 with the precision ``half``.

    The runtime decides by device whether float16 weights also mean float16 arithmetic; operations upcast to float32 in the
    graph stay so.
    """
    import openvino

    model.set_friendly_name("nextdetr")
    for name, value in contract.to_metadata().items():
        model.set_rt_info(value, [SECTION, name])
    make_directory(path.parent)
    written: list[Path] = []
    try:
        with atomic_write(path.with_suffix(".bin")) as weights, atomic_write(path) as text:
            work = text.with_name(f".writing{text.name}")  # a temporary name too, cleaned up if this process is killed
            written = [work, work.with_suffix(".bin")]
            openvino.save_model(model, str(work), compress_to_fp16=contract.precision == "half")
            work.replace(text)
            work.with_suffix(".bin").replace(weights)
    finally:  # only after the cause of a failure is known: without them, a full disk has space again
        for file in written:
            file.unlink(missing_ok=True)
    return path
