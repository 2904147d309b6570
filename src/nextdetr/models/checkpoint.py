"""The detector file: safetensors whose metadata holds all that is needed to build and use the detector again.

Tensor names are those of ``DetectionModel.state_dict()``; the metadata's keys are fixed (INTERFACES, "Files of a run").
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nextdetr.errors import ModelFileError, WeightsError
from nextdetr.files import atomic_write
from nextdetr.models.detection import DetectionModel
from nextdetr.models.graph import BackboneLoader, build_model, load_model_file, parse_model_text, skip_backbone

__all__ = [
    "FORMAT_VERSION",
    "OpenedModel",
    "load_weights",
    "open_model",
    "read_detector_file",
    "read_detector_metadata",
    "save_detector",
]

FORMAT_VERSION = "1"


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A detector with what is known of it.

    Attributes:
        model: the network, in evaluation mode.
        classes: C names, in the order of the model's indices.
        image_size: side of the square input in pixels.
        source: what the user named.
        metadata: the file's metadata, all strings; without ``classes`` for a model that has not been trained.
    """

    model: DetectionModel
    classes: list[str]
    image_size: int
    source: str
    metadata: dict[str, str]

    @property
    def trained(self) -> bool:
        """Whether weights came from a checkpoint."""
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
) -> Path:
    """Write a detector file, whole or not at all.

    Args:
        path: target, ``*.safetensors``.
        state: ``DetectionModel.state_dict()``, of any device.
        model_text: text of the model YAML.
        classes: class names in the order of the indices.
        image_size: side of the square input in pixels.
        metrics: COCO metrics of these weights, if known.
        weights_licence: licence of the weights that training started from.
        source_weights: file that training started from.
        data: name of the data set that it was trained on.
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
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    return Path(path)


def read_detector_file(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a detector file.

    Raises:
        WeightsError: the file is missing, damaged, or not a NextDETR detector.
    """
    metadata = read_detector_metadata(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error}); is it complete?") from error


def read_detector_metadata(path: str | Path) -> dict[str, str]:
    """Return the metadata of a detector file, without reading its tensors.

    Raises:
        WeightsError: the file is missing, damaged, or not a NextDETR detector.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; give a checkpoint (*.safetensors) that nextdetr train wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error}); is it complete?") from error
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
        source: what the user named.
        num_classes: number of classes for a model file; a checkpoint has its own.
        load_backbone: see ``build_model``; a checkpoint has its backbone's weights itself.

    Raises:
        ModelFileError: neither a shipped name nor a readable model file.
        WeightsError: a checkpoint that cannot be read or does not fit its own model.
    """
    if str(source).endswith(".safetensors"):
        return _open_checkpoint(Path(source))
    model = build_model(load_model_file(source), num_classes=num_classes, load_backbone=load_backbone)
    names = [f"class_{index}" for index in range(model.num_classes)]
    return OpenedModel(model.eval(), names, model.image_size, str(source), {})


def _open_checkpoint(path: Path) -> OpenedModel:
    tensors, metadata = read_detector_file(path)
    try:
        classes = [str(name) for name in json.loads(metadata["classes"])]
        image_size = int(metadata["image_size"])
        file = parse_model_text(metadata["model"], str(path))
        model = build_model(file, num_classes=len(classes), load_backbone=skip_backbone)
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path}: its metadata is damaged ({error}).") from error
    except ModelFileError as error:
        raise WeightsError(f"{path}: the model file in its metadata cannot be built: {error}") from error
    load_weights(model, tensors, str(path))
    return OpenedModel(model.eval(), classes, image_size, str(path), metadata)


def load_weights(model: DetectionModel, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load all tensors of ``model``, by name.

    Raises:
        WeightsError: a tensor is missing, is unexpected, or has another shape.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in tensors]
    unexpected = [name for name in tensors if name not in own]
    reshaped = [name for name, tensor in tensors.items() if name in own and own[name].shape != tensor.shape]
    if missing or unexpected or reshaped:
        found = [
            f"{len(names)} {kind} (such as {names[0]})"
            for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
            if names
        ]
        raise WeightsError(f"{source}: its tensors do not fit the model: {', '.join(found)}.")
    model.load_state_dict(dict(tensors))
