"""From what a user names (model, weights, backbone weights) to a detector that has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nextdetr.models.detection import DetectionModel
from nextdetr.models.graph import build_model, load_model_file, parse_model_text, skip_backbone
from nextdetr.weights.checkpoint import OpenedModel, open_model, read_detector_metadata
from nextdetr.weights.load import Part, load_into, open_weights
from nextdetr.weights.report import LoadReport

__all__ = ["Started", "open_detector", "start_model"]


@dataclass(slots=True)
class Started:
    """A model with what it was started from.

    Attributes:
        model: the detector.
        classes: C names, in the order of its indices.
        image_size: side of the square input in pixels.
        named: whether the classes are known, and not numbered for want of names.
        reports: one for each file that was loaded.
    """

    model: DetectionModel
    classes: list[str]
    image_size: int
    named: bool
    reports: list[LoadReport] = field(default_factory=list)

    @property
    def weights_licence(self) -> str:
        """Licences of all files that were loaded, ``none`` if there is none."""
        return _joined([report.identity.licence for report in self.reports])

    @property
    def source_weights(self) -> str:
        """All files that were loaded, ``none`` if there is none."""
        return _joined([report.source for report in self.reports])


def start_model(
    model: str | Path,
    *,
    classes: Sequence[str] | None = None,
    weights: str | Path | None = None,
    backbone_weights: str | Path | None = None,
    allow_partial: bool = False,
    drop_path: float = 0.0,
) -> Started:
    """Build a detector and load what it starts from.

    Args:
        model: a shipped name, a model YAML, or a checkpoint, whose own weights are loaded unless others are given.
        classes: the data's classes; None for those of the weights, or the model file's number.
        weights: a detector's weights, of any known layout. With ``backbone_weights`` beside them, or a model file whose
            backbone row names some, only the rest of them is loaded if their backbone is another one.
        backbone_weights: a backbone's weights, or a detector's whose backbone is taken.
        allow_partial: accept a load of under half of the tensors.
        drop_path: stochastic depth of the backbone's last block, 0 to 1.

    Raises:
        ModelFileError: the model cannot be built.
        WeightsError: a file cannot be read or does not fit.
    """
    source = str(model)
    checkpoint = source.endswith(".safetensors")
    if checkpoint:
        metadata = read_detector_metadata(source)
        file, weights = parse_model_text(metadata["model"], source), weights or source
    else:
        file = load_model_file(model)
    opened = None if weights is None else open_weights(weights)
    known = classes if classes is not None or opened is None else opened[1].classes
    count = len(known) if known is not None else None if opened is None else opened[1].num_classes
    reports: list[LoadReport] = []

    def load_row(built: DetectionModel, path: Path) -> None:
        reports.append(load_into(built, path, part="backbone", allow_partial=allow_partial))

    ignore = checkpoint or backbone_weights is not None
    detector = build_model(
        file, num_classes=count, drop_path=drop_path, load_backbone=skip_backbone if ignore else load_row
    )
    names = list(known) if known is not None else [f"class_{index}" for index in range(detector.num_classes)]
    started = Started(detector, names, detector.image_size, known is not None, reports)
    if opened is not None:
        part: Part = "head" if (backbone_weights is not None or reports) else "detector"
        new = None if known is None or (opened[1].classes is None and classes is None) else known
        reports.append(load_into(detector, opened, part=part, classes_new=new, allow_partial=allow_partial))
        stated = opened[0].metadata.get("image_size", "")
        if opened[1].kind == "nextdetr-detector" and stated.isdecimal() and int(stated) >= 32:
            started.image_size = int(stated)
    if backbone_weights is not None:
        reports.append(load_into(detector, backbone_weights, part="backbone", allow_partial=allow_partial))
    return started


def open_detector(
    model: str | Path,
    *,
    weights: str | Path | None = None,
    backbone_weights: str | Path | None = None,
    allow_partial: bool = False,
) -> tuple[OpenedModel, list[LoadReport]]:
    """Open a detector for use.

    Args:
        model: a shipped name, a model YAML or a checkpoint.
        weights: see ``start_model``.
        backbone_weights: see ``start_model``.
        allow_partial: see ``start_model``.

    Returns:
        The detector in evaluation mode, and the reports of what was loaded; none for a checkpoint, which loads whole or is
        refused.

    Raises:
        ModelFileError: the model cannot be built.
        WeightsError: a file cannot be read or does not fit.
    """
    if str(model).endswith(".safetensors") and weights is None and backbone_weights is None:
        return open_model(model), []
    started = start_model(
        model, weights=weights, backbone_weights=backbone_weights, allow_partial=allow_partial
    )  # fmt: skip
    metadata = {}
    if started.reports:
        metadata = {"weights_licence": started.weights_licence, "source_weights": started.source_weights}
    if weights is not None and started.named:  # then its class heads are trained
        metadata |= {
            "classes": json.dumps(started.classes, ensure_ascii=False), "image_size": str(started.image_size),
            "metrics": "{}",
        }  # fmt: skip
    opened = OpenedModel(started.model.eval(), started.classes, started.image_size, str(model), metadata)
    return opened, started.reports


def _joined(values: Sequence[str]) -> str:
    distinct = [value for value in dict.fromkeys(values) if value != "none"]
    return " and ".join(distinct) or "none"
