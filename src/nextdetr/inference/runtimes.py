"""Which runtime opens an exported file, and opening it there; no torch."""

from __future__ import annotations

import logging
import platform
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from nextdetr.errors import ConfigError, ModelFileError, missing_extra
from nextdetr.inference.contract import UNJUDGED, Contract
from nextdetr.inference.header import exported_file, read_metadata
from nextdetr.inference.session import Session

__all__ = ["RUNTIMES", "Runtime", "choose_runtime", "open_session", "possible_runtimes"]

logger = logging.getLogger(__name__)

Runtime = Literal["auto", "onnxruntime", "openvino"]

#: By a file's ending, what can open it; the first is the format's own.
RUNTIMES: dict[str, tuple[Literal["onnxruntime", "openvino"], ...]] = {
    ".onnx": ("onnxruntime", "openvino"),
    ".xml": ("openvino",),
}


def possible_runtimes(path: Path) -> list[Literal["onnxruntime", "openvino"]]:
    """Return the installed runtimes that can open a file of this ending, the format's own first."""
    return [name for name in RUNTIMES.get(path.suffix, ()) if find_spec(name) is not None]


def choose_runtime(path: Path, wanted: Runtime = "auto", passed: Collection[str] | None = None) -> str:
    """Return what opens an exported file: the runtime that was asked for, or the fastest in which it passed its gate.

    OpenVINO opens ONNX files too. On x86 processors it is the faster of the two (docs/experiments.md), elsewhere
    neither was measured, and an ONNX file stays with ONNX Runtime.

    Args:
        path: ``*.onnx`` or ``*.xml``.
        wanted: ``auto``, ``onnxruntime`` or ``openvino``.
        passed: the runtimes in which the file passed its gate; None for a file that does not say, which was judged in its
            format's own only.

    Raises:
        ConfigError: there is no such runtime, or it does not open such a file.
    """
    if wanted not in get_args(Runtime):
        raise ConfigError(f"there is no runtime {wanted!r}; choose one of {', '.join(get_args(Runtime))}.")
    if path.suffix == ".xml":
        if wanted == "onnxruntime":
            raise ConfigError(f"{path}: ONNX Runtime opens ONNX files only; leave --runtime out for OpenVINO.")
        return "openvino"
    if wanted != "auto":
        return wanted
    proven = ["onnxruntime"] if passed is None else [name for name in RUNTIMES[".onnx"] if name in passed]
    installed = [name for name in proven if find_spec(name) is not None]
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    if "openvino" in installed and (x86 or "onnxruntime" not in installed):
        return "openvino"
    return "onnxruntime"


def open_session(
    source: str | Path, *, threads: int | None = None, runtime: Runtime = "auto"
) -> tuple[Session, Contract, dict[str, str]]:
    """Open an ONNX file, an OpenVINO model, or the folder that holds one of them, and check it against its terms.

    Args:
        source: ``*.onnx``, ``*.xml``, or a folder with ``model.onnx`` or ``model.xml``.
        threads: processor threads to use; None leaves it to the runtime.
        runtime: see ``choose_runtime``.

    Returns:
        The session, the file's terms and its metadata.

    Raises:
        ModelFileError: there is no such file, it is damaged, NextDETR did not export it, or its graph is not what its
            metadata says.
        ConfigError: its runtime is not installed, or does not open such a file.
    """
    path = exported_file(source)
    if path.suffix == ".pt2":
        raise ModelFileError(
            f"{source}: a torch.export program is not opened, since reading it can run code: use the checkpoint, or its "
            "export to ONNX or OpenVINO."
        )
    if runtime != "auto":  # refused before the file is read
        chosen = choose_runtime(path, runtime)
        if find_spec(chosen) is None:
            raise missing_extra(chosen, "openvino" if chosen == "openvino" else "", f"opening {path}")
    metadata = read_metadata(path)
    contract = Contract.from_metadata(metadata, str(source))
    passed = contract.passed_runtimes
    chosen = choose_runtime(path, runtime, passed)
    if passed == (UNJUDGED,):
        if runtime == "auto":  # the export itself names one, and judges the file
            logger.warning(
                "%s: its export was broken off before the file was compared with the detector, so what it finds may be "
                "wrong; export it again.", source,
            )  # fmt: skip
    elif passed is not None and chosen not in passed:
        logger.warning(
            "%s: it did not pass its gate in %s, so what it finds may be wrong; see report.json.", source, chosen
        )
    session: Session
    if chosen == "onnxruntime":
        from nextdetr.inference.onnx import open_onnx

        session = open_onnx(path, threads=threads)
    else:
        from nextdetr.inference.openvino import open_openvino

        session = open_openvino(path, threads=threads, unpack=contract.precision == "int8")
    contract.check(session.inputs, session.outputs, str(source))
    session.source = str(source)
    return session, contract, metadata
