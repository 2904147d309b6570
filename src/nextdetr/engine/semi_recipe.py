"""Additions to the recipe for unlabelled images; see ``engine/recipe.py``."""

from __future__ import annotations

from typing import Any

from nextdetr.config import TrainConfig
from nextdetr.engine.fine_tune import FineTuning
from nextdetr.engine.recipe_length import EPOCHS, LONGEST, PASSES
from nextdetr.engine.recipe_plan import Recipe
from nextdetr.errors import ConfigError

__all__ = ["with_unlabelled"]

# Fraction of the run after which they join if the averaged weights are the teacher: halfway through, these have little more
# than half of their final AP, and gain the rest while the rate falls (docs/experiments.md).
JOIN = 0.6


def with_unlabelled(
    recipe: Recipe, given: TrainConfig, labelled: int, unlabelled: int, tuning: FineTuning | None = None
) -> Recipe:
    """Choose how the unlabelled images are used, where the user leaves it open.

    Args:
        recipe: recipe for the labelled images.
        given: settings given by the user.
        labelled: number of labelled images.
        unlabelled: number of unlabelled images; with none, the recipe is unchanged.
        tuning: consequences of the detector to start from; None without one.

    Raises:
        ConfigError: no labelled image would be left in a step.
    """
    if not unlabelled:
        return recipe
    config, reasons, chosen = recipe.config, list(recipe.reasons), dict(recipe.chosen)

    def choose(reason: str, **values: Any) -> None:
        fresh = {name: value for name, value in values.items() if getattr(given, name) is None}
        if fresh:
            chosen.update(fresh)
            shown = " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in fresh.items())
            reasons.append(f"{shown}: {reason}")

    if given.teacher is not None or (tuning is not None and tuning.knows_all):
        who = "the detector that is started from" if given.teacher is None else "the teacher"
        choose(f"{who} knows its classes from the start", unlabelled_from=0.0)
    else:
        choose(
            "first the labels alone, or the averaged weights would have little to teach",
            unlabelled_from=JOIN * given.unlabelled_until,
        )
    choose(f"half of a step's {config.batch_size} images", unlabelled_batch=max(1, config.batch_size // 2))
    views = given.unlabelled_batch or chosen["unlabelled_batch"]
    if views >= config.batch_size:
        raise ConfigError(
            f"{views} of the {config.batch_size} images of a step and process would be unlabelled, and none labelled: give "
            f"--unlabelled-batch below --batch-size{', and at least 2 of the latter' if config.batch_size < 2 else ''}."
        )
    if "epochs" in recipe.chosen:  # the length of a run in which all images were labelled
        everything = labelled + unlabelled
        passes = PASSES if tuning is None or tuning.without_labels else tuning.passes  # as in choose_length
        shown = min(max(round(passes / everything), EPOCHS[0]), EPOCHS[1]) * everything
        epochs = max(chosen["epochs"], round(shown / labelled))
        reasons = [reason for reason in reasons if not reason.startswith("--epochs ")]  # of the labelled images alone
        minutes = 0.0 if recipe.seconds is None else epochs * labelled * recipe.seconds / 60
        why = f"as many steps as {everything:,} labelled images would have"
        if minutes > LONGEST:  # as without unlabelled images
            chosen["epochs"] = None
            choose(f"{epochs:,} epochs, {why}, would take some {minutes / 60:.0f} hours on this processor", minutes=LONGEST)
        else:
            choose(why, epochs=epochs)
    return Recipe(config.model_copy(update=chosen), reasons, chosen, recipe.seconds)
