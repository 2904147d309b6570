"""JSON that every parser accepts: no NaN, no infinity, no lone surrogates."""

from __future__ import annotations

import json
import math
from typing import Any

__all__ = ["json_text"]


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
