"""Start a detector from the tensors of another one: what fits is copied, the rest initialised, and all of it reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nextdetr.errors import WeightsError
from nextdetr.models.detection import DetectionModel

__all__ = ["TransferReport", "transfer_backbone", "transfer_detector"]


@dataclass(slots=True)
class TransferReport:
    """Which tensors were copied.

    Attributes:
        source: the file.
        total: number of tensors of the target.
        loaded, missing, unexpected, reshaped: names of tensors; ``reshaped`` ones were carried over class by class, or
            initialised where no class has the same name.
    """

    source: str
    total: int
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return the report in a line or two."""
        parts = [f"{self.source}: {len(self.loaded)} of {self.total} tensors loaded"]
        for kind, names in (("missing", self.missing), ("unexpected", self.unexpected), ("reshaped", self.reshaped)):
            if names:
                shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
                parts.append(f"{len(names)} {kind} ({shown})")
        return "; ".join(parts) + "."

    def check(self) -> None:
        """Refuse a load that matches under half of the tensors.

        Raises:
            WeightsError: under half of the target's tensors were found.
        """
        if 2 * (len(self.loaded) + len(self.reshaped)) < self.total:
            raise WeightsError(f"{self.text()} That is under half: is it a checkpoint of another model?")


def transfer_detector(
    model: DetectionModel,
    tensors: Mapping[str, Tensor],
    source: str,
    old_classes: Sequence[str],
    new_classes: Sequence[str],
) -> TransferReport:
    """Copy a detector's tensors; rows that belong to a class are carried over by the class's name.

    Raises:
        WeightsError: under half of the tensors fit.
    """
    own = model.state_dict()
    report = TransferReport(source, len(own), unexpected=[name for name in tensors if name not in own])
    pairs = [(new_classes.index(name), index) for index, name in enumerate(old_classes) if name in new_classes]
    same_classes = list(old_classes) == list(new_classes)
    with torch.no_grad():
        for name, target in own.items():
            given = tensors.get(name)
            if given is None:
                report.missing.append(name)
            elif _is_per_class(name) and not same_classes and given.shape[0] == len(old_classes):
                for new, old in pairs:
                    target[new] = given[old]
                report.reshaped.append(name)
            elif given.shape == target.shape:
                target.copy_(given)
                report.loaded.append(name)
            else:
                report.missing.append(name)
    report.check()
    return report


def _is_per_class(name: str) -> bool:
    return any(part in name for part in ("score_head", "denoising_class_embed"))


def transfer_backbone(model: DetectionModel, path: Path) -> tuple[TransferReport, str]:
    """Load a backbone file, or the backbone of a detector file.

    Returns:
        The report and the licence that the file names.

    Raises:
        WeightsError: the file is missing or damaged, or a backbone tensor is missing or has another shape.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            prefix = "rows.0." if any(name.startswith("rows.0.") for name in names) else ""
            tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names if name.startswith(prefix)}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error}).") from error
    own = model.backbone.state_dict()
    report = TransferReport(str(path), len(own), unexpected=[name for name in tensors if name not in own])
    for name, target in own.items():
        if name in tensors and tensors[name].shape == target.shape:
            target.copy_(tensors[name])
            report.loaded.append(name)
        else:
            report.missing.append(name)
    if report.missing:
        raise WeightsError(f"{report.text()} The backbone needs all of its tensors: is the file of another size?")
    return report, metadata.get("weights_licence", "unknown")
