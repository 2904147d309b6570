"""Which validation of a run is its best, and when a run has stopped getting better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Best"]


@dataclass(slots=True)
class Best:
    """The best validation so far, by AP.

    An AP that is undefined, or zero, says nothing: it never stays the best over a later one, since later weights have
    learnt more, and patience does not run out while nothing has been found yet.

    Attributes:
        epoch: number of the epoch after which it was, from 1; -1 before the first.
        metrics: its COCO metrics, fractions 0 to 1, None where undefined.
        thresholds: confidence of the best F1 of each class there; none where nothing was found.
        stale: validations since then, once an AP was above 0.
    """

    epoch: int = -1
    metrics: dict[str, float | None] = field(default_factory=dict)
    stale: int = 0
    thresholds: list[float] = field(default_factory=list)

    @property
    def score(self) -> float:
        """AP, 0 where it is undefined."""
        return _score(self.metrics)

    def update(self, epoch: int, metrics: Mapping[str, float | None], thresholds: Sequence[float] = ()) -> bool:
        """Take in a validation.

        Args:
            epoch: number of the epoch after which it was, from 1.
            metrics: with ``AP``.
            thresholds: of each class.

        Returns:
            Whether it is the best so far.
        """
        if self.score > 0 and _score(metrics) <= self.score:
            self.stale += 1
            return False
        self.epoch, self.metrics, self.stale, self.thresholds = epoch, dict(metrics), 0, list(thresholds)
        return True

    def out_of_patience(self, patience: int | None) -> bool:
        """Whether ``patience`` validations in a row were no better; never with None."""
        return patience is not None and self.stale >= patience


def _score(metrics: Mapping[str, float | None]) -> float:
    score = metrics.get("AP")
    return score if score is not None and score > 0 else 0.0  # NaN is not above 0 either
