r"""Images whose written paths lead nowhere, as the data set was made on another computer or put together in another way.

Only where not one image of a list or of an annotation file is where it says is another place looked for; where some are,
the others are missing. The images of the data set are listed once then, and a written path means

- the one image whose path ends with it, or whose whole path inside the folder, subfolder included, it ends with;
- if it starts from a disk, an address or the folder above (``C:\\x\\a.jpg``, ``../../upload/a.jpg``): the one image that
  agrees with most of its ending, with its base name at least.

An image of another split (``val/a.jpg`` for ``/data/train/a.jpg``) is never taken, nor one for two names.
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
    """Where images lie that are not where it is written.

    Attributes:
        paths: by the position of the name.
        guessed: one name whose folders do not agree with its image's; -1 if there is none.
        folder: where the images were looked for.
        problems: what was found while listing that.
    """

    paths: dict[int, Path] = field(default_factory=dict)
    guessed: int = -1
    folder: Path = Path()
    problems: list[Problem] = field(default_factory=list)

    def tell(self, names: Sequence[str], file: str) -> list[Problem]:
        """Return the problems, with one that says what was taken for what, unless all folders agree.

        Args:
            names: as given to ``find_moved``.
            file: the file that holds them.
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
        folders: where to look, with their subfolders, the likeliest first; the one with most of the images is taken.
        about: the split or the file that names the images, for those names that do not say their split.
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
        except OSError:  # a folder without permission, somewhere below: what is there cannot be trained on either
            continue
        if len(found.paths) > len(best.paths):
            best = found
        if len(best.paths) == len(names):
            break
    return best


def split_words(parts: Iterable[str]) -> set[str]:
    """Return the splits that names are those of: ``val2017`` and ``valid`` are ``val``."""
    return {match[1] for part in parts if (match := _SPLIT.fullmatch(part.lower()))}


class OtherSplits:
    """Tells the images of other splits: one in a folder called ``val`` is none of ``train``, whatever its name.

    Args:
        about: the split or the file that names the images, for those names that do not say their split.
    """

    def __init__(self, about: str) -> None:
        self._split = split_words(re.split(r"[^a-zA-Z0-9]+", about))
        self._words: dict[str, set[str]] = {}  # there are few folders: the same for many images

    def has(self, image: str, name: str) -> bool:
        """Whether an image, by its path, is of another split than what is written ``name`` would be."""
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
    claims: dict[int, list[tuple[int, int]]] = {}  # image -> (how many parts agree, which name)
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
    """Count the parts, from the last one on, that two paths have in common."""
    pairs = zip(reversed(first), reversed(second), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
