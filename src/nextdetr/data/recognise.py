"""Interface of a data set format: see ``formats.py`` for the list.

A format is recognised by file names and the beginnings of a few files, so that trying all formats takes no longer than
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
from nextdetr.files import with_own_name

__all__ = ["Format", "Glance", "SplitReader", "start_of", "yaml_beside"]

# Reads a split; the argument is the model's classes, or None for the data set's own.
T = TypeVar("T")
SplitReader: TypeAlias = Callable[[Sequence[str] | None], RawSplit]


@dataclass(frozen=True, slots=True)
class Format:
    """A format of data sets.

    Attributes:
        name: short lower-case name, for messages and the ``format`` of a dataset YAML.
        expected: description of its paths, for the message that lists all: "a Pascal VOC folder (Annotations/, …)".
        recognise: returns the evidence that a path has this format ("annotations/instances_train.json"), or "" if it has
            not; reads names, and the beginnings of a few files at most.
        open: returns the reader of each split, by its name in the data set; leaves reading the annotations to the readers
            if possible.
        unfinished: whether images not named in its files may simply not be annotated yet.
    """

    name: str
    expected: str
    recognise: Callable[[Glance], str]
    open: Callable[[Glance], dict[str, SplitReader]]
    unfinished: bool = False


class Glance:
    """A quick look at a data set's path, shared by all formats: the names in it.

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
        """Return the result of ``find`` for the path, which is computed once."""
        if find not in self._found:
            self._found[find] = find(self.path)
        found: T = self._found[find]
        return found

    @cached_property
    def names(self) -> list[str]:
        """Names of the files and folders in the folder, sorted, without hidden ones; empty for a file."""
        return sorted(name for names in self._by_ending.values() for name in names)

    @cached_property
    def _by_ending(self) -> dict[str, list[str]]:
        """The names by lower-case suffix, with the dot: even a million images have few suffixes."""
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
        """The subfolders, sorted, including linked ones."""
        return [] if self.is_file else subfolders(self.path)

    def files(self, *suffixes: str) -> list[Path]:
        """Return the files with these lower-case suffixes in the folder; the path itself if it is one."""
        if self.is_file:
            return [self.path] if self.path.suffix.lower() in suffixes else []
        names = (name for suffix in suffixes for name in self._by_ending.get(suffix, ()))
        return [self.path / name for name in sorted(names)]

    @cached_property
    def _inner(self) -> list[Glance]:
        return [Glance(folder) for folder in self.folders]

    @property
    def tops(self) -> list[Glance]:
        """Looks at subfolders that seem to hold only folders."""
        return [glance for glance in self._inner if set(glance._by_ending) <= {""}]

    def nested(self, *suffixes: str) -> list[Path]:
        """Return ``files``, and those with these suffixes in the subfolders."""
        return [*self.files(*suffixes), *(path for glance in self._inner for path in glance.files(*suffixes))]

    def first_below(self, *suffixes: str) -> list[Path]:
        """Return the first file with one of these suffixes in each subfolder."""
        return [files[0] for glance in self._inner if (files := glance.files(*suffixes))]

    def shown(self, path: Path) -> str:
        """Return a file's name for messages: relative to the folder, or its own name."""
        return path.relative_to(self.path).as_posix() if path != self.path and path.is_relative_to(self.path) else path.name


def yaml_beside(folder: Path) -> Path:
    """Return the path of a YAML named after a folder, in the folder above, whether or not it exists."""
    return with_own_name(folder).parent / f"{folder.resolve().name}.yaml"


def start_of(path: Path, count: int = 4096) -> bytes:
    """Return the first bytes of a file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""
