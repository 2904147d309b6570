"""From which confidence on a detection counts: decided here for prediction, benchmarks, reports and servers; without torch.

A detector's file can hold a threshold for each class (metadata key ``thresholds``: a JSON object with ``values``, a list in
the order of the classes, and what they were chosen by). ``auto`` takes these where they are, and ``DEFAULT`` elsewhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from nextdetr.errors import ConfigError

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    from numpy.typing import NDArray

    #: One threshold for all classes, one for each, or the detector's own.
    Confidence: TypeAlias = float | Sequence[float] | NDArray[np.floating[Any]] | Literal["auto"]

__all__ = [
    "AUTO",
    "DEFAULT",
    "THRESHOLDS",
    "least_scores",
    "named_thresholds",
    "read_thresholds",
    "thresholds_line",
    "thresholds_metadata",
]

AUTO: Literal["auto"] = "auto"
DEFAULT = 0.3  # where nothing better is known
THRESHOLDS = "thresholds"


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


def named_thresholds(metadata: Mapping[str, str], classes: Sequence[str]) -> dict[str, float] | None:
    """Return a detector's own thresholds by the names of its classes; None where it has none."""
    values = read_thresholds(metadata, len(classes))
    return None if values is None else dict(zip(classes, values, strict=True))


def thresholds_line(thresholds: Mapping[str, float]) -> str:
    """Return thresholds as a line for the terminal, of the first twenty classes."""
    parts = [f"{name} {value:.2f}" for name, value in list(thresholds.items())[:20]]
    return f"confidence auto: {', '.join(parts)}{', …' if len(thresholds) > 20 else ''}"


def least_scores(confidence: Confidence, thresholds: Sequence[float] | None, classes: int) -> NDArray[np.float32]:
    """Return the least score of a detection of each class, [C] float32.

    Args:
        confidence: what was asked for.
        thresholds: the detector's own, from :func:`read_thresholds`; they are used where ``confidence`` is ``auto``.
        classes: number of classes (C).

    Raises:
        ConfigError: ``confidence`` is neither ``auto`` nor within 0 to 1, or has another number of values than C.
    """
    import numpy as np  # where it is used: the configurations are read for --help, too

    if isinstance(confidence, str):
        if confidence != AUTO:
            raise ConfigError(f"the confidence is auto or a fraction, 0 to 1, not {confidence!r}.")
        confidence = DEFAULT if thresholds is None else thresholds
    values = np.asarray(confidence, dtype=np.float32)
    if values.ndim > 1 or (values.ndim == 1 and len(values) != classes):
        raise ConfigError(f"the confidence is one number, or one for each of {classes} classes, not {values.size}.")
    wrong = [value for value in values.reshape(-1).tolist() if not 0 <= value <= 1 or math.isnan(value)]
    if wrong:
        raise ConfigError(f"the confidence is a fraction, 0 to 1, not {wrong[0]:g}.")
    return np.broadcast_to(values, (classes,)).copy()
