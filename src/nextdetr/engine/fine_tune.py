"""How a run starts from a trained detector: what it knows already, and what follows for rates, length and freezing.

``plan_fine_tuning`` is the only place that decides; the recipe fills in what the user leaves open. There are three cases. A
detector of other classes trains at the usual rate: at a quarter of it, and a tenth of that for the backbone, it ended below
random weights on BCCD, at the whole rate well above (docs/experiments.md). D-FINE's configurations for other data
keep its rates, too. One that knows all classes only has to adapt to other images. One that has seen no labels (``pretrain
--detector``) trains like one from random weights. Large backbones are slowed as their authors do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nextdetr.weights.layouts.classes import match_classes
from nextdetr.weights.layouts.table import Identity

__all__ = ["FineTuning", "plan_fine_tuning"]

GENTLE = 0.25  # of the usual rate, where all classes are known; not measured
PASSES_NEW, PASSES_KNOWN = 10_000, 5_000  # images shown; not measured
# The backbone's rate over the head's in the authors' training configurations of D-FINE and DEIM (RT-DETR: a tenth). DEIMv2
# has the same kind of backbone and gets D-FINE's factor.
AUTHORS = {
    f"{family}-{size}": factor
    for family in ("dfine", "deim")
    for size, factor in (("n", 0.5), ("s", 0.5), ("m", 0.1), ("l", 0.05), ("x", 0.01))
} | {f"deimv2-{size}": 0.5 for size in ("atto", "femto", "pico", "n")}
SMALL = ("zepto", "atto", "femto", "pico", "nano")  # ConvNeXt V2 that learn at the head's rate; zepto was measured
OF_OTHERS = 0.1
# Whose authors keep the backbone's BatchNorms as they are.
FROZEN_NORMS = frozenset(("rtdetr-r50vd", "rtdetr-r101vd", "dfine-l", "dfine-x", "deim-l", "deim-x"))


@dataclass(frozen=True, slots=True)
class FineTuning:
    """What follows from a trained detector.

    Attributes:
        reason: in a line.
        knows_all: whether every class is carried over.
        backbone_factor: the backbone's rate as a factor of the head's.
        freeze_norms: whether the backbone's BatchNorms stay as they are.
        passes: images shown in a run of no given length.
        model: shipped model that the weights fit, if any.
        without_labels: whether they have seen none (``pretrain --detector``): all of the task is yet to be learnt.
    """

    reason: str
    knows_all: bool
    backbone_factor: float
    freeze_norms: bool
    passes: int
    model: str | None = None
    without_labels: bool = False


def plan_fine_tuning(classes: Sequence[str], weights: Identity, model: str) -> FineTuning:
    """Say how to start from a detector.

    Args:
        classes: the data's.
        weights: what the file is; classes without names, as many as the data's, are taken to be these.
        model: what the run trains, a shipped name or a file.
    """
    if weights.without_labels:
        reason = "start: pre-trained without labels; each class starts as any object, and all learns as from random weights"
        return FineTuning(reason, False, 1.0, False, PASSES_NEW, weights.model, without_labels=True)
    if weights.classes is None:
        carried = list(classes) if weights.num_classes == len(classes) else []
        how = "taken over in their order, as the file does not name them"
    else:
        carried = [classes[new] for new, _ in match_classes(weights.classes, classes)]
        how = "carried over by name"
    knows_all = len(carried) == len(classes)
    names = ", ".join(carried[:5]) + (", …" if len(carried) > 5 else "")
    shown = f" ({names})" if carried and not knows_all else ""
    rest = "a gentle rate" if knows_all else "the others learn at the rate of a new detector"
    reason = f"start: {len(carried)} of {len(classes)} classes {how}{shown}; {rest}"
    known = weights.model or model
    small = 1.0 if weights.size in SMALL else OF_OTHERS
    factor = OF_OTHERS if knows_all else AUTHORS.get(known, small)
    passes = PASSES_KNOWN if knows_all else PASSES_NEW
    return FineTuning(reason, knows_all, factor, known in FROZEN_NORMS, passes, weights.model)
