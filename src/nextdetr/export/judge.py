"""Check an exported file in every runtime that can open it: differences from PyTorch, speed, and AP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from nextdetr.data.records import DetectionData
from nextdetr.errors import ModelFileError
from nextdetr.export.gate import Comparison, Limits, compare, latency
from nextdetr.export.pt2 import ProgramModel
from nextdetr.inference.contract import Contract
from nextdetr.inference.exported import ExportedModel, OpenedExport, open_export
from nextdetr.inference.runtimes import possible_runtimes
from nextdetr.structures import DetectorOutput
from nextdetr.weights.checkpoint import OpenedModel

__all__ = ["Score", "Verdict", "judge"]

Metrics = dict[str, float | None]


class Score(Protocol):
    """Scores an opened detector with COCO metrics; passed in, since this package is beside the engine."""

    def __call__(
        self, opened: OpenedModel | OpenedExport, queries: int | None, part: DetectionData | None = None
    ) -> Metrics:
        """Metrics on the split to score, or on these images."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """Results of a file in one runtime.

    Attributes:
        comparison: differences of the outputs.
        metrics: COCO metrics; empty without ``--data``.
        seconds_per_image: median, one image at a time.
        failures: sentences, one for each limit that is not met.
    """

    comparison: Comparison
    metrics: Metrics
    seconds_per_image: float
    failures: list[str]

    @property
    def passed(self) -> bool:
        """Whether all limits are met."""
        return not self.failures


def judge(
    path: Path,
    contract: Contract,
    reference: Callable[[Tensor], DetectorOutput],
    images: Sequence[Tensor],
    limits: Limits,
    before: Metrics,
    score: Callable[[OpenedExport], Metrics] | None,
) -> dict[str, Verdict]:
    """Check a file in each installed runtime that can open it; the format's own runtime comes first.

    Args:
        path: the file.
        contract: its contract.
        reference: the original detector, [1, 3, S, S] to a ``DetectorOutput``.
        images: images to compare on, [3, S, S] each.
        limits: limits to meet.
        before: metrics of the reference.
        score: scores the opened file; None skips metrics.
    """
    names = [ProgramModel.name] if path.suffix == ".pt2" else possible_runtimes(path)
    found = {}
    for name in names:
        try:
            model, opened = _open(path, contract, name)
            comparison = compare(reference, model, images, limits.tolerance)
            metrics = score(opened) if score is not None and opened is not None else {}
            failures = _failures(comparison, limits, before, metrics)
            found[name] = Verdict(comparison, metrics, latency(model, images[0]), failures)
        except ModelFileError as error:  # the runtime cannot open or run it, so it fails there
            found[name] = Verdict(Comparison(len(images), 0, 0.0, 1.0, 1.0, False), {}, 0.0, [str(error)])
    return found


def _open(path: Path, contract: Contract, runtime: str) -> tuple[ExportedModel, OpenedExport | None]:
    if path.suffix == ".pt2":  # which open_export refuses
        return ExportedModel(ProgramModel(path, contract), contract, str(path)), None
    export = open_export(path, runtime="onnxruntime" if runtime == "onnxruntime" else "openvino")
    return export.model, export


def _failures(
    found: Comparison, limits: Limits, before: Mapping[str, float | None], after: Mapping[str, float | None]
) -> list[str]:
    failures = []
    if not found.finite:
        failures.append("the exported model's outputs are not finite (NaN or infinity).")
    if found.matched < limits.matched:
        failures.append(
            f"{found.matched:.1%} of {found.detections} detections have a counterpart within {limits.tolerance:g}; the "
            f"limit is {limits.matched:.0%}."
        )
    first, second = before.get("AP"), after.get("AP")
    if first is not None and second is not None and first - second > limits.accuracy_drop:
        failures.append(f"AP fell from {first:.4f} to {second:.4f}; the limit is a drop of {limits.accuracy_drop:g}.")
    return failures
