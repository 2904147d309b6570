"""Which files lie in a folder, and which file is meant by a name that is written a little differently."""

from __future__ import annotations

import os
import unicodedata
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from nextdetr.data.records import Problem
from nextdetr.pictures import NOT_HERE, is_picture_name, kind_of

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


_OF_A_RUN = frozenset(("config.yaml", "metrics.csv"))  # files that a training or pre-training leaves in its folder


class Listing(NamedTuple):
    """The files of a folder and its subfolders.

    Attributes:
        files: in the order of their paths.
        problems: links that lead nowhere, and pictures of kinds that cannot be read here.
    """

    files: list[Path]
    problems: list[Problem]


def list_images(folder: Path) -> Listing:
    """List the image files in a folder and its subfolders; see ``list_files`` and ``pictures.is_picture_name``."""
    return _list(folder, is_picture_name, kind_of)


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

    def taken(name: str) -> bool:
        return not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes  # noqa: PTH122 - as fast as it goes

    return _list(folder, taken, lambda _: None)


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, linked ones too and hidden ones not, in the order of their names.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def _list(folder: Path, taken: Callable[[str], bool], kind: Callable[[str], str | None]) -> Listing:
    """List what is ``taken`` by its name; the rest is asked for its ``kind``, and counted where it has one.

    ``runs`` in the working folder, where commands write pictures, is left out of a folder above it (``--data .``), and the
    folder of a run everywhere.
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
            folders[:] = visible  # links among them are not entered here
            for name in names:
                if taken(name):
                    files.append(os.path.join(parent, name))  # noqa: PTH118 - there may be a million names
                elif name.startswith("."):
                    continue
                elif (other := kind(name)) is not None:
                    others[other] += 1
                elif os.path.islink(path := os.path.join(parent, name)) and not os.path.exists(path):  # noqa: PTH110, PTH114, PTH118
                    problems.append(Problem(path, "", "the link leads nowhere; passed over", "broken link"))
    problems += [
        Problem(str(folder), "", f"{count:,} {NOT_HERE[other]} are passed over", "picture of another kind")
        for other, count in sorted(others.items())
    ]
    files.sort(key=lambda path: path.replace(os.sep, "\0"))  # folder by folder, as paths are sorted
    return Listing([Path(path) for path in files], problems)


def describe_others(problems: Sequence[Problem]) -> str:
    """Return a clause that tells what a folder without images holds in their place; "" where that is nothing."""
    return "".join(f"; {problem.message}" for problem in problems if problem.kind == "picture of another kind")


def _fail(error: OSError) -> None:
    raise error


def fold(name: str) -> str:
    """Return what is the same for names that many disks take for the same: case, and accents as one sign or two."""
    if name.isascii():
        return name.lower()
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
            except (OSError, ValueError):  # a name with a zero byte
                pass
            self._names[folder] = table
        return self._names[folder]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name longer than the file system has, or one with a zero byte
        return False


class NameIndex:
    """Finds the image that a list or an annotation file means by a written path, never another one of the same base name.

    A written path means an image if the image's own path ends with it (``a.jpg`` and ``2/a.jpg`` mean ``…/2/a.jpg``), or if
    it ends with the whole of the image's name, folder included (``images/v1/2/a.jpg`` means ``2/a.jpg``: where the set lay,
    its folders had others above them). A path with another folder means another file: ``1/a.jpg`` is never ``2/a.jpg``.

    Args:
        names: of each image, as messages show it; a written path that is the same means it whatever its path is.
        folder: where the images lie; its own folders may be written too.
        paths: path of each image, relative to ``folder``; by default the names.
    """

    def __init__(self, names: Sequence[str], folder: str | Path = "", paths: Sequence[str] = ()) -> None:
        self.names, self._paths = names, paths or names
        self._folder = tuple(reversed(split_path(str(folder))))
        self._whole = {name.replace("\\", "/"): position for position, name in enumerate(names)}
        self._tables: dict[bool, _Endings] = {}

    def find(self, name: str) -> list[int]:
        """Return the positions that ``name``, with or without ending, may mean: none, one, or several of one path."""
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
        """Return the positions of the images that agree with the longest ending of ``name``, whatever its folders."""
        written = tuple(reversed(split_path(name)))
        tails = (self._table(stems=False).ending(written[:count]) for count in range(len(written), 0, -1))
        return next((found for found in tails if found), [])

    def _table(self, stems: bool) -> _Endings:
        if stems not in self._tables:
            self._tables[stems] = _Endings(self._paths, self._folder, stems)
        return self._tables[stems]

    def _spelt_alike(self, found: list[int], spelt: str) -> list[int]:
        """Of several, keep those that are spelt so in every letter."""
        if len(found) < 2:
            return found
        exact = []
        for at in found:
            own = "/" + self._paths[at].replace("\\", "/")
            if any(end.endswith(f"/{spelt}") or f"/{spelt}".endswith(end) for end in (own, own.rpartition(".")[0])):
                exact.append(at)
        return exact or found

    def describe(self, positions: Sequence[int]) -> str:
        """Name the images of several positions, for a message."""
        shown = ", ".join(self.names[position] for position in positions[:3])
        return shown + (", …" if len(positions) > 3 else "")


class _Endings:
    """Names sorted by their last part, then by the folder before it, and so on: those of one ending lie together."""

    def __init__(self, names: Sequence[str], folder: tuple[str, ...], stems: bool) -> None:
        above: dict[str, tuple[str, ...]] = {}  # there are few folders: the same for many names
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
        """Return the positions of the names that end with these parts, given from the last one on."""
        first = bisect_left(self._paths, tail)
        last = bisect_left(self._paths, (*tail[:-1], f"{tail[-1]}\0"), lo=first)
        return sorted(self._positions[first:last])

    def inner(self, written: tuple[str, ...]) -> list[int]:
        """Return the positions of the longest name, folder included, that the written path ends with."""
        return next((self._inner[written[:n]] for n in range(len(written) - 1, 1, -1) if written[:n] in self._inner), [])


def split_path(name: str) -> tuple[str, ...]:
    """Return the folders and the file of a written path, folded, without drive, protocol, ``.`` and ``..``."""
    parts = fold(name.replace("\\", "/")).split("/")
    return tuple(part for part in parts if part not in ("", ".", "..") and not part.endswith(":"))


def is_foreign(name: str) -> bool:
    """Whether a written path starts from a disk, an address or the folder above: from where its writer stood."""
    spelt = name.replace("\\", "/")
    return spelt.startswith(("/", "../")) or spelt[1:2] == ":" or "://" in spelt
