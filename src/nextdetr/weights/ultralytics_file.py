"""A detector as a checkpoint for ultralytics with the plug-in ``nextdetr-ultralytics``: tensors and plain values only.

A checkpoint of that framework pickles its model's classes. What is written here has its entries, with the state dict in the
place of the pickled model: ``torch.load(weights_only=True)`` opens it, and neither package is needed to write it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nextdetr.errors import WeightsError
from nextdetr.layers.conv import BATCH_NORM_EPS
from nextdetr.models.detection import DetectionModel
from nextdetr.models.graph import parse_model_text
from nextdetr.models.modelfile import ModelFile
from nextdetr.weights.layouts.rtdetr_ultralytics import to_ultralytics
from nextdetr.weights.licences import Origin

__all__ = ["entries_of", "trained_size"]

MOST = 1 << 14  # pixels of a side
#: Rows that ultralytics' parser has, beside a backbone of one row that the plug-in puts in.
_THERE = frozenset(
    (
        "Conv", "DWConv", "AIFI", "nn.Upsample", "Concat", "RepC3", "HGStem", "HGBlock", "ResNetLayer", "nn.AvgPool2d",
        "RTDETRDecoder",
    )
)  # fmt: skip
#: Keys of a model file that its parser or the plug-in reads.
_KEYS = ("nc", "scales", "scale", "backbone", "head", "normalize", "batch_norm_eps")


def entries_of(path: str, model: DetectionModel, classes: Sequence[str], image_size: int, origin: Origin) -> dict[str, Any]:
    """Return the entries of a checkpoint.

    Args:
        path: where the model is from, for messages.
        model: a whole detector.
        classes: their names.
        image_size: side of the square input in pixels.
        origin: of the weights.

    Returns:
        ``model`` (state dict, ``model.<row>.…``), ``yaml`` (the model file's mapping), ``names`` (index -> class),
        ``train_args`` (the image size) and ``nextdetr`` (what our own file would state).

    Raises:
        WeightsError: the model has rows, or options of rows, that ultralytics does not have.
    """
    file = parse_model_text(model.text, path)
    _check_rows(path, file)
    recipe = {key: file.mapping[key] for key in _KEYS if key in file.mapping}
    if file.rows[0].name.startswith("convnextv2_"):  # its weights are in the checkpoint, and no classifier is
        recipe |= {"backbone": [[*row[:3], []] for row in recipe["backbone"]], "classifier": False}
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return {
        "model": to_ultralytics(state, len(model.rows) - 1),
        "yaml": recipe | {"nc": model.num_classes},
        "names": dict(enumerate(classes)),
        "train_args": {"task": "detect", "imgsz": image_size},
        "nextdetr": {
            "model": model.text,
            "weights_licence": origin.licence,
            "source_weights": origin.file,
            **origin.taught,
        },
    }


def _check_rows(path: str, file: ModelFile) -> None:
    whole = file.rows[0].name.startswith("convnextv2_")
    for key, value in () if whole else (("normalize", "none"), ("batch_norm_eps", BATCH_NORM_EPS)):
        if file.mapping.get(key, value) != value:
            raise WeightsError(
                f"{path}: its model file says {key}: {file.mapping[key]}, which ultralytics does not have without "
                "a ConvNeXt V2 row: its detections would differ there."
            )
    for row in file.rows:
        if row.name not in _THERE and not (whole and row.number == 0):
            raise WeightsError(
                f"{path}: its row {row.number} is {row.name}, which ultralytics does not have; a model of "
                f"{', '.join(sorted(_THERE))} goes there, as rtdetr-l-convnextv2-* are."
            )
        if row.name == "RTDETRDecoder" and any(isinstance(value, list | dict) for value in row.arguments):
            raise WeightsError(
                f"{path}: its decoder has a list of points or options ({list(row.arguments)}), which ultralytics' does not."
            )


def trained_size(extra: Mapping[str, Any], model: DetectionModel) -> int:
    """Return the image size that a checkpoint of ultralytics was trained at, rounded up to one that the model takes.

    Args:
        extra: the other entries of the file, see ``WeightsFile``.
        model: the detector, whose own proposal counts where the file states none.
    """
    settings = extra.get("train_args")
    size = settings.get("imgsz") if isinstance(settings, dict) else None
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= MOST:
        return model.image_size
    return math.ceil(size / model.stride) * model.stride
