"""Find images that two splits share: a score on training images says nothing about new images."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from nextdetr.data.records import DetectionData, ImageRecord, Problem

__all__ = ["same_files", "same_paths", "shared_images"]

_START = 1 << 16  # bytes that nearly always distinguish two files of equal length


def shared_images(first: DetectionData, second: DetectionData) -> list[Problem]:
    """Return one problem if images of ``second`` are also in ``first``, under any name; else an empty list."""
    shared = [
        (record.path, path)
        for record, path in zip(second.records, same_files(first.records, second.records), strict=True)
        if path is not None
    ]
    if not shared:
        return []
    example, other = shared[0]
    named = "" if example == other else f", there as {other}"
    count = f"{len(shared):,} of the {len(second.records):,} images of the split {second.split}"
    verb = "is" if len(shared) == 1 else "are"
    message = f"{count} {verb} in the split {first.split} too{named}, so its score says little about new images"
    return [Problem(str(example), "", message, "image in two splits")]


def same_files(first: Sequence[ImageRecord], second: Sequence[ImageRecord]) -> list[Path | None]:
    """Return for each image of ``second`` the identical file in ``first``, or None; see ``same_paths``."""
    return same_paths([record.path for record in first], [record.path for record in second])


def same_paths(first: Sequence[Path], second: Sequence[Path]) -> list[Path | None]:
    """Return for each file of ``second`` the identical one in ``first``, or None.

    Only files of equal length and beginning are read to the end.
    """
    known: dict[int, list[Path]] = defaultdict(list)
    for path in first:
        known[_length(path)].append(path)
    starts: dict[Path, bytes] = {}
    whole: dict[Path, bytes] = {}

    def same(one: Path, other: Path) -> bool:
        return one == other or (
            _digest(one, _START, starts) == _digest(other, _START, starts)
            and _digest(one, -1, whole) == _digest(other, -1, whole)
        )

    return [next((path for path in known.get(_length(other), ()) if same(path, other)), None) for other in second]


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _digest(path: Path, count: int, known: dict[Path, bytes]) -> bytes:
    if path not in known:
        try:
            with path.open("rb") as file:
                known[path] = hashlib.blake2b(file.read(count)).digest()
        except OSError:
            known[path] = str(path).encode("utf-8", "surrogateescape")  # equal to no other
    return known[path]
