"""Which detector a foreign checkpoint is, for which shipped model, of which classes and under which licence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nextdetr.weights.layouts.classes import published_classes
from nextdetr.weights.layouts.detectors import detector_classes, detector_kind, shipped_model_for
from nextdetr.weights.reader import WeightsFile

__all__ = ["config_of", "describe_detector"]

_AGPL = "the framework that wrote it, and its published weights, are AGPL-3.0: what is trained from them inherits that."
_APACHE = "the published files are Apache-2.0; this one does not state its licence."


def describe_detector(file: WeightsFile) -> dict[str, Any] | None:
    """Return the fields of an ``Identity``; None if the file is no detector of a known layout."""
    kind = detector_kind(file.tensors)
    if kind is None:
        return None
    count = detector_classes(kind, file.tensors)
    model = shipped_model_for(kind, file.tensors, config_of(file))
    licence = file.metadata.get("weights_licence")
    notes = []
    classes = _names(file, count)
    if classes is None:
        classes = published_classes(count)
        if classes is not None:
            notes.append("it does not name its 80 classes; they are taken to be COCO's.")
    if model is None:
        notes.append("it fits no shipped model; name the model file that it was trained with.")
    if licence is None:
        notes.append(_AGPL if kind == "rtdetr-ultralytics" else _APACHE)
        licence = "AGPL-3.0" if kind == "rtdetr-ultralytics" else "unknown"
    return {
        "kind": kind, "model": model, "classes": classes, "licence": licence, "notes": tuple(notes), "num_classes": count,
    }  # fmt: skip


def config_of(file: WeightsFile) -> Mapping[str, Any] | None:
    """Return transformers' ``config.json``, if the file came with one."""
    config = file.extra.get("config")
    return config if isinstance(config, dict) else None


def _names(file: WeightsFile, count: int | None) -> list[str] | None:
    """Return the class names that the file states: transformers' ``id2label`` or ultralytics' ``names``."""
    config = config_of(file)
    stated = file.extra.get("names") if config is None else config.get("id2label")
    if isinstance(stated, dict):
        try:
            stated = [stated[key] for key in sorted(stated, key=int)]
        except (TypeError, ValueError):
            return None
    if not isinstance(stated, list) or len(stated) != count:
        return None
    names = [str(name) for name in stated]
    # transformers numbers classes that nobody has named; as names these would match by accident.
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names
