"""Names of a detector's tensors, ``rows.<row>.<name inside the row>``: the only place that takes them apart."""

from __future__ import annotations

import re

__all__ = ["inside_row", "row_name", "row_of"]

_ROW = re.compile(r"rows\.(\d{1,6})\.")


def row_of(name: str) -> int | None:
    """Return the number of the row that a tensor of this name belongs to; None if the name is no row's.

    Example:
        >>> row_of("rows.7.cv1.conv.weight")
        7
    """
    match = _ROW.match(name)
    return None if match is None else int(match[1])


def inside_row(name: str) -> str:
    """Return the name without its row, ``cv1.conv.weight`` of ``rows.7.cv1.conv.weight``; as it is if it is no row's."""
    return _ROW.sub("", name, count=1) if _ROW.match(name) else name


def row_name(row: int, inside: str) -> str:
    """Return the whole name of what is called ``inside`` in row ``row``."""
    return f"rows.{row}.{inside}"
