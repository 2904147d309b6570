"""From a file's names to a model's: each layout by its own table, then row by row between model files that differ."""

from __future__ import annotations

import difflib
import re
import warnings
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nextdetr.errors import ModelFileError, WeightsError
from nextdetr.models.detection import DetectionModel
from nextdetr.models.graph import build_skeleton, load_model_file, parse_model_text
from nextdetr.weights.layouts.detector_identity import config_of
from nextdetr.weights.layouts.detectors import detector_notes, detector_to_ours
from nextdetr.weights.layouts.sizes import backbone_size, size_name
from nextdetr.weights.layouts.table import V1_NOTE, Identity, backbone_tensors
from nextdetr.weights.reader import WeightsFile

__all__ = ["Mapped", "to_model"]


@dataclass(slots=True)
class Mapped:
    """A file's tensors under the model's names.

    Attributes:
        tensors: name in the model -> tensor.
        unplaced: names in the file for which the model has no place.
        notes: sentences for the user.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    unplaced: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def to_model(model: DetectionModel, file: WeightsFile, identity: Identity, part: str, *, allow_partial: bool) -> Mapped:
    """Bring a file's tensors to the names of ``model``.

    Args:
        model: where they are to go.
        file: the file.
        identity: what it is.
        part: ``detector``, ``backbone`` or ``head``.
        allow_partial: accept a detector whose backbone is another one than the model's.

    Raises:
        WeightsError: the backbones differ, and the part includes the backbone.
    """
    if identity.is_backbone:
        return _backbone(model, file, identity)
    notes: list[str] = []
    if identity.kind == "nextdetr-detector":
        source, tensors = _own_source(model, file, identity), dict(file.tensors)
    else:
        source = _foreign_source(model, identity)
        config = config_of(file)
        notes = detector_notes(identity.kind, file.tensors, model, config)  # of the user's model: its epsilon counts
        with warnings.catch_warnings():  # notes go into the report, and there only
            warnings.simplefilter("ignore")
            tensors = detector_to_ours(identity.kind, file.tensors, source, config)
    same_backbone = _signature(source, backbone=True) == _signature(model, backbone=True)
    if not same_backbone and part != "head" and not (allow_partial and part == "detector"):
        raise WeightsError(_other_backbone(model, source, file, part))
    mapped = _aligned(tensors, source, model, same_backbone)
    mapped.notes += notes
    if not same_backbone and part != "backbone":
        mapped.notes.append(
            f"its backbone ({_backbone_name(source)}) is not the model's ({_backbone_name(model)}): left out."
        )
        if part == "head":  # not asked for, so not unexpected either
            limit = source.backbone_rows
            mapped.unplaced = [name for name in mapped.unplaced if not _is_row_below(name, limit)]
    return mapped


def _backbone(model: DetectionModel, file: WeightsFile, identity: Identity) -> Mapped:
    if not model.row_infos[0].name.startswith("convnextv2_"):
        raise WeightsError(
            f"{file.path}: a ConvNeXt V2 {identity.size} backbone, but the model's backbone is {_backbone_name(model)}."
        )
    state = model.backbone.state_dict()
    depths, dims = backbone_size(state)
    if (identity.depths, identity.dims) != (depths, dims):
        raise WeightsError(
            f"{file.path}: a ConvNeXt V2 of size {identity.size}, but the model's backbone is {size_name(depths, dims)}; "
            f"take a file of that size, or a model with the file's."
        )
    tensors = backbone_tensors(file, identity)
    notes = [note for note in identity.notes if note == V1_NOTE]
    placed = {f"rows.0.{name}": tensor for name, tensor in tensors.items() if name in state}
    return Mapped(placed, [name for name in tensors if name not in state], notes)


def _own_source(model: DetectionModel, file: WeightsFile, identity: Identity) -> DetectionModel:
    if identity.model_text is None or identity.model_text == model.text:
        return model
    try:
        return build_skeleton(parse_model_text(identity.model_text, "its model"), num_classes=identity.num_classes)
    except ModelFileError as error:
        raise WeightsError(f"{file.path}: the model file in its metadata cannot be built: {error}") from error


def _foreign_source(model: DetectionModel, identity: Identity) -> DetectionModel:
    if identity.model is None:
        return model
    file = load_model_file(identity.model)
    return model if file.text == model.text else build_skeleton(file, num_classes=identity.num_classes)


def _signature(model: DetectionModel, *, backbone: bool) -> list[tuple[Any, ...]]:
    """What must be equal for rows to compute the same: layer, repeats and arguments; a weights file is no such argument."""
    count = model.backbone_rows
    infos = model.row_infos[:count] if backbone else model.row_infos[count:]
    return [
        (info.name, info.repeats, tuple(repr(value) for value in info.arguments if not isinstance(value, str)))
        for info in infos
    ]


def _backbone_name(model: DetectionModel) -> str:
    infos = model.row_infos[: model.backbone_rows]
    return infos[0].name if len(infos) == 1 else f"{len(infos)} rows from {infos[0].name} on"


def _other_backbone(model: DetectionModel, source: DetectionModel, file: WeightsFile, part: str) -> str:
    ours, theirs = _backbone_name(model), _backbone_name(source)
    what = "the file is for another size: " if {ours[:10], theirs[:10]} == {"convnextv2"} else ""
    hint = (
        "take a file with the same backbone."
        if part == "backbone"
        else "load its encoder and decoder alone with --allow-partial, or together with --backbone-weights."
    )
    return f"{file.path}: {what}its backbone is {theirs}, and the model's is {ours}; {hint}"


def _aligned(tensors: dict[str, Tensor], source: DetectionModel, model: DetectionModel, same_backbone: bool) -> Mapped:
    """Renumber the rows of ``source`` as those of ``model``: a head's rows are matched in order by their layers' names."""
    if source is model:
        return Mapped(tensors)
    theirs, ours = source.backbone_rows, model.backbone_rows
    rows = {row: row for row in range(theirs)} if same_backbone else {}
    their_names = [info.name for info in source.row_infos[theirs:]]
    our_names = [info.name for info in model.row_infos[ours:]]
    for block in difflib.SequenceMatcher(a=their_names, b=our_names, autojunk=False).get_matching_blocks():
        rows |= {theirs + block.a + k: ours + block.b + k for k in range(block.size)}
    result = Mapped()
    for name, tensor in tensors.items():
        match = re.match(r"rows\.(\d+)\.", name)
        if match and int(match[1]) in rows:
            result.tensors[f"rows.{rows[int(match[1])]}.{name[match.end() :]}"] = tensor
        else:
            result.unplaced.append(name)
    return result


def _is_row_below(name: str, limit: int) -> bool:
    match = re.match(r"rows\.(\d+)\.", name)
    return match is not None and int(match[1]) < limit
