"""What settings of a detector take: a few are measured, the others estimated from these."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nextdetr.errors import ConfigError
from nextdetr.inference.speed import Setting, SpeedPoint, choose, read_points, read_table

if TYPE_CHECKING:
    from nextdetr.weights.checkpoint import OpenedModel

__all__ = ["Meter", "Times", "model_digest", "pick", "retimed"]

#: Measures a setting of a detector.
Meter: TypeAlias = "Callable[[OpenedModel, Setting], SpeedPoint]"

# Shares of the time as they are expected until enough is measured: a call, pixels, attention among them, and for each layer
# the layer itself, its queries and what it does to the pixels.
EXPECTED = (1.0, 6.0, 0.3, 0.3, 0.3, 0.1)
TRUST = 0.1  # in these, beside a measurement's
REACH = 0.3  # how far a measurement corrects what is estimated around it


class Times:
    """Times of settings on one machine.

    Args:
        known: points that were measured.
        meter: measures further ones; without it they are estimated.

    Attributes:
        known: the measured points, by setting.
        seconds: what a measurement took at most.
    """

    def __init__(self, known: Iterable[SpeedPoint] = (), meter: Meter | None = None) -> None:
        self.known = {point.setting: point for point in known}
        self.meter, self.seconds = meter, 0.0

    def measure(self, opened: OpenedModel, setting: Setting) -> SpeedPoint:
        """Measure a setting, or return what is known of it where nothing can be measured."""
        if self.meter is None:
            return self.at(setting)
        started = time.perf_counter()
        self.known[setting] = self.meter(opened, setting)
        self.seconds = max(self.seconds, time.perf_counter() - started)
        return self.known[setting]

    def at(self, setting: Setting) -> SpeedPoint:
        """Return a setting with its measured time, or the one that is estimated from all that were measured."""
        if setting in self.known:
            return self.known[setting]
        near = min(self.known.values(), key=lambda point: _distance(point.setting, setting))
        latency = self._estimate(setting)
        return replace(near, **setting._asdict(), latency_ms=latency, AP=None, measured=False)

    def _estimate(self, setting: Setting) -> float:
        """Sum of what pixels, queries and layers take, none below zero, corrected by the measurements nearby."""
        from scipy.optimize import nnls

        rows = np.array([_parts(known) for known in self.known])
        taken = np.array([point.latency_ms for point in self.known.values()])
        expected = np.array(EXPECTED) * np.exp(np.log(taken / (rows @ np.array(EXPECTED))).mean())
        matrix = np.vstack((rows / taken[:, None], TRUST * np.diag(1 / expected)))
        weights = nnls(matrix, np.concatenate((np.ones(len(taken)), np.full(len(expected), TRUST))))[0]
        near = np.array([1 / (_distance(known, setting) + 1e-6) for known in self.known])
        errors = np.log(taken / (rows @ weights))
        return float(_parts(setting) @ weights * math.exp(near @ errors / (near.sum() + 1 / REACH)))


def _parts(setting: Setting) -> NDArray[Any]:
    pixels, queries = (setting.image_size / 640) ** 2, setting.queries / 300
    return np.array([1.0, pixels, pixels**2, setting.layers, setting.layers * queries, setting.layers * pixels])


def _distance(one: Setting, other: Setting) -> float:
    """How unlike the times of two settings may be."""
    size, queries = (math.log(one[i] / other[i]) for i in (0, 1))
    return math.hypot(2 * size, 0.3 * queries, 0.15 * (one.layers - other.layers))


def pick(metadata: Mapping[str, str], latency: float, source: str, times: str | Path | None = None) -> SpeedPoint:
    """Return the point of a detector for a latency: for that of its training the one that was chosen there.

    Args:
        metadata: of its file.
        latency: milliseconds.
        source: the file, for messages.
        times: a file of ``nextdetr benchmark`` with the times of another machine; by default those of the table count.

    Raises:
        ConfigError: the detector has no table, or no point that is that fast: the message says what is possible; or the
            times are those of another model.
        WeightsError: the table is damaged.
    """
    table = read_table(metadata, source)
    if table is None:
        raise ConfigError(
            f"{source}: it has no table of speeds to pick from; train it with --latency, or choose --image-size, --queries "
            "and --decoder-layers yourself."
        )
    if times is None and table.chosen is not None and latency == table.asked_ms:
        return table.chosen  # measured, while a point that looks better may be estimated, if the training had no time left
    own = model_digest(metadata["model"]) if "model" in metadata else None  # an exported file does not say
    points = table.points if times is None else retimed(table.points, read_points(times, own))
    chosen = choose(points, latency)
    if chosen is None:
        fastest = min(points, key=lambda p: p.latency_ms)
        raise ConfigError(f"{source}: nothing of it takes at most {latency:g} ms; the fastest takes {fastest.text}.")
    return chosen


def retimed(points: Sequence[SpeedPoint], times: Sequence[SpeedPoint]) -> list[SpeedPoint]:
    """Return the points with the times of another machine: its own where it measured them, else estimated from those."""
    known = Times(times)
    return [replace(known.at(point.setting), AP=point.AP) for point in points]


def model_digest(text: str) -> str:
    """Return a digest that identifies a model file; for a checkpoint, from its model's text."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
