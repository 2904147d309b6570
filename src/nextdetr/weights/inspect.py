"""What ``nextdetr weights inspect`` says of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nextdetr.errors import WeightsError
from nextdetr.models.graph import load_model_file
from nextdetr.weights.layouts import Identity
from nextdetr.weights.load import open_weights, plan_load
from nextdetr.weights.reader import WeightsFile
from nextdetr.weights.skeleton import skeleton

__all__ = ["inspect_file"]


def inspect_file(path: str | Path, model: str | None = None) -> dict[str, Any]:
    """Describe a weights file, and say whether it fits a model.

    Args:
        path: the file.
        model: a shipped name or model YAML; None asks for no model.

    Raises:
        WeightsError: the file cannot be read, or is of no known layout.
        ModelFileError: the model cannot be built.
    """
    file, identity = open_weights(path)
    return {
        **identity.to_json(), "format": file.format, "tensors": len(file.tensors),
        "parameters": sum(tensor.numel() for tensor in file.tensors.values()),
        "fit": None if model is None else _fit(file, identity, model),
    }  # fmt: skip


def _fit(file: WeightsFile, identity: Identity, model: str) -> dict[str, Any]:
    """Try the load on a model without memory."""
    built = skeleton(load_model_file(model), identity.num_classes if not identity.is_backbone else None)
    part = "backbone" if identity.is_backbone else "detector"
    answer: dict[str, Any] = {"model": model, "part": part, "fits": False, "reason": "", "report": None}
    try:
        report = plan_load(
            built, file, identity, part="backbone" if identity.is_backbone else "detector", allow_partial=False
        )
        report.check(allow_partial=False)
    except WeightsError as error:
        return answer | {"reason": str(error)}
    return answer | {"fits": not report.missing, "reason": report.text(), "report": report.to_json()}
