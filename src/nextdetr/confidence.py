"""From which confidence on a detection counts: decided here for prediction, benchmarks, reports and servers; without torch.

A detector's file can hold a threshold for each class (metadata key ``thresholds``: a JSON object with ``values``, a list in
the order of the classes, and what they were chosen by). ``auto`` takes these where they are, and ``DEFAULT`` elsewhere.
``calibrated`` is the one threshold that ``nextdetr calibrate`` has bounded the missed objects with (key ``calibration``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from nextdetr.errors import ConfigError

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    from numpy.typing import NDArray

    #: One threshold for all classes, one for each, or one of the detector's own.
    Confidence: TypeAlias = float | Sequence[float] | NDArray[np.floating[Any]] | Literal["auto", "calibrated"]

__all__ = [
    "AUTO",
    "CALIBRATED",
    "CALIBRATION",
    "DEFAULT",
    "THRESHOLDS",
    "Calibrated",
    "least_scores",
    "named_thresholds",
    "read_calibrated",
    "read_thresholds",
    "thresholds_line",
    "thresholds_metadata",
    "thresholds_split",
]

AUTO: Literal["auto"] = "auto"
CALIBRATED: Literal["calibrated"] = "calibrated"
DEFAULT = 0.3  # where nothing better is known
THRESHOLDS = "thresholds"
CALIBRATION = "calibration"


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The threshold of ``nextdetr calibrate``, and what it promises.

    Attributes:
        threshold: for all classes, 0 to 1.
        recall: the expected share of missed objects of an image is at most 1 less this, 0 to 1.
        bound: that was reached on the expected share, 0 to 1.
        iou: overlap from which on an object counts as found.
        images: that it was calibrated on.
        data: their data set.
        split: their part of it.
        image_size: side of the square input in pixels.
        familiarity: whether the checkpoint has how unlike the training images an image may be.
    """

    threshold: float
    recall: float
    bound: float
    iou: float
    images: int
    data: str
    split: str
    image_size: int
    familiarity: bool = False

    def to_metadata(self) -> dict[str, str]:
        """Return the entry of a detector's metadata."""
        return {CALIBRATION: json.dumps(asdict(self), ensure_ascii=False)}

    @property
    def line(self) -> str:
        """One line for the terminal."""
        return (
            f"confidence calibrated: {self.threshold:.4f}, misses on average at most {1 - self.recall:.1%} of an image's "
            f"objects (bound {self.bound:.1%}, IoU {self.iou:g}, from {self.images:,} images of {self.data}, {self.split})"
        )


def read_calibrated(metadata: Mapping[str, str]) -> Calibrated | None:
    """Return what a detector's file says of its calibration; None where it says nothing, or nothing sound."""
    try:
        content = json.loads(metadata.get(CALIBRATION, "null"))
        found = Calibrated(**content)
    except (ValueError, RecursionError, TypeError):
        return None
    numbers = (found.threshold, found.recall, found.bound, found.iou)
    counts, texts = (found.images, found.image_size), (found.data, found.split)
    sound = all(type(value) in (int, float) and 0 <= value <= 1 for value in numbers)
    sound = sound and all(type(value) is int for value in counts) and all(isinstance(text, str) for text in texts)
    return found if sound else None


def thresholds_metadata(values: Sequence[float], *, split: str = "val", criterion: str = "F1") -> dict[str, str]:
    """Return the entry of a detector's metadata; none without values.

    Args:
        values: a threshold for each class, 0 to 1, in the order of the classes.
        split: part of the data set that they were chosen on.
        criterion: what they were chosen by.
    """
    if not len(values):
        return {}
    content = {"criterion": criterion, "split": split, "values": [round(float(value), 4) for value in values]}
    return {THRESHOLDS: json.dumps(content)}


def read_thresholds(metadata: Mapping[str, str], classes: int) -> list[float] | None:
    """Return a detector's own thresholds, one a class.

    Args:
        metadata: of the detector's file.
        classes: number of its classes.

    Returns:
        Numbers from 0 to 1; None where the file has none, or none that fit its classes.
    """
    try:
        content = json.loads(metadata.get(THRESHOLDS, "null"))
    except (ValueError, RecursionError):
        return None
    values = content.get("values") if isinstance(content, dict) else None
    if not isinstance(values, list) or len(values) != classes:
        return None
    sound = all(type(value) in (int, float) and 0 <= value <= 1 for value in values)
    return [float(value) for value in values] if sound else None


def thresholds_split(metadata: Mapping[str, str]) -> str:
    """Return the part of the data set that a detector's own thresholds were chosen on; empty where it has none."""
    try:
        content = json.loads(metadata.get(THRESHOLDS, "null"))
    except (ValueError, RecursionError):
        return ""
    return str(content.get("split", "")) if isinstance(content, dict) else ""


def named_thresholds(metadata: Mapping[str, str], classes: Sequence[str]) -> dict[str, float] | None:
    """Return a detector's own thresholds by the names of its classes; None where it has none."""
    values = read_thresholds(metadata, len(classes))
    return None if values is None else dict(zip(classes, values, strict=True))


def thresholds_line(thresholds: Mapping[str, float]) -> str:
    """Return thresholds as a line for the terminal, of the first twenty classes."""
    parts = [f"{name} {value:.2f}" for name, value in list(thresholds.items())[:20]]
    return f"confidence auto: {', '.join(parts)}{', …' if len(thresholds) > 20 else ''}"


def least_scores(
    confidence: Confidence, thresholds: Sequence[float] | None, classes: int, *, calibrated: float | None = None
) -> NDArray[np.float32]:
    """Return the least score of a detection of each class, [C] float32.

    Args:
        confidence: what was asked for.
        thresholds: the detector's own, from :func:`read_thresholds`; they are used where ``confidence`` is ``auto``.
        classes: number of classes (C).
        calibrated: the detector's own of :func:`read_calibrated`, which is used where ``confidence`` is ``calibrated``.

    Raises:
        ConfigError: ``confidence`` is neither ``auto`` nor ``calibrated`` nor within 0 to 1, has another number of values
            than C, or is ``calibrated`` with a detector that was not.
    """
    import numpy as np  # where it is used: the configurations are read for --help, too

    if isinstance(confidence, str):
        if confidence not in (AUTO, CALIBRATED):
            raise ConfigError(f"the confidence is auto, calibrated or a fraction, 0 to 1, not {confidence!r}.")
        if confidence == CALIBRATED and calibrated is None:
            raise ConfigError(
                "the detector has no calibrated confidence: run nextdetr calibrate on its checkpoint first (and export it "
                "again), or give another --confidence."
            )
        chosen = thresholds if confidence == AUTO else calibrated
        confidence = DEFAULT if chosen is None else chosen
    values = np.asarray(confidence, dtype=np.float32)
    if values.ndim > 1 or (values.ndim == 1 and len(values) != classes):
        raise ConfigError(f"the confidence is one number, or one for each of {classes} classes, not {values.size}.")
    wrong = [value for value in values.reshape(-1).tolist() if not 0 <= value <= 1 or math.isnan(value)]
    if wrong:
        raise ConfigError(f"the confidence is a fraction, 0 to 1, not {wrong[0]:g}.")
    return np.broadcast_to(values, (classes,)).copy()
