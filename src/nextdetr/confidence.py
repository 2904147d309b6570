"""Confidence thresholds, decided here for prediction, benchmarks, reports and servers; without torch.

A detector's file can hold a threshold for each class (metadata key ``thresholds``: a JSON object with ``values`` and
``f1``, lists in class order, and how they were chosen). ``auto`` uses these if they exist, and ``DEFAULT`` otherwise and
for classes that are barely trained (``Thresholds.usable``). ``calibrated`` is the single threshold with which ``nextdetr
calibrate`` has bounded the missed objects (key ``calibration``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
    "LEAST_F1",
    "THRESHOLDS",
    "Calibrated",
    "Thresholds",
    "barely_trained",
    "confidence_facts",
    "confidence_lines",
    "least_scores",
    "named_thresholds",
    "read_calibrated",
    "read_thresholds",
    "stored_thresholds",
    "thresholds_line",
    "thresholds_metadata",
    "thresholds_split",
]

AUTO: Literal["auto"] = "auto"
CALIBRATED: Literal["calibrated"] = "calibrated"
DEFAULT = 0.3  # if nothing better is known
THRESHOLDS = "thresholds"
CALIBRATION = "calibration"
#: A class whose best F1 is lower is barely trained, and its threshold is not used. At an F1 of f a detector reports up to
#: 2 / f - 1 detections per object, 9 at 0.2. The 100 detections per image that are scored, in any order, reach 0.16 where
#: an image has eleven objects, as on BCCD after one epoch. With few objects per image the F1 is near 0 then, and the
#: threshold near the initial score of 0.01.
LEAST_F1 = 0.2


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The confidence with the best F1 of each class; empty if nothing was found.

    Attributes:
        values: [C] confidences, 0 to 1.
        f1: [C] the F1 at these; empty if unknown, as in files of earlier versions.
    """

    values: list[float] = field(default_factory=list)
    f1: list[float] = field(default_factory=list)

    def usable(self) -> list[float]:
        """Return what ``auto`` uses, [C]: at least ``DEFAULT`` for classes that are barely trained."""
        doubtful = set(self.doubtful())
        return [max(value, DEFAULT) if label in doubtful else value for label, value in enumerate(self.values)]

    def doubtful(self) -> list[int]:
        """Return the classes that are barely trained."""
        return [label for label, f1 in enumerate(self.f1) if f1 < LEAST_F1]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The threshold of ``nextdetr calibrate``, and its guarantee.

    Attributes:
        threshold: threshold for all classes, 0 to 1.
        recall: the expected fraction of missed objects per image is at most 1 minus this, 0 to 1.
        bound: upper bound on the expected fraction, 0 to 1.
        iou: least IoU at which an object counts as found.
        images: number of calibration images.
        data: name of their data set.
        split: their split.
        image_size: side of the square input in pixels.
        familiarity: whether the checkpoint can tell how unlike the training images an image is.
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
    """Return the calibration in a detector's metadata; None if there is none, or it is invalid."""
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


def thresholds_metadata(values: Sequence[float], f1: Sequence[float] = (), *, split: str = "val") -> dict[str, str]:
    """Return the entry of a detector's metadata; empty without values.

    Args:
        values: as of :class:`Thresholds`.
        f1: likewise.
        split: split that they were chosen on.
    """
    if not len(values):
        return {}
    numbers = {"values": values} | ({"f1": f1} if len(f1) else {})
    rounded = {name: [round(float(value), 4) for value in given] for name, given in numbers.items()}
    return {THRESHOLDS: json.dumps({"criterion": "F1", "split": split, **rounded})}


def stored_thresholds(metadata: Mapping[str, str], classes: int) -> Thresholds | None:
    """Return the thresholds with the best F1 as a detector's file has them.

    Args:
        metadata: metadata of the detector's file.
        classes: number of its classes.

    Returns:
        Numbers from 0 to 1; None if the file has none, or none that fit its classes.
    """
    try:
        content = json.loads(metadata.get(THRESHOLDS, "null"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    values, f1 = (_fractions(content.get(name), classes) for name in ("values", "f1"))
    return None if values is None else Thresholds(values, f1 or [])


def _fractions(values: Any, number: int) -> list[float] | None:
    """Return a list of this many numbers from 0 to 1; None for anything else."""
    if not isinstance(values, list) or len(values) != number:
        return None
    sound = all(type(value) in (int, float) and 0 <= value <= 1 for value in values)
    return [float(value) for value in values] if sound else None


def read_thresholds(metadata: Mapping[str, str], classes: int) -> list[float] | None:
    """Return the thresholds that a detector uses with ``auto``, one per class; see :func:`stored_thresholds`."""
    found = stored_thresholds(metadata, classes)
    return None if found is None else found.usable()


def barely_trained(found: Thresholds | None, classes: Sequence[str]) -> str:
    """Say which classes of a detector are barely trained, and what ``auto`` uses for them; empty if none is.

    Args:
        found: the detector's thresholds.
        classes: names in the order of the indices.

    Returns:
        What follows "the detector is", with a full stop.
    """
    doubtful = [] if found is None else found.doubtful()
    if found is None or not doubtful:
        return ""
    listed = ", ".join(f"{found.f1[label]:.2f} for {classes[label]}" for label in doubtful[:5])
    more = f" and as low for {len(doubtful) - 5} more" if len(doubtful) > 5 else ""
    return (
        f"barely trained: its best F1 is {listed}{more}. There confidence auto is at least {DEFAULT:g}, since most "
        "detections at the threshold with that F1 are false; train longer, or give --confidence."
    )


def thresholds_split(metadata: Mapping[str, str]) -> str:
    """Return the split that a detector's own thresholds were chosen on; empty without any."""
    try:
        content = json.loads(metadata.get(THRESHOLDS, "null"))
    except (ValueError, RecursionError):
        return ""
    return str(content.get("split", "")) if isinstance(content, dict) else ""


def named_thresholds(metadata: Mapping[str, str], classes: Sequence[str]) -> dict[str, float] | None:
    """Return the thresholds that a detector uses with ``auto`` by class name; None without any."""
    values = read_thresholds(metadata, len(classes))
    return None if values is None else dict(zip(classes, values, strict=True))


def thresholds_line(thresholds: Mapping[str, float]) -> str:
    """Format thresholds as a line for the terminal, up to the first twenty classes."""
    parts = [f"{name} {value:.2f}" for name, value in list(thresholds.items())[:20]]
    return f"confidence auto: {', '.join(parts)}{', …' if len(thresholds) > 20 else ''}"


def confidence_facts(metadata: Mapping[str, str], classes: Sequence[str]) -> dict[str, Any]:
    """Return what a detector's file says of its confidence, for the JSON result of ``nextdetr info``.

    Returns:
        As far as the file has them: ``thresholds`` by class name, ``thresholds_note`` on barely trained classes, and
        ``calibration``.
    """
    facts: dict[str, Any] = {}
    thresholds, calibrated = named_thresholds(metadata, classes), read_calibrated(metadata)
    if thresholds is not None:
        facts["thresholds"] = thresholds
    if doubt := barely_trained(stored_thresholds(metadata, len(classes)), classes):
        facts["thresholds_note"] = f"The detector is {doubt}"
    if calibrated is not None:
        facts["calibration"] = asdict(calibrated)
    return facts


def confidence_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return what :func:`confidence_facts` found as lines for the terminal."""
    lines = []
    if facts.get("thresholds") is not None:
        lines.append(thresholds_line(facts["thresholds"]))
    if "thresholds_note" in facts:
        lines.append(facts["thresholds_note"])
    if "calibration" in facts:
        lines.append(Calibrated(**facts["calibration"]).line)
    return lines


def least_scores(
    confidence: Confidence, thresholds: Sequence[float] | None, classes: int, *, calibrated: float | None = None
) -> NDArray[np.float32]:
    """Return the least score of a detection of each class, [C] float32.

    Args:
        confidence: the requested confidence.
        thresholds: the detector's own, from :func:`read_thresholds`; used if ``confidence`` is ``auto``.
        classes: number of classes (C).
        calibrated: the detector's own from :func:`read_calibrated`; used if ``confidence`` is ``calibrated``.

    Raises:
        ConfigError: ``confidence`` is neither ``auto`` nor ``calibrated`` nor within 0 to 1, has a number of values other
            than C, or is ``calibrated`` although the detector is not.
    """
    import numpy as np  # imported late: configurations are also loaded for --help

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
