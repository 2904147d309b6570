r"""Find images whose written paths do not exist, because the data set was made on another computer or rearranged.

Other places are tried only if not a single image of a list or annotation file is where it says; if some are, the others are
missing. The images of the data set are then listed once, and a written path means

- the one image whose path ends with it, or whose whole path inside the folder, subfolders included, it ends with;
- if it is absolute, a URL, or starts above the folder (``C:\\x\\a.jpg``, ``../../upload/a.jpg``): the one image that
  matches most of its ending, at least its base name.

An image of another split (``val/a.jpg`` for ``/data/train/a.jpg``) is never used, nor one image for two names.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nextdetr.data.listing import NameIndex, is_foreign, list_images, split_path
from nextdetr.data.raw import plural
from nextdetr.data.records import Problem

__all__ = ["Moved", "OtherSplits", "find_moved", "split_words"]

_SPLIT = re.compile(r"(train|val|test|minival|trainval)(?:ing|id|idation)?[_-]?\d*")


@dataclass(slots=True)
class Moved:
    """Where images were found that are not at their written paths.

    Attributes:
        paths: by position of the name.
        guessed: one name whose folders do not match its image's; -1 if there is none.
        folder: folder that was searched.
        problems: problems found while listing it.
    """

    paths: dict[int, Path] = field(default_factory=dict)
    guessed: int = -1
    folder: Path = Path()
    problems: list[Problem] = field(default_factory=list)

    def tell(self, names: Sequence[str], file: str) -> list[Problem]:
        """Return the problems, including one about the guesses unless all folders match.

        Args:
            names: as given to ``find_moved``.
            file: file with the names.
        """
        if self.guessed < 0:
            return self.problems
        message = (
            f"not one of its {plural(len(names), 'image')} is where it says, as in a file of another computer; "
            f"{len(self.paths):,} of them are taken by name from {self.folder}, such as {self.paths[self.guessed]} for "
            f"{names[self.guessed]}"
        )
        return [*self.problems, Problem(file, "", message, "path of another computer")]


def find_moved(names: Sequence[str], folders: Iterable[Path], about: str = "") -> Moved:
    """Look for images by name.

    Args:
        names: as written.
        folders: folders to search, with their subfolders, most likely first; the one with most of the images is used.
        about: split or file of the names, for names that do not include their split.
    """
    best = Moved()
    others = OtherSplits(about)
    seen: set[Path] = set()
    for folder in folders:
        if folder in seen or not folder.is_dir():
            continue
        seen.add(folder)
        try:
            found = _look_in(folder, names, others)
        except OSError:  # an unreadable folder somewhere below: its images could not be used either
            continue
        if len(found.paths) > len(best.paths):
            best = found
        if len(best.paths) == len(names):
            break
    return best


def split_words(parts: Iterable[str]) -> set[str]:
    """Return the splits of names: ``val2017`` and ``valid`` are ``val``."""
    return {match[1] for part in parts if (match := _SPLIT.fullmatch(part.lower()))}


class OtherSplits:
    """Recognises images of other splits: one in a folder called ``val`` does not belong to ``train``, whatever its name.

    Args:
        about: split or file of the names, for names that do not include their split.
    """

    def __init__(self, about: str) -> None:
        self._split = split_words(re.split(r"[^a-zA-Z0-9]+", about))
        self._words: dict[str, set[str]] = {}  # there are few folders, shared by many images

    def has(self, image: str, name: str) -> bool:
        """Whether an image, by its path, belongs to another split than the written ``name``."""
        parent = image.rpartition("/")[0]
        if parent not in self._words:
            self._words[parent] = split_words(parent.split("/"))
        own = self._words[parent]
        wanted = own and (split_words(split_path(name)[-4:-1]) or self._split)
        return bool(wanted) and own.isdisjoint(wanted)


def _look_in(folder: Path, names: Sequence[str], others: OtherSplits) -> Moved:
    listing = list_images(folder)
    found = Moved(folder=folder, problems=listing.problems)
    if not listing.files:
        return found
    own = [path.relative_to(folder).as_posix() for path in listing.files]
    index = NameIndex(own, folder)
    claims: dict[int, list[tuple[int, int]]] = {}  # image -> (number of matching parts, name)
    sure = set()
    for position, name in enumerate(names):
        hits = index.find(name)
        if hits and not is_foreign(name):
            sure.add(position)
        elif not hits and is_foreign(name):
            hits = index.nearest(name)
        if len(hits) != 1:
            continue
        if not others.has(own[hits[0]], name):
            agreed = _agreement(split_path(name), split_path(own[hits[0]]))
            claims.setdefault(hits[0], []).append((agreed, position))
    for image, claimants in claims.items():
        claimants.sort(reverse=True)
        if len(claimants) == 1 or claimants[0][0] > claimants[1][0]:
            position = claimants[0][1]
            found.paths[position] = listing.files[image]
            if position not in sure:
                found.guessed = position if found.guessed < 0 else min(found.guessed, position)
    return found


def _agreement(first: Sequence[str], second: Sequence[str]) -> int:
    """Count the common trailing parts of two paths."""
    pairs = zip(reversed(first), reversed(second), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
