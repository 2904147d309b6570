"""Names of a detector's tensors, ``rows.<row>.<name inside the row>``; parsed only here."""

from __future__ import annotations

import re

__all__ = ["inside_row", "row_name", "row_of"]

_ROW = re.compile(r"rows\.(\d{1,6})\.")


def row_of(name: str) -> int | None:
    """Return the row number in a tensor's name; None if it has none.

    Example:
        >>> row_of("rows.7.cv1.conv.weight")
        7
    """
    match = _ROW.match(name)
    return None if match is None else int(match[1])


def inside_row(name: str) -> str:
    """Return the name without its row, ``cv1.conv.weight`` for ``rows.7.cv1.conv.weight``; unchanged without one."""
    return _ROW.sub("", name, count=1) if _ROW.match(name) else name


def row_name(row: int, inside: str) -> str:
    """Return the full name of ``inside`` in row ``row``."""
    return f"rows.{row}.{inside}"
