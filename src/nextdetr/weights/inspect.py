"""Description of a weights file, for ``nextdetr weights inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nextdetr.errors import WeightsError
from nextdetr.models.graph import build_skeleton
from nextdetr.weights.layouts.table import Identity
from nextdetr.weights.load import open_weights, plan_load
from nextdetr.weights.reader import WeightsFile, check_finite

__all__ = ["inspect_file"]


def inspect_file(path: str | Path, model: str | None = None) -> dict[str, Any]:
    """Describe a weights file, and report whether it fits a model.

    Args:
        path: the file, or the name of weights (see ``open_weights``).
        model: a shipped name or model YAML; None to skip this.

    Raises:
        WeightsError: the file cannot be read, or has no known layout.
        ModelFileError: the model cannot be built.
    """
    file, identity = open_weights(path)
    described = identity.to_json()
    described["notes"] += [] if (fault := _fault(file)) is None else [fault]
    return {
        **described, "format": file.format, "tensors": len(file.tensors),
        "parameters": sum(tensor.numel() for tensor in file.tensors.values()),
        "fit": None if model is None else _fit(file, identity, model),
    }  # fmt: skip


def _fault(file: WeightsFile) -> str | None:
    """Return why the file cannot be loaded at all; None if its values are valid."""
    for name, tensor in file.tensors.items():
        if name.endswith((".weight", ".bias")) and (not tensor.is_floating_point() or tensor.is_complex()):
            kind = str(tensor.dtype).removeprefix("torch.")
            return f"its tensor {name} is of type {kind}, which weights are not. As it is, it cannot be loaded."
    try:
        check_finite(file)
    except WeightsError as error:
        return str(error).removeprefix(f"{file.path}: ") + " As it is, it cannot be loaded."
    return None


def _fit(file: WeightsFile, identity: Identity, model: str) -> dict[str, Any]:
    """Try the load on a model on the meta device."""
    built = build_skeleton(model, num_classes=None if identity.is_backbone else identity.num_classes)
    part = "backbone" if identity.is_backbone else "detector"
    answer: dict[str, Any] = {"model": model, "part": part, "fits": False, "reason": "", "report": None}
    try:
        report = plan_load(
            built, (file, identity), part="backbone" if identity.is_backbone else "detector", allow_partial=False
        ).report
        report.check(allow_partial=False)
    except WeightsError as error:
        return answer | {"reason": str(error)}
    return answer | {"fits": not report.missing, "reason": report.text(), "report": report.to_json()}
