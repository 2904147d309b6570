"""What a format of data sets says about itself: see ``formats.py`` for the list of them.

A format is recognised by names, and by the beginnings of a few files, so that asking all of them takes no longer than
listing a folder and its subfolders once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from nextdetr.data.raw import RawSplit

__all__ = ["Format", "Glance", "SplitReader", "start_of"]

# Reads a split; the argument is the model's classes, or None for the data set's own.
SplitReader: TypeAlias = Callable[[Sequence[str] | None], RawSplit]


@dataclass(frozen=True, slots=True)
class Format:
    """A format of data sets.

    Attributes:
        name: short, lower case, as in messages and as ``format`` of a dataset YAML.
        expected: what a path of it is, for the message that lists all: "a Pascal VOC folder (Annotations/, …)".
        recognise: returns what shows that a path is of this format ("annotations/instances_train.json"), or "" if it is
            not; reads names, and the beginning of a few files at most.
        open: returns the reader of each split, by the name that the data set gives it; reads no annotations that it can
            leave to the readers.
    """

    name: str
    expected: str
    recognise: Callable[[Glance], str]
    open: Callable[[Path], dict[str, SplitReader]]


class Glance:
    """A quick look at the path of a data set, shared by all formats: what lies there, by name.

    Args:
        path: a file or a folder.

    Raises:
        OSError: the folder cannot be listed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_file = path.is_file()

    @cached_property
    def names(self) -> list[str]:
        """Names of the files and folders in the folder, sorted, without hidden ones; none in a file."""
        return [] if self.is_file else sorted(name for name in os.listdir(self.path) if not name.startswith("."))  # noqa: PTH208

    @cached_property
    def folders(self) -> list[Path]:
        """The subfolders, sorted; linked ones too."""
        return [self.path / name for name in self.names if (self.path / name).is_dir()]

    def files(self, *suffixes: str) -> list[Path]:
        """Return the files of these endings, in lower case, in the folder; the path itself if it is such a file."""
        if self.is_file:
            return [self.path] if self.path.suffix.lower() in suffixes else []
        return [self.path / name for name in self.names if os.path.splitext(name)[1].lower() in suffixes]  # noqa: PTH122

    @cached_property
    def below(self) -> dict[Path, list[str]]:
        """Names in each of the subfolders, sorted, without hidden ones."""
        return {folder: Glance(folder).names for folder in self.folders}

    def nested(self, *suffixes: str) -> list[Path]:
        """Return ``files``, and those of these endings in the subfolders."""
        below = ((folder, name) for folder, names in self.below.items() for name in names)
        return [
            *self.files(*suffixes),
            *(folder / name for folder, name in below if os.path.splitext(name)[1].lower() in suffixes),  # noqa: PTH122
        ]

    def first_below(self, *suffixes: str) -> list[Path]:
        """Return the first file of these endings in each subfolder."""
        found: dict[Path, Path] = {}
        for path in self.nested(*suffixes):
            found.setdefault(path.parent, path)
        return [path for folder, path in found.items() if folder != self.path]

    def shown(self, path: Path) -> str:
        """Return how to name a file of the data set in a line: relative to the folder, or by its own name."""
        return path.relative_to(self.path).as_posix() if path != self.path and path.is_relative_to(self.path) else path.name


def start_of(path: Path, count: int = 4096) -> bytes:
    """Return the first bytes of a file; none where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""
