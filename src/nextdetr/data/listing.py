"""Which files lie in a folder, and which file is meant by a name that is written a little differently."""

from __future__ import annotations

import os
import unicodedata
from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from nextdetr.data.records import Problem
from nextdetr.preprocess import IMAGE_SUFFIXES

__all__ = ["FileFinder", "Listing", "NameIndex", "list_files", "list_images"]


class Listing(NamedTuple):
    """The files of a folder and its subfolders.

    Attributes:
        files: in the order of their paths.
        problems: links that lead nowhere.
    """

    files: list[Path]
    problems: list[Problem]


def list_images(folder: Path) -> Listing:
    """List the image files in a folder and its subfolders; see ``list_files``."""
    return list_files(folder, IMAGE_SUFFIXES)


def list_files(folder: Path, suffixes: Collection[str]) -> Listing:
    """List the files of some endings in a folder and its subfolders.

    Hidden files and folders are left out. Linked folders are looked through too. Each folder is listed once, however many
    links lead to it, under its own name if that lies inside ``folder``; so links may run in circles.

    Args:
        folder: where to look.
        suffixes: endings in lower case, with the dot; files may have them in any case.

    Raises:
        OSError: a folder cannot be read.
    """
    files: list[Path] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    waiting = deque([folder])
    while waiting:
        for parent, folders, names in os.walk(waiting.popleft(), onerror=_fail):
            real = os.path.realpath(parent)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            visible = sorted(name for name in folders if not name.startswith("."))
            waiting += [Path(parent, name) for name in visible if Path(parent, name).is_symlink()]
            folders[:] = visible  # links among them are not entered here
            for name in names:
                path = Path(parent, name)
                if name.startswith("."):
                    continue
                if path.suffix.lower() in suffixes:
                    files.append(path)
                elif path.is_symlink() and not path.exists():
                    problems.append(Problem(str(path), "", "the link leads nowhere; passed over", "broken link"))
    return Listing(sorted(files), problems)


def _fail(error: OSError) -> None:
    raise error


def fold(name: str) -> str:
    """Return what is the same for names that many disks take for the same: case, and accents as one sign or two."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class FileFinder:
    """Finds files whose names differ from what is written in case (``.JPG``) or in how accents are stored.

    A set that was made on Windows or macOS often has such names, which are the same there.
    """

    def __init__(self) -> None:
        self._names: dict[Path, dict[str, list[str]]] = {}

    def find(self, path: Path) -> Path:
        """Return the file or folder that is meant; ``path`` itself where it exists, and where no other is the only one."""
        if _exists(path) or path.parent == path:
            return path
        folder = self.find(path.parent)
        alike = self._list(folder).get(fold(path.name), [])
        return folder / alike[0] if len(alike) == 1 else path

    def _list(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._names:
            table: dict[str, list[str]] = {}
            try:
                for name in sorted(os.listdir(folder)):  # noqa: PTH208 - names, not paths
                    table.setdefault(fold(name), []).append(name)
            except OSError:
                pass
            self._names[folder] = table
        return self._names[folder]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name longer than the file system has, or one with a zero byte
        return False


class NameIndex:
    """Finds images by the name that a list gives them: with more or fewer folders, with or without the ending.

    Args:
        names: path of each image, relative, with ``/``.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._exact: dict[str, list[int]] = {}
        self._folded: dict[str, list[int]] = {}
        for position, name in enumerate(names):
            path = PurePosixPath(name.replace("\\", "/"))
            for ending in (path, path.with_suffix("")) if path.suffix else (path,):
                for start in range(len(ending.parts)):
                    tail = "/".join(ending.parts[start:])
                    _append(self._exact, tail, position)
                    _append(self._folded, fold(tail), position)
        self._whole = {name.replace("\\", "/"): position for position, name in enumerate(names)}

    def find(self, name: str) -> list[int]:
        """Return the positions that ``name`` may mean: none, one, or several that nothing in it tells apart."""
        spelt = name.replace("\\", "/")
        if spelt in self._whole:
            return [self._whole[spelt]]
        parts = PurePosixPath(spelt).parts
        for start in range(len(parts)):  # the more folders agree, the better
            tail = "/".join(parts[start:])
            found = self._exact.get(tail) or self._folded.get(fold(tail))
            if found:
                return found
        return []

    def describe(self, positions: Sequence[int]) -> str:
        """Name the images of several positions, for a message."""
        shown = ", ".join(self.names[position] for position in positions[:3])
        return shown + (", …" if len(positions) > 3 else "")


def _append(table: dict[str, list[int]], key: str, position: int) -> None:
    found = table.setdefault(key, [])
    if not found or found[-1] != position:
        found.append(position)
