"""Map a file's names to a model's: each layout by its own table, then row by row between different model files."""

from __future__ import annotations

import difflib
import inspect
import warnings
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from nextdetr.errors import WeightsError
from nextdetr.models.detection import DetectionModel, RowInfo
from nextdetr.models.graph import build_skeleton, load_model_file, parse_model_text
from nextdetr.models.names import inside_row, row_name, row_of
from nextdetr.weights.checkpoint import stated_model
from nextdetr.weights.layouts.detectors import config_of, detector_notes, detector_to_ours
from nextdetr.weights.layouts.sizes import backbone_size, size_name
from nextdetr.weights.layouts.table import V1_NOTE, Identity, backbone_tensors
from nextdetr.weights.reader import WeightsFile

__all__ = ["Mapped", "to_model"]

# Properties of a decoder's tensors beyond their shapes; classes, queries, layers and dropout may differ.
_OF_DECODERS = frozenset(("hd", "ndp", "nh", "bins", "scale"))


@dataclass(slots=True)
class Mapped:
    """A file's tensors under the model's names.

    Attributes:
        tensors: name in the model -> tensor.
        unplaced: names in the file without a place in the model.
        notes: sentences for the user.
        modules: names of the file's rows, if they differ from the model's.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    unplaced: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    modules: dict[int, str] | None = None


def to_model(model: DetectionModel, file: WeightsFile, identity: Identity, part: str, *, allow_partial: bool) -> Mapped:
    """Convert a file's tensors to the names of ``model``.

    Args:
        model: target model.
        file: the file.
        identity: description of the file.
        part: ``detector``, ``backbone`` or ``head``.
        allow_partial: accept a detector whose backbone differs from the model's.

    Raises:
        WeightsError: the backbones differ, and the part includes the backbone; or the tensors cannot be converted.
    """
    if identity.is_backbone:
        return _backbone(model, file, identity)
    notes: list[str] = []
    if identity.kind == "nextdetr-detector":
        source, tensors = _own_source(model, file, identity), dict(file.tensors)
    else:
        source = _foreign_source(model, file, identity)
        config = config_of(file)
        try:
            notes = detector_notes(identity.kind, file.tensors, model, config)  # of the user's model: its epsilon counts
            with warnings.catch_warnings():  # notes go only into the report
                warnings.simplefilter("ignore")
                tensors = detector_to_ours(identity.kind, file.tensors, source, config)
        except WeightsError as error:
            raise WeightsError(f"{file.path}: {error}") from error
    same_backbone = _signature(source, backbone=True) == _signature(model, backbone=True)
    if not same_backbone and part != "head" and not (allow_partial and part == "detector"):
        raise WeightsError(_other_backbone(model, source, file, part))
    mapped = _aligned(tensors, source, model, same_backbone)
    mapped.notes += notes
    if not same_backbone and part != "backbone":
        mapped.notes.append(
            f"its backbone ({_backbone_name(source)}) is not the model's ({_backbone_name(model)}): left out."
        )
        if part == "head":  # not requested, so not unexpected either
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
    placed = {row_name(0, name): tensor for name, tensor in tensors.items() if name in state}
    return Mapped(placed, [name for name in tensors if name not in state], notes)


def _own_source(model: DetectionModel, file: WeightsFile, identity: Identity) -> DetectionModel:
    if identity.model_text is None or identity.model_text == model.text:
        return model
    with stated_model(file.path):
        return build_skeleton(
            parse_model_text(identity.model_text, "its model"), num_classes=identity.num_classes, tensors=len(file.tensors)
        )


def _foreign_source(model: DetectionModel, file: WeightsFile, identity: Identity) -> DetectionModel:
    if identity.model_text is not None:
        return _own_source(model, file, identity)
    if identity.model is None:
        return model
    shipped = load_model_file(identity.model)
    return model if shipped.text == model.text else build_skeleton(shipped, num_classes=identity.num_classes)


def _signature(model: DetectionModel, *, backbone: bool) -> list[tuple[Any, ...]]:
    """What must be equal for rows to compute the same on maps of the same scale: layer, repeats, strides and arguments.

    This excludes weights files, and the input channels of a head's row, which show in the shapes of its tensors.
    """
    count = model.backbone_rows
    rows = list(zip(model.row_infos, model.rows, strict=True))
    return [
        (
            info.name,
            info.repeats,
            info.strides,
            () if _has_levels(module) else info.strides_read,
            tuple(repr(value) for value in _settings(info, module, backbone) if not isinstance(value, str)),
        )
        for info, module in (rows[:count] if backbone else rows[count:])
    ]


def _settings(info: RowInfo, module: nn.Module, backbone: bool) -> list[Any]:
    if backbone:
        return info.arguments
    if not _has_levels(module):
        return info.arguments[1:]
    # A decoder's arguments by name, with defaults: files may write or omit them.
    parameters = inspect.signature(type(module)).parameters
    given = [value for value in info.arguments if not isinstance(value, dict)]
    options = next((value for value in info.arguments if isinstance(value, dict)), {})
    values = {name: parameter.default for name, parameter in parameters.items()}
    values |= dict(zip(parameters, given, strict=False)) | options
    return [(name, value) for name, value in sorted(values.items()) if name in _OF_DECODERS]


def _has_levels(module: nn.Module) -> bool:
    return hasattr(module, "level_parameters")


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
    """Renumber the rows of ``source`` as in ``model``: the head's rows are matched in order, by their computation."""
    if source is model:
        return Mapped(tensors)
    theirs, ours = source.backbone_rows, model.backbone_rows
    rows = {row: row for row in range(theirs)} if same_backbone else {}
    their_rows, our_rows = (_signature(one, backbone=False) for one in (source, model))
    for block in difflib.SequenceMatcher(a=their_rows, b=our_rows, autojunk=False).get_matching_blocks():
        rows |= {theirs + block.a + k: ours + block.b + k for k in range(block.size)}
    levels = {row: _levels(source, row, model, place) for row, place in rows.items() if _has_levels(source.rows[row])}
    result = Mapped(modules={k: info.name for k, info in enumerate(source.row_infos)})
    for name, tensor in tensors.items():
        row = row_of(name)
        inside = None if row is None or row not in rows else levels.get(row, {}).get(inside_row(name), inside_row(name))
        if row is not None and inside is not None:
            result.tensors[row_name(rows[row], inside)] = tensor
        else:
            result.unplaced.append(name)
    return result


def _levels(source: DetectionModel, row: int, model: DetectionModel, place: int) -> dict[str, str | None]:
    """Return the new name of a decoder's per-level tensor if its pyramid has other strides; None if it has no place."""
    theirs, ours = source.row_infos[row].strides_read, model.row_infos[place].strides_read
    parameters: dict[str, int | None] = source.rows[row].level_parameters()  # type: ignore[operator]
    if theirs == ours:
        return {}
    return {
        name: None
        if level is None or theirs[level] not in ours
        else name.replace(f".{level}.", f".{ours.index(theirs[level])}.", 1)
        for name, level in parameters.items()
    }


def _is_row_below(name: str, limit: int) -> bool:
    row = row_of(name)
    return row is not None and row < limit
