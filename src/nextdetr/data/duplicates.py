"""Find images that are in a data set more than once: the same file, or the same picture cropped, mirrored or stored anew.

10,000 JPEGs of 640 x 480 take some 50 seconds of one processor core. Comparing grows with the square of the number, reading
with the number.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nextdetr.data.aligned import align
from nextdetr.data.likeness import SIDE, TURNS, find_candidates, make_thumbnails
from nextdetr.preprocess import AS_EVER, Reading

__all__ = ["Groups", "Pair", "find_duplicates"]

_START = 1 << 16  # bytes that nearly always tell two files of one length apart
_CROPPED = 0.02  # share of a side that is cut off, below which it is not said
_STEP = 64  # candidates between two reports of progress


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images that show the same.

    Attributes:
        first, second: positions; of the second the first shows more, or as much.
        exact: the bytes of both files are the same.
        change: what was done to the second, for messages: "", "mirrored", "cropped", "mirrored, cropped", …
        agreement: correlation of their details, up to 1.
    """

    first: int
    second: int
    exact: bool
    change: str = ""
    agreement: float = 1.0


class Groups:
    """Groups of numbers that are joined one pair at a time."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def join(self, first: int, second: int) -> bool:
        """Join the groups of two numbers; return whether they were apart."""
        a, b = self.root(first), self.root(second)
        self._parent[max(a, b)] = min(a, b)
        return a != b

    def root(self, number: int) -> int:
        """Return the smallest number of a group."""
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number

    def numbers(self) -> NDArray[np.int64]:
        """Return the number of each one's group, numbered as they first come; [N]."""
        roots = [self.root(number) for number in range(len(self._parent))]
        names = {root: number for number, root in enumerate(dict.fromkeys(roots))}
        return np.array([names[root] for root in roots], dtype=np.int64)

    def members(self) -> list[list[int]]:
        """Return the groups of two and more, in the order of their first numbers."""
        found: dict[int, list[int]] = defaultdict(list)
        for number in range(len(self._parent)):
            found[self.root(number)].append(number)
        return [group for group in found.values() if len(group) > 1]


def find_duplicates(
    paths: Sequence[Path],
    reading: Reading = AS_EVER,
    *,
    threads: int = 2,
    thumbnails: Mapping[Path, NDArray[np.uint8]] | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> list[Pair]:
    """Find pairs of images that show the same, enough of them to join each group: of three copies there may be two pairs.

    Crops are found that keep about four fifths of the area or more, mirrored ones too; pictures turned by quarters only
    whole. What cannot be read is left out.

    Args:
        paths: N image files; one that stands there twice is a copy of itself.
        reading: how they are read.
        threads: that decode.
        thumbnails: of each file, from ``make_thumbnails``, where they are there already.
        progress: is told the step ("read", "compare" or "look closer"), how many are done and of how many.

    Returns:
        The pairs, those of equal files first.
    """
    groups = Groups(len(paths))
    pairs = [Pair(first, second, exact=True) for first, second in _equal_files(paths)]
    for pair in pairs:
        groups.join(pair.first, pair.second)
    alone = [number for number in range(len(paths)) if groups.root(number) == number]  # of equal files the first
    chosen = [paths[number] for number in alone]
    if thumbnails is None:
        small, _ = make_thumbnails(
            chosen, reading, threads=threads, progress=lambda done: progress("read", done, len(chosen))
        )
    else:
        small = np.stack([thumbnails[path] for path in chosen]) if chosen else np.zeros((0, SIDE, SIDE), dtype=np.uint8)
    candidates = find_candidates(small, progress=lambda done: progress("compare", done, len(chosen)))
    for done, candidate in enumerate(candidates):
        if done % _STEP == 0:
            progress("look closer", done, len(candidates))
        first, second = alone[candidate.first], alone[candidate.second]
        if groups.root(first) == groups.root(second):
            continue
        found = align(small, candidate)
        if found is not None:
            groups.join(first, second)
            pairs.append(Pair(first, second, False, _change(candidate.turn, found.part), round(found.agreement, 4)))
    return pairs


def _change(turn: int, part: Iterable[float]) -> str:
    left, top, right, bottom = part
    cropped = max(left, top, 1 - right, 1 - bottom) > _CROPPED
    return ", ".join(name for name in (TURNS[turn].name, "cropped" if cropped else "") if name)


def _equal_files(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """Return (first, other) of files with the same bytes; only those that agree in length and beginning are read whole."""
    pairs = []
    for by_length in _together(range(len(paths)), lambda number: _length(paths[number])):
        for by_start in _together(by_length, lambda number: _digest(paths[number], _START)):
            for first, *others in _together(by_start, lambda number: _digest(paths[number], -1)):
                pairs += [(first, other) for other in others]
    return sorted(pairs)


def _together(numbers: Iterable[int], key: Callable[[int], object]) -> list[list[int]]:
    """Return the groups of two and more that have one key; what has none (None) is in no group."""
    found: dict[object, list[int]] = defaultdict(list)
    for number in numbers:
        value = key(number)
        if value is not None:
            found[value].append(number)
    return [group for group in found.values() if len(group) > 1]


def _length(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _digest(path: Path, count: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            return hashlib.blake2b(file.read(count)).digest()
    except OSError:
        return None
