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
from typing import Any, TypeAlias, TypeVar

from nextdetr.data.listing import subfolders
from nextdetr.data.raw import RawSplit

__all__ = ["Format", "Glance", "SplitReader", "start_of", "yaml_beside"]

# Reads a split; the argument is the model's classes, or None for the data set's own.
T = TypeVar("T")
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
        unfinished: whether images that its files do not name are such that nobody has annotated yet.
    """

    name: str
    expected: str
    recognise: Callable[[Glance], str]
    open: Callable[[Glance], dict[str, SplitReader]]
    unfinished: bool = False


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
        self._found: dict[Callable[[Path], Any], Any] = {}

    def once(self, find: Callable[[Path], T]) -> T:
        """Return what ``find`` says of the path; it is asked once, by the recognition or by what opens the set."""
        if find not in self._found:
            self._found[find] = find(self.path)
        found: T = self._found[find]
        return found

    @cached_property
    def names(self) -> list[str]:
        """Names of the files and folders in the folder, sorted, without hidden ones; none in a file."""
        return sorted(name for names in self._by_ending.values() for name in names)

    @cached_property
    def _by_ending(self) -> dict[str, list[str]]:
        """The names by their endings in lower case, with the dot: of a million images few endings are asked for."""
        found: dict[str, list[str]] = {}
        for name in () if self.is_file else os.listdir(self.path):  # noqa: PTH208 - names, not paths
            if not name.startswith("."):
                found.setdefault(name[dot:] if (dot := name.rfind(".")) > 0 else "", []).append(name)
        folded: dict[str, list[str]] = {}
        for ending, names in found.items():
            folded.setdefault(ending.lower(), []).extend(names)
        return folded

    @cached_property
    def folders(self) -> list[Path]:
        """The subfolders, sorted; linked ones too."""
        return [] if self.is_file else subfolders(self.path)

    def files(self, *suffixes: str) -> list[Path]:
        """Return the files of these endings, in lower case, in the folder; the path itself if it is such a file."""
        if self.is_file:
            return [self.path] if self.path.suffix.lower() in suffixes else []
        names = (name for suffix in suffixes for name in self._by_ending.get(suffix, ()))
        return [self.path / name for name in sorted(names)]

    @cached_property
    def _inner(self) -> list[Glance]:
        return [Glance(folder) for folder in self.folders]

    @property
    def tops(self) -> list[Glance]:
        """Looks at the subfolders that hold nothing but folders, as far as their names tell."""
        return [glance for glance in self._inner if set(glance._by_ending) <= {""}]

    def nested(self, *suffixes: str) -> list[Path]:
        """Return ``files``, and those of these endings in the subfolders."""
        return [*self.files(*suffixes), *(path for glance in self._inner for path in glance.files(*suffixes))]

    def first_below(self, *suffixes: str) -> list[Path]:
        """Return the first file of these endings in each subfolder."""
        return [files[0] for glance in self._inner if (files := glance.files(*suffixes))]

    def shown(self, path: Path) -> str:
        """Return how to name a file of the data set in a line: relative to the folder, or by its own name."""
        return path.relative_to(self.path).as_posix() if path != self.path and path.is_relative_to(self.path) else path.name


def yaml_beside(folder: Path) -> Path:
    """Return the path of a YAML that bears the name of a folder, in the folder above, whether or not it is there."""
    above = folder.parent if folder.name not in ("", "..") else folder.resolve().parent
    return above / f"{folder.resolve().name}.yaml"


def start_of(path: Path, count: int = 4096) -> bytes:
    """Return the first bytes of a file; none where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""
