"""The best validation of a run, and early stopping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator

from nextdetr.confidence import Thresholds

__all__ = ["Best", "StoredThresholds", "luck"]

FEW, LUCK = 50, 0.1


def luck(images: int) -> float:
    """Return by how much the AP of a run's best validation is too high because it is the best of many.

    With few images of ``val``, the highest of some hundred scores is mostly lucky. The weights of the end, whose learning
    rate has fallen and which have seen more augmented images, are then worth more, unless they are clearly worse. A
    bootstrap over images gave a standard error of 0.024 for the difference of two weights of a run on 9 images;
    this is 1.4 of it. See ``docs/experiments.md``; the one-standard-error rule is Breiman's (CART, section 3.4.3).

    Args:
        images: number of images of ``val``; from 50 on the highest AP decides, and this is 0.
    """
    return LUCK / math.sqrt(images) if 0 < images < FEW else 0.0


def _with_f1(stored: Any) -> Any:
    """Take the list of values that the state of an earlier version has."""
    return {"values": stored} if isinstance(stored, list) else stored


#: Thresholds in the state of a run.
StoredThresholds: TypeAlias = Annotated[Thresholds, BeforeValidator(_with_f1)]


@dataclass(slots=True)
class Best:
    """The best validation so far, by AP; at the end of a run the last one, unless it is clearly worse.

    A zero or undefined AP never counts as the best: a later validation replaces it, and patience does not run out before
    anything has been found.

    Attributes:
        epoch: epoch that it followed, from 1; -1 before the first validation.
        metrics: its COCO metrics, fractions 0 to 1, None where undefined.
        thresholds: confidence with the best F1, per class.
        stale: validations since then, counted once an AP was above 0.
    """

    epoch: int = -1
    metrics: dict[str, float | None] = field(default_factory=dict)
    stale: int = 0
    thresholds: StoredThresholds = field(default_factory=Thresholds)

    @property
    def score(self) -> float:
        """AP, 0 where it is undefined."""
        return _score(self.metrics)

    def update(self, epoch: int, metrics: Mapping[str, float | None], thresholds: Thresholds | None = None) -> bool:
        """Record a validation.

        Args:
            epoch: epoch that it followed, from 1.
            metrics: with ``AP``.
            thresholds: per class.

        Returns:
            Whether it is the best so far.
        """
        if self.score > 0 and _score(metrics) <= self.score:
            self.stale += 1
            return False
        self._take(epoch, metrics, thresholds)
        return True

    def settle(
        self, epoch: int, metrics: Mapping[str, float | None], thresholds: Thresholds | None, images: int
    ) -> str | None:
        """At the end of a run, take its last validation instead if ``images`` of ``val`` cannot tell that it is worse.

        Returns:
            A sentence for the user; None if the best stays.
        """
        before, last = self.score, _score(metrics)
        if epoch == self.epoch or not (last > 0 and last > before - luck(images)):
            return None
        self._take(epoch, metrics, thresholds)
        return (
            f"{images} images of val cannot tell an AP of {last:.4f} from the run's highest, {before:.4f}: the last "
            "weights count as the best."
        )

    def _take(self, epoch: int, metrics: Mapping[str, float | None], thresholds: Thresholds | None) -> None:
        self.epoch, self.metrics, self.stale, self.thresholds = epoch, dict(metrics), 0, thresholds or Thresholds()

    def out_of_patience(self, patience: int | None) -> bool:
        """Whether ``patience`` validations in a row brought no improvement; always False if it is None."""
        return patience is not None and self.stale >= patience


def _score(metrics: Mapping[str, float | None]) -> float:
    score = metrics.get("AP")
    return score if score is not None and score > 0 else 0.0  # NaN is not above 0 either
