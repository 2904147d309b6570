"""What a layout of weights files is, and what is known of a file once its layout is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nextdetr.errors import WeightsError
from nextdetr.models.detection import DetectionModel
from nextdetr.weights.layouts.sizes import size_name
from nextdetr.weights.reader import WeightsFile

__all__ = ["Identity", "Layout", "Licence", "State", "always", "layout_table", "licence_of"]

State = Mapping[str, Tensor]
Config = Mapping[str, Any] | None
#: From the number of classes to the licence of the published weights, and what is to be said of it.
Licence = Callable[[int | None], tuple[str, tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class Layout:
    """How one program names and shapes weights.

    Attributes:
        kind: its name, as ``weights inspect`` shows it.
        is_backbone: whether it holds a backbone alone, and no detector.
        licence: of files that state none.
        eps: what its norms add to the variance: BatchNorm's of a detector, LayerNorm's of a ConvNeXt; None for the model's.
        matches: takes the names of the tensors and the metadata, and returns what stands before every name, mostly nothing;
            None if the file is of another layout.
        to_ours: takes tensors without that prefix, the model that they are for (of detectors; it may be on the meta device)
            and transformers' ``config.json``, and returns them under our names: a backbone's own, or the model's. A name
            that has no place there is kept, so that a report shows it.
        rename: of a backbone, ``to_ours`` without arithmetic, to look at names and shapes.
        shipped: takes the same tensors and config, and returns the name of the shipped model with their backbone.
        backbone: of a detector, takes the names of its tensors, and returns the licence of the published weights that its
            backbone may have started from, and what is to be said of it; None where that adds nothing.
        notes: takes transformers' ``config.json``, and returns a sentence for each thing by which outputs will differ.
        stated: of a detector, takes what else the file holds (``WeightsFile.extra``), and returns the text of the model
            file that is in it; None where there is none.
        types: what a ``config.json`` beside such files states: transformers' ``model_type``, or a pattern of timm's
            ``architecture``. Of a file whose config.json states a model, layouts of other types are not asked.
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
    notes: Callable[[Mapping[str, Any]], list[str]] = lambda settings: []
    stated: Callable[[Mapping[str, Any]], str | None] = lambda extra: None
    types: tuple[str, ...] = ()


#: Licences beside which that of a model card or a config.json may stand alone.
_LEAVES_THE_CHOICE = frozenset({"unknown", "none", "Apache-2.0"})


def licence_of(file: WeightsFile, layout: Layout, classes: int | None) -> tuple[str, tuple[str, ...]]:
    """Return the licence of a file's weights, and what is to be said of it.

    What the file itself states is believed, and so is our own list of published weights. A model card, or timm's
    config.json, is believed where the layout leaves the choice; a licence of published weights that asks for more than the
    card stays beside it, as cards of copies and of fine-tuned models often name another one than their source has.
    """
    own = file.metadata.get("weights_licence") or _text(file.extra.get("nextdetr"), "weights_licence")
    if own:
        return own, ()
    usual, remarks = layout.licence(classes)
    card, config = file.extra.get("card"), file.extra.get("config")
    listed = _text(card, "listed")
    if listed is not None:
        return listed, ("the licence is the one that nextdetr weights list gives.",)
    of_timm = _text(config.get("pretrained_cfg"), "license") if isinstance(config, dict) else None
    stated, where = (of_timm, "config.json") if of_timm else (_text(card, "licence"), "model card")
    if stated is None or stated.lower() == usual.lower():
        return usual, remarks
    if usual in _LEAVES_THE_CHOICE:
        return stated, (f"the licence is the one that its {where} states.",)
    note = f"its {where} states {stated}; the licence of published weights of this kind, {usual}, is kept beside it."
    return f"{stated} and {usual}", (*remarks, note)


def _text(entries: object, key: str) -> str | None:
    value = entries.get(key) if isinstance(entries, dict) else None
    return value[:100] if isinstance(value, str) and value else None


def always(licence: str, *remarks: str) -> Licence:
    """Return the licence of weights that all have the same one."""
    return lambda classes: (licence, remarks)


class LayoutTable(dict[str, Layout]):
    """Layouts by their kind."""

    def __missing__(self, kind: str) -> Layout:
        raise WeightsError(f"there is no layout {kind!r}; there are {', '.join(self)}.")


def layout_table(*layouts: Layout) -> LayoutTable:
    """Return a table of layouts, in the order in which a file is compared with them.

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
    """What a weights file is.

    Attributes:
        kind: of its layout.
        model: the model that it fits: ``convnextv2-atto`` for a backbone, a shipped name for a detector; None if unknown.
        classes: class names, if the file states them.
        licence: of the weights, ``unknown`` if nothing is known of it.
        notes: sentences for the user.
        num_classes: width of the classifier, or classes of the detector; None if it has none.
        depths, dims: blocks and channels of a ConvNeXt's stages; empty for others.
        prefix: what stands before every name.
        model_text: the model YAML, if the file holds it.
        without_labels: whether a backbone has learnt from images alone so far (FCMAE), or a detector that knows no classes.
        is_backbone: whether the file holds a backbone alone.
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

    @property
    def size(self) -> str:
        """Size of a ConvNeXt as a sentence names it: ``atto``, or depths and widths."""
        return size_name(self.depths, self.dims)

    def to_json(self) -> dict[str, Any]:
        """Return the fields that ``nextdetr weights inspect --json`` prints."""
        return {
            "kind": self.kind, "for_model": self.model, "classes": self.classes, "num_classes": self.num_classes,
            "weights_licence": self.licence, "notes": list(self.notes),
        }  # fmt: skip
