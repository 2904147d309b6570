"""How long a run takes on a machine, and how long it should be; part of the recipe, see ``engine/recipe.py``."""

from __future__ import annotations

import math

from nextdetr.data.raw import plural
from nextdetr.engine.fine_tune import PASSES_KNOWN
from nextdetr.engine.recipe_plan import SIZES, Plan

__all__ = [
    "COST", "EPOCHS", "LONGEST", "PASSES", "affordable_size", "choose_length", "expected_epochs", "seconds_an_image",
]  # fmt: skip

# Cost of a training step by size of the family, relative to atto's (by GFLOP; p2 and zepto are measured).
COST = {
    "nextdetr-zepto": 0.37, "nextdetr-zepto-p2": 0.45, "nextdetr-atto-p2": 1.45, "nextdetr-atto": 1.0,
    "nextdetr-femto": 1.3, "nextdetr-pico": 2.0, "nextdetr-nano": 3.0,
    "nextdetr-tiny": 6.0, "nextdetr-base": 15.0, "nextdetr-large": 30.0, "nextdetr-huge": 90.0,
}  # fmt: skip
PASSES = 15_000  # images shown in a run from random weights; 73 epochs of BCCD, close to RT-DETR's 72
PASSES_LEAST = 9_000  # images that fit into the given minutes before a larger size is chosen; BCCD had 8,600 in 24 minutes
EPOCHS = (24, 300)
SECONDS_AN_IMAGE = 0.145  # atto at 320 px on two threads, measured
GFLOP = 3.0  # of atto's forward pass at 320 px
FORWARDS = 4  # cost of a step in forward passes, about: forward, backward (twice that), losses and optimizer
LONGEST = 180.0  # minutes; a longer run on a CPU gets a time budget instead of epochs


def affordable_size(plan: Plan) -> int:
    """Largest input size at which the given minutes show enough images on a CPU, pixels; SIZES[1] if unlimited."""
    seconds = seconds_an_image(plan, SIZES[0])
    if seconds is None or plan.config.minutes is None:
        return SIZES[1]
    side = SIZES[0] * math.sqrt(60 * plan.config.minutes / (PASSES_LEAST * seconds))
    return min(SIZES[1], max(SIZES[0], 32 * math.floor(side / 32)))


def choose_length(plan: Plan) -> None:
    """Choose epochs, or minutes where these would take too long on a CPU."""
    if not plan.open("epochs", "minutes"):
        return
    from_detector = PASSES_KNOWN if plan.tuning is None else plan.tuning.passes
    passes = from_detector if plan.trained else PASSES
    epochs = min(max(round(passes / max(1, plan.data.images)), EPOCHS[0]), EPOCHS[1])
    seconds = seconds_an_image(plan, plan.size)
    if seconds is None:
        plan.choose(f"{plural(epochs * plan.data.images, 'image')} shown in all", epochs=epochs)
        return
    minutes = epochs * plan.data.images * seconds / 60
    if minutes > LONGEST:
        plan.choose(f"{epochs} epochs would take some {minutes / 60:.0f} hours on this processor", minutes=LONGEST)
    else:
        shown = f"{plural(epochs * plan.data.images, 'image')} shown in all"
        plan.choose(f"{shown}, some {plural(max(1, round(minutes)), 'minute')}", epochs=epochs)


def seconds_an_image(plan: Plan, image_size: int) -> float | None:
    """Seconds per image in training on a CPU, relative to atto; None on a GPU (fast enough), or if the cost is unknown."""
    cost = _cost(plan)
    if plan.machine.device != "cpu" or cost is None:
        return None
    area = (image_size / SIZES[0]) ** 2
    teacher = (plan.teacher_gflop or 0.0) * plan.config.teacher_until / (GFLOP * FORWARDS)
    return SECONDS_AN_IMAGE * (cost + teacher) * area * 2 / plan.machine.threads


def _cost(plan: Plan) -> float | None:
    """Return the cost of a training step relative to atto's: from the table, else by GFLOP."""
    known = COST.get(plan.shipped)
    return plan.gflop / GFLOP if known is None and plan.gflop is not None else known


def expected_epochs(plan: Plan) -> float:
    """Epochs of the run; with --minutes, as far as the time per image is known."""
    if plan.get("epochs") is not None:
        return float(plan.get("epochs"))
    seconds = seconds_an_image(plan, plan.size)
    if plan.get("minutes") is None or seconds is None:
        return math.inf
    return float(60 * plan.get("minutes") / (seconds * max(1, plan.data.images)))
