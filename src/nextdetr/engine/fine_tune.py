"""How a run starts from a trained detector: which classes it knows, and the rates, length and freezing that follow.

``plan_fine_tuning`` makes all of these decisions; the recipe applies them to settings that the user leaves open. There are
three cases. A detector of other classes trains at the usual rate: on BCCD, a quarter of it (and a tenth of that for the
backbone) ended below random weights, the full rate well above (docs/experiments.md). D-FINE's configurations for custom
data also keep their rates. A detector that knows all classes only adapts to other images. One that was trained without
labels (``pretrain --detector``) trains as from random weights. Large backbones get a lower rate, as in their authors'
configurations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextdetr.config import TrainConfig
from nextdetr.data.raw import plural
from nextdetr.data.records import ImageRecord
from nextdetr.data.seen import seen_by, trained_on
from nextdetr.errors import WeightsError
from nextdetr.files import is_local
from nextdetr.models.modelfile import ModelFile, available_models, load_model_file, parse_model_text
from nextdetr.weights.checkpoint import stated_model
from nextdetr.weights.layouts.classes import match_classes
from nextdetr.weights.layouts.table import Identity
from nextdetr.weights.load import find_weights, open_weights
from nextdetr.weights.published import find_published
from nextdetr.weights.start import resolve_model
from nextdetr.weights.tensorfile import read_metadata

__all__ = [
    "FineTuning", "backbone_source", "has_own_backbone", "plan_fine_tuning", "seen_by_weights", "seen_in_val",
    "start_weights", "trained_before", "with_model_of_weights",
]  # fmt: skip

GENTLE = 0.25  # of the usual rate, where all classes are known; not measured
PASSES_NEW, PASSES_KNOWN = 10_000, 5_000  # images shown; not measured
# The backbone's rate relative to the head's in the authors' training configurations of D-FINE and DEIM (RT-DETR: a tenth).
# DEIMv2 has the same kind of backbone and gets D-FINE's factor.
AUTHORS = {
    f"{family}-{size}": factor
    for family in ("dfine", "deim")
    for size, factor in (("n", 0.5), ("s", 0.5), ("m", 0.1), ("l", 0.05), ("x", 0.01))
} | {f"deimv2-{size}": 0.5 for size in ("atto", "femto", "pico", "n")}
SMALL = ("zepto", "atto", "femto", "pico", "nano")  # ConvNeXt V2 that learn at the head's rate; zepto was measured
OF_OTHERS = 0.1
# Their authors freeze the backbone's BatchNorms.
FROZEN_NORMS = frozenset(("rtdetr-r50vd", "rtdetr-r101vd", "dfine-l", "dfine-x", "deim-l", "deim-x"))


@dataclass(frozen=True, slots=True)
class FineTuning:
    """Consequences of starting from a trained detector.

    Attributes:
        reason: explanation in one line.
        knows_all: whether every class is carried over, with the backbone that recognises it.
        backbone_factor: learning rate of the backbone as a factor of the head's, if it has no weights of its own.
        freeze_norms: whether the backbone's BatchNorms are frozen.
        passes: images shown in total if the user gives no length.
        model: shipped model that the weights fit, if any.
        without_labels: whether the weights were trained without labels (``pretrain --detector``).
        image_size: side of the square input, pixels, unless another is chosen; None if unknown.
        size_is_trained: whether our own training chose it; otherwise it is the model file's.
    """

    reason: str
    knows_all: bool
    backbone_factor: float
    freeze_norms: bool
    passes: int
    model: str | None = None
    without_labels: bool = False
    image_size: int | None = None
    size_is_trained: bool = True


def plan_fine_tuning(classes: Sequence[str], weights: Identity, model: str, *, own_backbone: bool = True) -> FineTuning:
    """Decide how to start from a detector.

    Args:
        classes: classes of the data.
        weights: description of the file; unnamed classes, as many as the data's, are assumed to be the data's.
        model: model of the run, a shipped name or a file.
        own_backbone: whether the backbone is the weights', too; see :func:`has_own_backbone`.
    """
    if weights.without_labels:
        reason = "start: pre-trained without labels; each class starts as any object; otherwise as from random weights"
        return FineTuning(reason, False, 1.0, False, PASSES_NEW, weights.model, without_labels=True)
    if weights.classes is None:
        carried = list(classes) if weights.num_classes == len(classes) else []
        how = "taken over in their order, as the file does not name them"
    else:
        carried = [classes[new] for new, _ in match_classes(weights.classes, classes)]
        how = "carried over by name"
    complete = len(carried) == len(classes)
    knows_all = complete and own_backbone
    names = ", ".join(carried[:5]) + (", …" if len(carried) > 5 else "")
    shown = f" ({names})" if carried and not complete else ""
    what = "the backbone is another one, and learns" if complete else "the others learn"
    rest = "a gentle rate" if knows_all else f"{what} at the rate of a new detector"
    reason = f"start: {len(carried)} of {len(classes)} classes {how}{shown}; {rest}"
    known = weights.model or model
    small = 1.0 if weights.size in SMALL else OF_OTHERS
    factor = OF_OTHERS if knows_all else AUTHORS.get(known, small)
    passes = PASSES_KNOWN if knows_all else PASSES_NEW
    if not own_backbone:
        return FineTuning(reason, knows_all, 1.0, False, passes, weights.model)
    return FineTuning(reason, knows_all, factor, known in FROZEN_NORMS, passes, weights.model)


def has_own_backbone(config: TrainConfig, weights: Identity) -> bool:
    """Whether a run has the backbone of its detector weights; otherwise only their head is loaded.

    Args:
        config: with ``weights``, and perhaps ``backbone_weights`` or a model with another backbone.
        weights: description of the file.
    """
    if backbone_source(config) is not None:
        return False
    named = config.model in available_models() or config.model.endswith((".yaml", ".yml"))
    if "model" not in config.model_fields_set or not named or (weights.model is None and weights.model_text is None):
        return True
    if weights.model is not None:
        theirs = load_model_file(weights.model)
    else:
        assert weights.model_text is not None
        with stated_model(config.weights or ""):
            theirs = parse_model_text(weights.model_text, "the file")
    return _backbone_rows(load_model_file(config.model)) == _backbone_rows(theirs)


def backbone_source(config: TrainConfig) -> str | Path | None:
    """Return the backbone weights that a run starts from: those given, or those that its model file names.

    None without any; weights that are named but missing are reported where the model is built.
    """
    if config.backbone_weights is not None or config.model in available_models():
        return config.backbone_weights
    model = str(resolve_model(config.model))
    if model.endswith(".safetensors"):  # a checkpoint has its own
        return None
    file = load_model_file(model)
    name = next((value for value in file.rows[0].arguments if isinstance(value, str)), "")
    path = Path(file.source).parent / name
    return path if name.strip() and path.exists() else None


def _backbone_rows(file: ModelFile) -> list[tuple[Any, ...]]:
    """Return what the backbone of a model file computes, without the names of weights."""
    rows = file.rows[: len(file.mapping["backbone"])]
    return [(row.name, row.repeats, *(value for value in row.arguments if not isinstance(value, str))) for row in rows]


def with_model_of_weights(config: TrainConfig, *, fetch: bool = False) -> TrainConfig:
    """Return the settings with the model of a detector's weights, if only their file has it and the user names none.

    The file is then the model to start from. A shipped model is chosen by its name, in the recipe; with weights for the
    backbone, their size chooses the model.

    Args:
        config: the settings.
        fetch: also for weights by name, which are downloaded unless cached.
    """
    weights = config.weights
    if weights is None or "model" in config.model_fields_set or config.backbone_weights is not None:
        return config
    local = is_local(weights)
    if not (local or fetch):
        return config
    identity = open_weights(weights)[1]
    if identity.kind != "nextdetr-detector" or identity.model is not None or identity.model_text is None:
        return config
    try:
        model = str(resolve_model(find_weights(weights).path))
    except WeightsError:  # in a folder, under a name that no model has
        return config
    # A name also gives the licence of its model card.
    return config.model_copy(update={"model": model, "weights": None if local else weights})


def start_weights(config: TrainConfig) -> str | Path | None:
    """Return the detector weights that a run starts from: those given, or its model's own; None without any."""
    if config.weights is not None or config.model in available_models():
        return config.weights
    model = str(resolve_model(config.model))
    return model if model.endswith(".safetensors") else None


def trained_before(config: TrainConfig, written: Path) -> frozenset[bytes] | None:
    """Return which images a run's weights were trained on before it starts, or continues with the file ``written``.

    None if that is not known: the weights are a detector that is not published, and its file does not say.
    """
    if config.resume is not None and written.is_file():
        return trained_on(read_metadata(written))
    return seen_by_weights(start_weights(config), backbone_source(config))


def seen_by_weights(*sources: str | Path | None) -> frozenset[bytes] | None:
    """Return which images weights were trained on with labels, those of all ``sources`` together.

    None if that is not known: one of them is a detector that is not published, and its file does not say.
    """
    known: frozenset[bytes] = frozenset()
    for weights in sources:
        if weights is None or (not is_local(weights) and find_published(Path(weights).as_posix()) is not None):
            continue
        file, identity = open_weights(weights)
        if not (identity.is_backbone or identity.without_labels):
            found = trained_on(file.metadata)
            if found is None:
                return None
            known |= found
    return known


def seen_in_val(val: Sequence[ImageRecord], known: Mapping[str, frozenset[bytes] | None]) -> list[str]:
    """Return a sentence for each detector that was trained on images of ``val``, as far as its file says.

    Args:
        val: the images.
        known: by description of a detector, the images that it was trained on (see ``trained_on``); None if unknown.
    """
    detectors = {who: images for who, images in known.items() if images}
    if not detectors:
        return []
    lines = []
    for who, seen in zip(detectors, zip(*seen_by(val, list(detectors.values())), strict=True), strict=False):
        count = sum(seen)
        if count:
            shown = f"{count:,} of the {plural(len(val), 'image')}"
            lines.append(f"note: {who} was trained on {shown} of val, so scores on val say little about new images")
    return lines
