"""Listing of files, and lookup of files by names that are spelt slightly differently."""

from __future__ import annotations

import os
import unicodedata
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from nextdetr.data.records import Problem
from nextdetr.pictures import is_picture_name, kind_of, not_here

__all__ = [
    "FileFinder",
    "Listing",
    "NameIndex",
    "describe_others",
    "fold",
    "is_foreign",
    "list_files",
    "list_images",
    "split_path",
    "subfolders",
]


_OF_A_RUN = frozenset(("config.yaml", "metrics.csv"))  # files in the folder of a training or pre-training


class Listing(NamedTuple):
    """Files of a folder and its subfolders.

    Attributes:
        files: sorted by path.
        problems: broken links, and images of kinds that cannot be read here.
    """

    files: list[Path]
    problems: list[Problem]


def list_images(folder: Path) -> Listing:
    """List the image files in a folder and its subfolders; see ``list_files`` and ``pictures.is_picture_name``."""
    return _list(folder, is_picture_name, kind_of)


def list_files(folder: Path, suffixes: Collection[str]) -> Listing:
    """List the files with given suffixes in a folder and its subfolders.

    Hidden files and folders are left out. Linked folders are followed. Each folder is listed once, however many links lead
    to it, under its own name if that lies inside ``folder``; so circular links are fine.

    Args:
        folder: folder to search.
        suffixes: lower-case suffixes with the dot; files may have them in any case.

    Raises:
        OSError: a folder cannot be read.
    """

    def taken(name: str) -> bool:
        return not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes  # noqa: PTH122 - as fast as it goes

    return _list(folder, taken, lambda _: None)


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, including linked but not hidden ones, sorted by name.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def _list(folder: Path, taken: Callable[[str], bool], kind: Callable[[str], str | None]) -> Listing:
    """List files that are ``taken`` by name; for the others ask for their ``kind``, and count those that have one.

    ``runs`` in the working directory, where commands write images, is skipped when listing a folder above it (``--data
    .``), and folders of runs are skipped everywhere.
    """
    files: list[str] = []
    problems: list[Problem] = []
    others: Counter[str] = Counter()
    written = os.path.realpath("runs")
    seen: set[str] = set()
    waiting = deque([folder])
    while waiting:
        for parent, folders, names in os.walk(waiting.popleft(), onerror=_fail):
            real = os.path.realpath(parent)
            if real in seen or (seen and (real == written or _OF_A_RUN.issubset(names))):
                folders.clear()
                continue
            seen.add(real)
            visible = sorted(name for name in folders if not name.startswith("."))
            waiting += [Path(parent, name) for name in visible if Path(parent, name).is_symlink()]
            folders[:] = visible  # links among them are not followed here
            for name in names:
                if taken(name):
                    files.append(os.path.join(parent, name))  # noqa: PTH118 - there may be a million names
                elif name.startswith("."):
                    continue
                elif (other := kind(name)) is not None:
                    others[other] += 1
                elif os.path.islink(path := os.path.join(parent, name)) and not os.path.exists(path):  # noqa: PTH110, PTH114, PTH118
                    problems.append(Problem(path, "", "the link leads nowhere; skipped", "broken link"))
    problems += [
        Problem(str(folder), "", f"{count:,} {not_here(other)} are skipped", "picture of another kind")
        for other, count in sorted(others.items())
    ]
    files.sort(key=lambda path: path.replace(os.sep, "\0"))  # folder by folder, as paths sort
    return Listing([Path(path) for path in files], problems)


def describe_others(problems: Sequence[Problem]) -> str:
    """Return a clause about what a folder without images holds instead; "" if nothing."""
    return "".join(f"; {problem.message}" for problem in problems if problem.kind == "picture of another kind")


def _fail(error: OSError) -> None:
    raise error


def fold(name: str) -> str:
    """Normalise a name as many file systems do: case, and composed or decomposed accents."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class FileFinder:
    """Finds files whose names differ from the written ones in case (``.JPG``) or in the encoding of accents.

    Data sets made on Windows or macOS often have such names, which are equivalent there.
    """

    def __init__(self) -> None:
        self._names: dict[Path, dict[str, list[str]]] = {}

    def find(self, path: Path) -> Path:
        """Return the matching file or folder; ``path`` itself if it exists or if no other is the only match."""
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
            except (OSError, ValueError):  # a name with a null byte
                pass
            self._names[folder] = table
        return self._names[folder]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long or has a null byte
        return False


class NameIndex:
    """Finds the image meant by a path in a list or annotation file, never another one with the same base name.

    A written path matches an image if the image's own path ends with it (``a.jpg`` and ``2/a.jpg`` match ``…/2/a.jpg``), or
    if it ends with the whole name of the image, folder included (``images/v1/2/a.jpg`` matches ``2/a.jpg``: the set used to
    lie below other folders). A path with another folder is another file: ``1/a.jpg`` is never ``2/a.jpg``.

    Args:
        names: name of each image in messages; a written path equal to it matches regardless of the image's path.
        folder: folder of the images; written paths may include its own folders.
        paths: path of each image, relative to ``folder``; by default the names.
    """

    def __init__(self, names: Sequence[str], folder: str | Path = "", paths: Sequence[str] = ()) -> None:
        self.names, self._paths = names, paths or names
        self._folder = tuple(reversed(split_path(str(folder))))
        self._whole = {name.replace("\\", "/"): position for position, name in enumerate(names)}
        self._tables: dict[bool, _Endings] = {}

    def find(self, name: str) -> list[int]:
        """Return the positions that ``name``, with or without extension, may mean: none, one, or several of one path."""
        spelt = name.replace("\\", "/")
        if spelt in self._whole:
            return [self._whole[spelt]]
        written = tuple(reversed(split_path(spelt)))
        for stems in (False, True) if written else ():
            table = self._table(stems)
            found = table.ending(written) or table.inner(written)
            if found:
                return self._spelt_alike(found, spelt)
        return []

    def nearest(self, name: str) -> list[int]:
        """Return the positions of the images that match the longest ending of ``name``, whatever its folders."""
        written = tuple(reversed(split_path(name)))
        tails = (self._table(stems=False).ending(written[:count]) for count in range(len(written), 0, -1))
        return next((found for found in tails if found), [])

    def _table(self, stems: bool) -> _Endings:
        if stems not in self._tables:
            self._tables[stems] = _Endings(self._paths, self._folder, stems)
        return self._tables[stems]

    def _spelt_alike(self, found: list[int], spelt: str) -> list[int]:
        """If there are several, keep those spelt identically."""
        if len(found) < 2:
            return found
        exact = []
        for at in found:
            own = "/" + self._paths[at].replace("\\", "/")
            if any(end.endswith(f"/{spelt}") or f"/{spelt}".endswith(end) for end in (own, own.rpartition(".")[0])):
                exact.append(at)
        return exact or found

    def describe(self, positions: Sequence[int]) -> str:
        """List the images at several positions, for a message."""
        shown = ", ".join(self.names[position] for position in positions[:3])
        return shown + (", …" if len(positions) > 3 else "")


class _Endings:
    """Names sorted by their last part, then by the folder before it, and so on, so that common endings are adjacent."""

    def __init__(self, names: Sequence[str], folder: tuple[str, ...], stems: bool) -> None:
        above: dict[str, tuple[str, ...]] = {}  # there are few folders, shared by many names
        self._inner: dict[tuple[str, ...], list[int]] = {}
        paths: list[tuple[tuple[str, ...], int]] = []
        for position, name in enumerate(names):
            parent, _, base = name.replace("\\", "/").rpartition("/")
            if stems:
                base, dot, _ = base.rpartition(".")
                if not (dot and base):
                    continue
            if parent not in above:
                above[parent] = tuple(reversed(split_path(parent)))
            own = (fold(base), *above[parent])
            paths.append(((*own, *folder), position))
            if len(own) > 1:
                self._inner.setdefault(own, []).append(position)
        paths.sort()
        self._paths = [path for path, _ in paths]
        self._positions = [position for _, position in paths]

    def ending(self, tail: tuple[str, ...]) -> list[int]:
        """Return the positions of the names that end with these parts, given from the last one."""
        first = bisect_left(self._paths, tail)
        last = bisect_left(self._paths, (*tail[:-1], f"{tail[-1]}\0"), lo=first)
        return sorted(self._positions[first:last])

    def inner(self, written: tuple[str, ...]) -> list[int]:
        """Return the positions of the longest name, folder included, that the written path ends with."""
        return next((self._inner[written[:n]] for n in range(len(written) - 1, 1, -1) if written[:n] in self._inner), [])


def split_path(name: str) -> tuple[str, ...]:
    """Return the normalised folders and file of a written path, without drive, protocol, ``.`` and ``..``."""
    parts = fold(name.replace("\\", "/")).split("/")
    return tuple(part for part in parts if part not in ("", ".", "..") and not part.endswith(":"))


def is_foreign(name: str) -> bool:
    """Whether a written path is absolute, a URL, or starts above the folder, so that it depends on its author's machine."""
    spelt = name.replace("\\", "/")
    return spelt.startswith(("/", "../")) or spelt[1:2] == ":" or "://" in spelt
