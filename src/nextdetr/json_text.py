"""JSON that every parser accepts, without NaN, infinity and lone surrogates, and without digits that say nothing."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["json_text", "short_number", "short_numbers", "short_seconds"]


def json_text(value: Any, *, encoding: str = "utf-8") -> str:
    r"""Return ``value`` as JSON on one line.

    NaN and infinities become null. Characters are kept if ``encoding`` supports all of them; otherwise, and for file names
    that are not UTF-8, non-ASCII ones are escaped (``\u6c7d``).

    Args:
        value: dicts, lists, text, numbers, None; scalars of NumPy count as numbers, anything else as its text.
        encoding: encoding of the target file or stream.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        value = _without_nan(value)
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return json.dumps(value, allow_nan=False, default=_plain)
    return text


def short_numbers(values: ArrayLike) -> list[Any]:
    """Return numbers with the fewest digits that identify them in float32: 48.257538, not 48.257537841796875.

    Args:
        values: of any shape; lists of that shape are returned.
    """
    import numpy as np  # not for every command

    shortest = np.asarray(values, np.float32).astype(str)  # NumPy writes no more digits than are needed
    return cast("list[Any]", shortest.astype(np.float64).tolist())


def short_number(value: float) -> float:
    """Return one number as :func:`short_numbers` does."""
    return float(short_numbers([value])[0])


def short_seconds(value: float) -> float:
    """Return seconds to the microsecond: times of hours have more digits than float32 holds."""
    return round(value, 6)


def _plain(value: Any) -> Any:
    item = getattr(value, "item", None)  # a scalar of NumPy or torch
    return _without_nan(item()) if callable(item) else str(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
