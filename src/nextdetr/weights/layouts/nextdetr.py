"""Our own files: detectors with names ``rows.<k>.…``, and backbones, marked in their metadata."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from nextdetr.models.detection import DetectionModel
from nextdetr.models.modelfile import shipped_name
from nextdetr.models.names import inside_row, row_of
from nextdetr.weights.layouts.base import Config, Identity, Layout, State, always, teachers_of
from nextdetr.weights.layouts.convnext import EPS
from nextdetr.weights.layouts.sizes import backbone_size
from nextdetr.weights.reader import WeightsFile

__all__ = ["DETECTOR_KIND", "FCMAE", "LAYOUTS", "own_detector"]

FCMAE = "fcmae"  # in a file's metadata: last trained without labels
DETECTOR_KIND = "detector-pretrained"  # the same for a whole detector, which knows objects but no classes


def _is_backbone(names: Collection[str], metadata: Mapping[str, str]) -> str | None:
    return "" if metadata.get("kind") == "backbone" else None


def _is_detector(names: Collection[str], metadata: Mapping[str, str]) -> str | None:
    return "" if any(row_of(name) is not None for name in names) else None


def _as_it_is(state: State, model: DetectionModel | None = None, config: Config = None) -> dict[str, Tensor]:
    return dict(state)


LAYOUTS = (
    Layout("nextdetr-backbone", True, always("unknown"), EPS, _is_backbone, _as_it_is),
    Layout("nextdetr-detector", False, always("unknown"), None, _is_detector, _as_it_is),
)


def own_detector(file: WeightsFile, licence: str, remarks: Sequence[str]) -> Identity:
    """Describe one of our detectors, which states everything in its metadata; licence and remarks are ``licence_of``'s."""
    metadata = file.metadata
    classes, text, notes = None, metadata.get("model"), []
    try:
        stated = json.loads(metadata["classes"])
        classes = [str(name) for name in stated] if isinstance(stated, list) and stated else None
    except (KeyError, ValueError, RecursionError):
        pass
    if classes is None:
        notes.append("it does not state its classes.")
    if text is None:
        notes.append("it does not hold its model file.")
    alone = metadata.get("kind") == DETECTOR_KIND
    if alone:
        notes.append("pre-trained without labels: it finds objects and knows no classes, which --weights of train adds.")
    state = {inside_row(name): tensor for name, tensor in file.tensors.items() if row_of(name) == 0}
    depths, dims = backbone_size(state)
    return Identity(
        "nextdetr-detector", None if text is None else shipped_name(text), classes, licence,
        (*notes, *remarks), None if classes is None else len(classes), depths, dims, "", text,
        without_labels=alone, taught=teachers_of(file),
    )  # fmt: skip
