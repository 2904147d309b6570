"""Renaming rules, for all layouts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

__all__ = ["Rules", "renamed", "renamed_once", "rules"]

Rules = Sequence[tuple[re.Pattern[str], str]]


def rules(*pairs: tuple[str, str]) -> Rules:
    """Compile patterns, each with its replacement."""
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


def renamed(name: str, table: Rules) -> str:
    """Apply every rule of a table, in order."""
    for pattern, replacement in table:
        name = pattern.sub(replacement, name)
    return name


def renamed_once(state: Mapping[str, Tensor], table: Rules) -> dict[str, Tensor]:
    """Rename tensors, each by the first rule that matches the start of its name; only that start is replaced."""
    result = {}
    for name, tensor in state.items():
        rule = next((rule for rule in table if rule[0].match(name)), None)
        result[name if rule is None else rule[0].sub(rule[1], name, count=1)] = tensor
    return result
