"""Definition of a layout, and the description of a file with a known layout."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nextdetr.errors import WeightsError
from nextdetr.models.detection import DetectionModel
from nextdetr.weights.layouts.sizes import size_name
from nextdetr.weights.licences import TEACHER, TEACHER_LICENCE, joined_licences, joined_teachers, with_owners
from nextdetr.weights.reader import WeightsFile

__all__ = ["Identity", "Layout", "Licence", "State", "always", "layout_table", "licence_of", "number_of", "teachers_of"]

State = Mapping[str, Tensor]
Config = Mapping[str, Any] | None
#: From the number of classes to the licence of the published weights, with a remark.
Licence = Callable[[int | None], tuple[str, tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class Layout:
    """How one program names and shapes weights.

    Attributes:
        kind: name, as shown by ``weights inspect``.
        is_backbone: whether it holds only a backbone.
        licence: licence of files that state none.
        eps: epsilon of its norms: BatchNorm's for a detector, LayerNorm's for a ConvNeXt; None for the model's own.
        matches: takes the names of the tensors and the metadata, and returns the prefix of all names, usually empty; None
            if the file has another layout.
        to_ours: takes tensors without that prefix, their target model (for detectors; may be on the meta device) and
            transformers' ``config.json``, and returns them under our names: a backbone's own, or the model's. Unknown names
            are kept, so that they are reported.
        rename: for a backbone, ``to_ours`` without arithmetic, to inspect names and shapes.
        shipped: takes the same tensors and config, and returns the shipped model with their backbone.
        backbone: for a detector, takes the names of its tensors, and returns the licence of the published weights that its
            backbone may have started from, with a remark; None if that adds nothing.
        notes: takes transformers' ``config.json`` and the target model, and returns a sentence for each reason why outputs
            will differ.
        stated: for a detector, takes the other contents of the file (``WeightsFile.extra``), and returns the text of the
            model file in it; None without one.
        types: types in a ``config.json`` of such files: transformers' ``model_type``, or a pattern of timm's
            ``architecture``. If a config.json states a model, layouts of other types are not tried.
    """

    kind: str
    is_backbone: bool
    licence: Licence
    eps: float | None
    matches: Callable[[Collection[str], Mapping[str, str]], str | None]
    to_ours: Callable[[State, DetectionModel | None, Config], dict[str, Tensor]]
    rename: Callable[[State], dict[str, Tensor]] = dict
    shipped: Callable[[State, Config], str | None] = lambda state, config: None
    backbone: Callable[[Collection[str]], tuple[str, str] | None] = lambda names: None
    notes: Callable[[Mapping[str, Any], DetectionModel], list[str]] = lambda settings, model: []
    stated: Callable[[Mapping[str, Any]], str | None] = lambda extra: None
    types: tuple[str, ...] = ()


#: Kinds of our own files.
OURS = frozenset({"nextdetr-backbone", "nextdetr-detector"})
_LARGEST = 1e30  # of a number in config.json
#: Licences that a model card or config.json may override.
_LEAVES_THE_CHOICE = frozenset({"unknown", "none", "Apache-2.0"})


def licence_of(file: WeightsFile, layout: Layout, classes: int | None) -> tuple[str, tuple[str, ...]]:
    """Return the licence of a file's weights, with a remark.

    The file's own statement is trusted. In our files it is about the weights that training started from, so what the model
    card of their owner states is kept beside it. Our list of published weights is trusted, too. For other files, a card, or
    timm's config.json, is trusted if the layout leaves the choice; a stricter licence of published weights is kept beside
    the card's, as cards of copies and fine-tuned models often differ from their source.
    """
    card, config = file.extra.get("card"), file.extra.get("config")
    listed = _text(card, "listed")
    own = file.metadata.get("weights_licence") or _text(file.extra.get("nextdetr"), "weights_licence")
    if own:
        return with_owners(own, listed or _text(card, "licence")) if layout.kind in OURS else (own, ())
    usual, remarks = layout.licence(classes)
    if listed is not None:
        return listed, ("the licence is the one that nextdetr weights list gives.",)
    of_timm = _text(config.get("pretrained_cfg"), "license") if isinstance(config, dict) else None
    stated, where = (of_timm, "config.json") if of_timm else (_text(card, "licence"), "model card")
    if stated is None or stated.lower() == usual.lower():
        return usual, remarks
    if usual in _LEAVES_THE_CHOICE:
        return stated, (f"the licence is the one that its {where} states.",)
    note = f"its {where} states {stated}; the licence of published weights of this kind, {usual}, is kept beside it."
    return joined_licences([stated, usual]), (*remarks, note)


def teachers_of(file: WeightsFile) -> dict[str, str]:
    """Return what a file that NextDETR wrote states about the teachers of its weights, see ``joined_teachers``."""
    ours = file.extra.get("nextdetr")
    stated: Mapping[Any, Any] = ours if TEACHER not in file.metadata and isinstance(ours, dict) else file.metadata
    return joined_teachers({key: str(stated[key]) for key in (TEACHER, TEACHER_LICENCE) if stated.get(key)})


def _text(entries: object, key: str) -> str | None:
    value = entries.get(key) if isinstance(entries, dict) else None
    return value[:100] if isinstance(value, str) and value else None


def number_of(settings: Mapping[str, Any], key: str, default: float) -> float:
    """Return a number in a ``config.json``; ``default`` without one.

    Raises:
        WeightsError: it is no number.
    """
    value = settings.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:  # NaN is not, either
        raise WeightsError(f"config.json says {key}: {str(value)[:40]}, which is no number; take its publisher's file.")
    return float(value)


def always(licence: str, *remarks: str) -> Licence:
    """Return the licence of weights that all have the same one."""
    return lambda classes: (licence, remarks)


class LayoutTable(dict[str, Layout]):
    """Layouts by their kind."""

    def __missing__(self, kind: str) -> Layout:
        raise WeightsError(f"there is no layout {kind!r}; there are {', '.join(self)}.")


def layout_table(*layouts: Layout) -> LayoutTable:
    """Return a table of layouts, in the order in which they are tried.

    Raises:
        ValueError: two have the same name.
    """
    table = LayoutTable()
    for layout in layouts:
        if layout.kind in table:
            raise ValueError(f"there are two layouts {layout.kind}")
        table[layout.kind] = layout
    return table


@dataclass(frozen=True, slots=True)
class Identity:
    """Description of a weights file.

    Attributes:
        kind: name of its layout.
        model: model that it fits: ``convnextv2-atto`` for a backbone, a shipped name for a detector; None if unknown.
        classes: class names, if the file states them.
        licence: licence of the weights, ``unknown`` if unknown.
        notes: sentences for the user.
        num_classes: width of the classifier, or classes of the detector; None if it has none.
        depths, dims: blocks and channels of a ConvNeXt's stages; empty for others.
        prefix: common prefix of all names.
        model_text: the model YAML, if the file holds it.
        without_labels: whether it was trained without labels only: a backbone (FCMAE), or a detector without classes.
        is_backbone: whether the file holds only a backbone.
        taught: entries of its metadata about teachers, see ``joined_teachers``.
    """

    kind: str
    model: str | None
    classes: list[str] | None = None
    licence: str = "unknown"
    notes: tuple[str, ...] = ()
    num_classes: int | None = None
    depths: tuple[int, ...] = ()
    dims: tuple[int, ...] = ()
    prefix: str = ""
    model_text: str | None = None
    without_labels: bool = False
    is_backbone: bool = False
    taught: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> str:
        """Size of a ConvNeXt for messages: ``atto``, or depths and widths."""
        return size_name(self.depths, self.dims)

    def to_json(self) -> dict[str, Any]:
        """Return the fields printed by ``nextdetr weights inspect --json``."""
        return {
            "kind": self.kind, "for_model": self.model, "classes": self.classes, "num_classes": self.num_classes,
            "weights_licence": self.licence, "notes": list(self.notes),
        }  # fmt: skip
