"""The detector file: safetensors with all metadata needed to build and use the detector.

Tensor names are those of ``DetectionModel.state_dict()``; the metadata keys are fixed (INTERFACES, "Files of a run").
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal, TypeAlias

from torch import Tensor

from nextdetr.confidence import CALIBRATION, THRESHOLDS
from nextdetr.errors import ModelFileError, WeightsError
from nextdetr.models.detection import DetectionModel
from nextdetr.models.graph import (
    BackboneLoader,
    build_model,
    build_skeleton,
    load_model_file,
    parse_model_text,
    with_memory,
)
from nextdetr.models.sizes import size_problem
from nextdetr.weights.folder import CARD, FOLDER_FILES, read_card
from nextdetr.weights.gate import fill
from nextdetr.weights.licences import with_owners
from nextdetr.weights.tensorfile import open_tensors, read_metadata, write_tensors

__all__ = [
    "FAMILIARITY",
    "FORMAT_VERSION",
    "OF_THESE_WEIGHTS",
    "SPEED",
    "Given",
    "OpenedModel",
    "extra_metadata",
    "image_size_of",
    "open_model",
    "read_detector_metadata",
    "read_metrics",
    "save_detector",
    "save_opened",
    "stated_model",
]

FORMAT_VERSION = "1"
SPEED = "speed"  # inference/speed.py
FAMILIARITY = "familiarity"  # inference/familiarity.py
#: Other metadata that hold only for these very weights.
OF_THESE_WEIGHTS = frozenset((SPEED, THRESHOLDS, CALIBRATION, FAMILIARITY))
_FIXED = frozenset(
    (
        "format_version", "model", "classes", "image_size", "metrics", "weights_licence", "source_weights", "data",
        "nextdetr_version",
    )
)  # fmt: skip
LARGEST_SIZE = 1 << 14  # pixels, of the side of the square input
#: Weights that a user gave beside a model.
Given: TypeAlias = Literal["", "detector", "unnamed detector", "backbone"]
_AT_ONCE = 8 << 20  # bytes to read before the file's memory is released


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A detector and its metadata.

    Attributes:
        model: the model, in evaluation mode.
        classes: C names, in the order of the model's indices.
        image_size: side of the square input in pixels.
        source: source as given by the user.
        metadata: the file's metadata, all strings; without ``classes`` for an untrained model. ``weights_licence`` includes
            what the model card of a folder states, see ``with_owners``.
        given: which weights were given beside ``source``, in place of its own: a detector's, one's whose classes have no
            names, or a backbone's.
    """

    model: DetectionModel
    classes: list[str]
    image_size: int
    source: str
    metadata: dict[str, str]
    given: Given = ""

    @property
    def trained(self) -> bool:
        """Whether the weights came from a checkpoint."""
        return "classes" in self.metadata


def save_detector(
    path: str | Path,
    state: Mapping[str, Tensor],
    *,
    model_text: str,
    classes: Sequence[str],
    image_size: int,
    metrics: Mapping[str, Any] | None = None,
    weights_licence: str = "none",
    source_weights: str = "none",
    data: str = "none",
    extra: Mapping[str, str] | None = None,
) -> Path:
    """Write a detector file atomically; the same weights and metadata give the same bytes.

    Args:
        path: target, ``*.safetensors``.
        state: ``DetectionModel.state_dict()``, on any device.
        model_text: text of the model YAML.
        classes: class names in the order of the indices.
        image_size: side of the square input in pixels.
        metrics: COCO metrics of these weights, if known.
        weights_licence: licence of the weights that training started from.
        source_weights: file that training started from.
        data: name of the data set it was trained on.
        extra: further metadata, all strings, which are returned in ``OpenedModel.metadata`` and stay with the detector
            (``extra_metadata``).

    Raises:
        ValueError: ``extra`` contains a fixed key.
    """
    from nextdetr import __version__

    metadata = {
        "format_version": FORMAT_VERSION,
        "model": model_text,
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "image_size": str(image_size),
        "metrics": json.dumps(dict(metrics or {})),
        "weights_licence": weights_licence,
        "source_weights": source_weights,
        "data": data,
        "nextdetr_version": __version__,
    }
    if taken := metadata.keys() & (extra or {}).keys():
        raise ValueError(f"extra metadata may not replace {', '.join(sorted(taken))}")
    return write_tensors(path, state, {**metadata, **(extra or {})})


def save_opened(path: str | Path, opened: OpenedModel, **changes: Any) -> Path:
    """Write an opened detector with its metadata.

    Args:
        path: target, ``*.safetensors``.
        opened: the detector.
        changes: arguments of ``save_detector`` that override the metadata.
    """
    metadata = opened.metadata
    known: dict[str, Any] = {
        "model_text": opened.model.text, "classes": opened.classes, "image_size": opened.image_size,
        "metrics": read_metrics(metadata), "extra": extra_metadata(metadata),
        **{key: metadata[key] for key in ("weights_licence", "source_weights", "data") if key in metadata},
    }  # fmt: skip
    return save_detector(path, opened.model.state_dict(), **(known | changes))


def extra_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return a detector's metadata besides the fixed fields, for ``save_detector``'s ``extra``."""
    return {key: value for key, value in metadata.items() if key not in _FIXED}


def read_metrics(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the metrics in a detector's metadata; empty if unreadable."""
    try:
        metrics = json.loads(metadata.get("metrics", "{}"))
    except (ValueError, RecursionError):
        return {}
    return metrics if isinstance(metrics, dict) else {}


def read_detector_metadata(path: str | Path) -> dict[str, str]:
    """Return the metadata of a detector file, without reading its tensors.

    Raises:
        WeightsError: the file is missing, damaged, or not a NextDETR detector.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; give a checkpoint (*.safetensors) that nextdetr train wrote.")
    metadata = read_metadata(path)
    missing = [key for key in ("format_version", "model", "classes", "image_size") if key not in metadata]
    if missing:
        raise WeightsError(f"{path}: not a NextDETR detector: its metadata has no {', '.join(missing)}.")
    if metadata["format_version"] != FORMAT_VERSION:
        raise WeightsError(
            f"{path}: format version {metadata['format_version']}, but this NextDETR reads {FORMAT_VERSION}; "
            f"it was written by NextDETR {metadata.get('nextdetr_version', '(unknown)')}."
        )
    return metadata


def open_model(
    source: str | Path, *, num_classes: int | None = None, load_backbone: BackboneLoader | None = None
) -> OpenedModel:
    """Open a shipped name, a model YAML or a checkpoint.

    Args:
        source: source as given by the user.
        num_classes: number of classes for a model file; a checkpoint has its own.
        load_backbone: see ``build_model``; a checkpoint already contains its backbone.

    Raises:
        ModelFileError: neither a shipped name nor a readable model file.
        WeightsError: a checkpoint cannot be read or does not fit its own model.
    """
    if str(source).endswith(".safetensors"):
        return _open_checkpoint(Path(source))
    model = build_model(load_model_file(source), num_classes=num_classes, load_backbone=load_backbone)
    names = [f"class_{index}" for index in range(model.num_classes)]
    return OpenedModel(model.eval(), names, model.image_size, str(source), {})


def _open_checkpoint(path: Path) -> OpenedModel:
    metadata = read_detector_metadata(path)
    classes = _classes_of(metadata, path)
    with open_tensors(path) as opened:
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    with stated_model(path):
        file = parse_model_text(metadata["model"], "the file")
        # Compared on the meta device first: a tiny file may state a model of any size.
        model = build_skeleton(file, num_classes=len(classes), tensors=len(shapes))
        _check_shapes(model, shapes, path)
    image_size = image_size_of(metadata, model, str(path))
    _load(with_memory(model), list(shapes), path)
    return OpenedModel(model.eval(), classes, image_size, str(path), _with_card(metadata, path))


def _with_card(metadata: dict[str, str], path: Path) -> dict[str, str]:
    """Add the licence that a model card beside the file states, see ``with_owners``.

    Only a file named as in a repository of the Hub has a card: elsewhere, README.md is about something else.
    """
    stated = read_card(path.with_name(CARD)).get("licence") if path.name in FOLDER_FILES else None
    licence = with_owners(metadata.get("weights_licence", "none"), stated)[0]
    return metadata if stated is None else {**metadata, "weights_licence": licence}


def _load(model: DetectionModel, names: Sequence[str], path: Path) -> None:
    """Copy all tensors of a file, which is reopened every few megabytes to release its memory.

    Raises:
        WeightsError: a tensor has an unsuitable type or holds NaN; or the file is damaged.
    """
    own = model.state_dict()
    remaining = list(reversed(names))
    while remaining:
        size = 0
        with open_tensors(path) as file:
            while remaining and size < _AT_ONCE:
                name = remaining.pop()
                tensor = file.get_tensor(name)
                fill({name: own[name]}, {name: tensor}, str(path))
                size += tensor.nbytes
        del tensor  # it keeps the file mapped


@contextlib.contextmanager
def stated_model(path: str | PurePath) -> Iterator[None]:
    """Report an invalid model file in a weights file's metadata as such.

    Raises:
        WeightsError: replaces ``ModelFileError``.
    """
    try:
        yield
    except ModelFileError as error:
        raise WeightsError(f"{path}: the model file in its metadata cannot be built: {error}") from error


def _classes_of(metadata: Mapping[str, str], path: Path) -> list[str]:
    try:
        names = json.loads(metadata["classes"])
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise WeightsError(f"{path}: its metadata is damaged: classes is not a list of names.")
    return names


def image_size_of(metadata: Mapping[str, str], model: DetectionModel, source: str) -> int:
    """Return the side of the square input, in pixels, in a detector's metadata.

    Raises:
        WeightsError: the model does not accept this size.
    """
    text = metadata.get("image_size", "")
    size = int(text) if text.isdecimal() and len(text) < 6 else 0
    problem = size_problem(size, model.stride)
    if problem is not None or size > LARGEST_SIZE:
        raise WeightsError(f"{source}: its metadata is damaged: image_size is {text[:40]!r}, which no such model takes.")
    return size


def _check_shapes(model: DetectionModel, shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Check that a file's tensors are those of the model, by name and shape.

    Raises:
        WeightsError: a tensor is missing, is unexpected, or has another shape.
    """
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = [name for name in own if name not in shapes]
    unexpected = [name for name in shapes if name not in own]
    reshaped = [name for name, shape in shapes.items() if name in own and own[name] != shape]
    of_classes = set(model.class_parameters())
    if reshaped and of_classes.issuperset(reshaped) and not missing and not unexpected:
        has = " or ".join(sorted({str(shapes[name][0]) if shapes[name] else "none" for name in reshaped}))
        raise WeightsError(
            f"{path}: its metadata is damaged: it names {model.num_classes} classes, but its tensors are for {has}."
        )
    if missing or unexpected or reshaped:
        found = [
            f"{len(names)} {kind} (such as {names[0]})"
            for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
            if names
        ]
        raise WeightsError(f"{path}: its tensors do not fit the model: {', '.join(found)}.")
