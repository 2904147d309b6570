"""Which file to deploy on this machine, float32 or 8 bits, and in which runtime; by measurement, in plain sentences."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nextdetr.data.raw import plural
from nextdetr.errors import ModelFileError
from nextdetr.export.measure import in_turn
from nextdetr.inference.contract import Contract
from nextdetr.inference.exported import as_input
from nextdetr.inference.runtimes import possible_runtimes
from nextdetr.inference.session import Session

__all__ = ["Advice", "Instructions", "advise", "compare_files", "instructions_for_8_bits"]

logger = logging.getLogger(__name__)

Precision = Literal["float32", "int8"]
PRECISIONS: tuple[Precision, ...] = ("float32", "int8")

#: Median seconds per image, by precision and runtime.
Times = Mapping[Precision, Mapping[str, float]]

#: CPU instructions for 8-bit products: names as in ``torch.cpu.get_capabilities``, fastest first.
Instructions = Literal["amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "dot", "none", "unknown"]
KNOWN: tuple[Instructions, ...] = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "dot")

THREADS = 2  # of each runtime
SECONDS = 4.0  # total time to measure, for all files and runtimes

RUNTIME_NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
FILE_NAMES = {"float32": "float32", "int8": "8-bit"}


@dataclass(frozen=True, slots=True)
class Advice:
    """Comparison of a detector's float32 and 8-bit files, with a recommendation.

    Attributes:
        precision: precision of the file to deploy on this machine.
        runtime: to run it in.
        ratio: time of the fastest 8-bit file that passed its gate, relative to the fastest float32 file; below 1 it is
            faster. None if no 8-bit file passed.
        seconds: median seconds per image, by precision and runtime, with the same number of threads.
        threads: CPU threads of each runtime.
        instructions: instructions for 8-bit products of this CPU; ``none`` or ``unknown`` otherwise.
        sentence: which file to deploy, with the numbers.
        warning: what is wrong with 8 bits here; None if nothing.
        elsewhere: what to expect on other CPUs, which was not measured.
    """

    precision: Precision
    runtime: str
    ratio: float | None
    seconds: dict[Precision, dict[str, float]]
    threads: int
    instructions: Instructions
    sentence: str
    warning: str | None
    elsewhere: str

    def lines(self) -> list[str]:
        """Return the lines for the command line."""
        times = [
            f"{FILE_NAMES[precision]} in {RUNTIME_NAMES[runtime]} {1000 * seconds:.1f} ms"
            for precision, found in self.seconds.items()
            for runtime, seconds in found.items()
        ]
        warning = [] if self.warning is None else [f"WARNING: {self.warning}"]
        return [
            f"measured with {plural(self.threads, 'thread')}: {', '.join(times)}",
            *warning,
            self.sentence,
            self.elsewhere,
        ]


def compare_files(
    files: Mapping[Precision, Path],
    contract: Contract,
    image: NDArray[np.float32],
    passed: Mapping[Precision, Collection[str] | None],
) -> Advice | None:
    """Time a float32 and an 8-bit file in every installed runtime that opens them, in turn, and recommend one.

    Args:
        files: files by precision, of the same detector with the same inputs.
        contract: contract of both, except for the precision.
        image: image to measure on, [3, S, S] float RGB, 0 to 1.
        passed: see ``advise``.

    Returns:
        The recommendation; None if a file opens in no runtime.
    """
    feed = {"images": as_input(image[None], contract)}
    if not contract.raw:
        feed["sizes"] = np.array([image.shape[1:]], np.int64)
    runs = {}
    for precision, path in files.items():
        for runtime in possible_runtimes(path):
            try:
                session = _open(path, runtime, precision)
                session.run(feed)
            except ModelFileError as error:
                logger.warning("not measured: %s", error)
            else:
                runs[precision, runtime] = partial(session.run, feed)
    found = in_turn(runs, SECONDS)
    seconds: dict[Precision, dict[str, float]] = {
        precision: {name: time for (owner, name), time in found.items() if owner == precision} for precision in files
    }
    return advise(seconds, passed, THREADS)


def _open(path: Path, runtime: str, precision: Precision) -> Session:
    if runtime == "onnxruntime":
        from nextdetr.inference.onnx import open_onnx

        return open_onnx(path, threads=THREADS)
    from nextdetr.inference.openvino import open_openvino

    return open_openvino(path, threads=THREADS, unpack=precision == "int8")


def advise(
    seconds: Times,
    passed: Mapping[Precision, Collection[str] | None],
    threads: int,
    instructions: Instructions | None = None,
) -> Advice | None:
    """Recommend a file to deploy.

    Args:
        seconds: the timings.
        passed: by precision, the runtimes in which the file passed its gate; None or no entry if unknown. Others are
            measured, but not recommended.
        threads: number of threads of the timings.
        instructions: instructions of the CPU; None detects them.

    Returns:
        The recommendation; None unless both precisions were measured.
    """
    if not all(seconds.get(precision) for precision in PRECISIONS):
        return None
    instructions = instructions_for_8_bits() if instructions is None else instructions
    best: dict[Precision, tuple[float, str]] = {}
    for precision in PRECISIONS:
        proven = passed.get(precision)
        times = [(time, name) for name, time in seconds[precision].items() if proven is None or name in proven]
        if times:
            best[precision] = min(times)
    ours, theirs = best.get("int8"), best.get("float32", (float("inf"), ""))
    ratio = None if ours is None else ours[0] / theirs[0]
    chosen: Precision = "int8" if ratio is not None and ratio < 1 else "float32"
    if chosen not in best:
        return None
    return Advice(
        chosen, best[chosen][1], ratio, {precision: dict(seconds[precision]) for precision in PRECISIONS}, threads,
        instructions, _sentence(chosen, best), _warning(ratio, best), _elsewhere(instructions),
    )  # fmt: skip


def _sentence(chosen: Precision, best: Mapping[Precision, tuple[float, str]]) -> str:
    time, runtime = best[chosen]
    text = (
        f"deploy the {FILE_NAMES[chosen]} file in {RUNTIME_NAMES[runtime]} on this machine: {1000 * time:.1f} ms an image"
    )
    other: Precision = "float32" if chosen == "int8" else "int8"
    if other in best:
        slower, where = best[other]
        text += (
            f", {time / slower:.2f} x the {1000 * slower:.1f} ms of the {FILE_NAMES[other]} file in {RUNTIME_NAMES[where]}"
        )
    return text + "."


def _warning(ratio: float | None, best: Mapping[Precision, tuple[float, str]]) -> str | None:
    if ratio is None:
        return "the 8-bit file passed its gate in no runtime, so that only the float32 file can be deployed."
    if ratio <= 1:
        return None
    (ours, here), (theirs, there) = best["int8"], best["float32"]
    return (
        f"8 bits are slower than float32 on this machine: {1000 * ours:.1f} ms in {RUNTIME_NAMES[here]} against "
        f"{1000 * theirs:.1f} ms in {RUNTIME_NAMES[there]}, {ratio:.2f} x; they only make the file smaller."
    )


def _elsewhere(instructions: Instructions) -> str:
    if instructions == "unknown":
        return (
            "whether this processor has instructions for 8-bit products (AVX512-VNNI, AVX-VNNI, AMX) is not known; one "
            "with them gains more from 8 bits than one without (not measured here)."
        )
    if instructions == "none":
        return (
            "this processor has no instructions for 8-bit products; one with AVX512-VNNI, AVX-VNNI or AMX should gain more "
            "from 8 bits than this one (not measured here)."
        )
    return (
        f"this processor has instructions for 8-bit products ({instructions}); on one without, such as AVX2 alone, 8 bits "
        "gain less and may be slower than float32, in ONNX Runtime most of all (not measured here)."
    )


def instructions_for_8_bits() -> Instructions:
    """Return the fastest instructions for 8-bit products of this CPU, according to PyTorch or else Linux."""
    found = _capabilities()
    if not any(name in found for name in KNOWN):  # neither x86 nor Arm, or an older PyTorch
        return "unknown"
    return next((name for name in KNOWN if found.get(name)), "none")


def _capabilities() -> Mapping[str, bool]:
    """Whether this CPU has each of ``KNOWN``; empty if unknown."""
    try:
        import torch
    except ImportError:
        return _capabilities_by_linux()
    find = getattr(torch.cpu, "get_capabilities", None)  # in newer PyTorch
    try:
        return find() if find is not None else {}
    except RuntimeError:  # a CPU unknown to cpuinfo
        return {}


def _capabilities_by_linux(file: Path = Path("/proc/cpuinfo")) -> Mapping[str, bool]:
    names = {"amx_int8": "amx_int8", "avx512_vnni": "avx512_vnni", "avx_vnni": "avx_vnni", "i8mm": "i8mm", "dot": "asimddp"}
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return {}
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return {name: flag in flags for name, flag in names.items()} if flags else {}
