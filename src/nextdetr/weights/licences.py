"""Licences of weights and the teachers of detectors, joined from several files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = [
    "TEACHER", "TEACHER_LICENCE", "Origin", "joined_licences", "joined_names", "joined_teachers", "plain_licence",
    "with_owners",
]  # fmt: skip

#: Keys of a detector's metadata: the detectors that taught it, and the licences of their weights.
TEACHER, TEACHER_LICENCE = "teacher", "teacher_licence"
_AND = " and "


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the initial weights of a model come from.

    Attributes:
        licence: licences of all files, ``none`` if there are none.
        file: all files, ``none`` if there are none.
        taught: the entries of their metadata about teachers, see ``joined_teachers``.
    """

    licence: str = "none"
    file: str = "none"
    taught: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Origin:
        """Return what the metadata of a detector or backbone state."""
        licence, file = (metadata.get(key, "none") for key in ("weights_licence", "source_weights"))
        return cls(licence, file, joined_teachers(metadata))


def joined_names(values: Sequence[str]) -> str:
    """Join names in one line, each once; ``none`` if there are none."""
    distinct = [value for value in dict.fromkeys(values) if value != "none"]
    return _AND.join(distinct) or "none"


def joined_licences(values: Sequence[str]) -> str:
    """Join licences in one line, each once in whatever spelling; ``none`` if there are none.

    Args:
        values: licences, each perhaps joined from several.
    """
    distinct: dict[str, str] = {}
    for value in values:
        for part in value.split(_AND):
            distinct.setdefault(plain_licence(part), part.strip())
    return _AND.join(part for key, part in distinct.items() if key not in ("", "none")) or "none"


def plain_licence(licence: str) -> str:
    """Return a licence without spaces and capitals, for comparisons."""
    return "".join(licence.split()).lower()


def joined_teachers(*known: Mapping[str, str]) -> dict[str, str]:
    """Join what the metadata of several detectors state about their teachers; empty if none had any."""
    taught = [metadata for metadata in known if TEACHER in metadata]
    if not taught:
        return {}
    names = [name for metadata in taught for name in metadata[TEACHER].split(_AND)]
    licences = [metadata.get(TEACHER_LICENCE, "unknown") for metadata in taught]
    return {TEACHER: joined_names(names), TEACHER_LICENCE: joined_licences(licences)}


def with_owners(own: str, stated: str | None) -> tuple[str, tuple[str, ...]]:
    """Add what a model card states to the licence in one of our files, unless it repeats that.

    Our own cards name the parts of several licences that bind, joined by "-".

    Args:
        own: licence of the weights that training started from, from the file.
        stated: licence from the card beside it, if there is one.

    Returns:
        The licence, and remarks for the user.
    """
    parts = [plain_licence(part) for part in own.split(_AND)]
    if stated is None or stated.lower() == "-".join(part for part in parts if part in stated.lower()):
        return own, ()
    both = joined_licences([stated, own])
    return both, (f"its model card states {stated}, beside the licence of the weights that it was trained from, {own}.",)
