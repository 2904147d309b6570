"""A data set's own ids of classes and images, kept from training to the results of prediction.

COCO's tools compare results with annotations by these numbers alone. A model counts its classes from 0 and does not know
images, so the ids are stored in the metadata of checkpoints and exported files: ``category_ids`` (a JSON list in class
order) and ``image_ids`` (a JSON map from file to id, only if an id differs from the number in the file's name).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

__all__ = ["LONGEST_MAP", "Identity", "is_number_in_name"]

#: Maximum JSON characters of the map of image ids in a file's metadata; a longer one is not stored.
LONGEST_MAP = 1 << 20

_AMBIGUOUS = object()


@dataclass(frozen=True, slots=True)
class Identity:
    """A data set's own ids of its classes and images.

    Attributes:
        category_ids: id of each class, in the order of the model's indices; empty if unknown, -1 for a class that the data
            set lacks.
        image_ids: file -> id. Files are paths relative to the data set, with ``/``; of several data sets, after the number
            and the folder of each.
    """

    category_ids: tuple[int | str, ...] = ()
    image_ids: Mapping[str, int | str] = field(default_factory=dict)

    def category_id(self, label: int) -> int | str:
        """Return the id of the class with index ``label``: the data set's if known, else the index."""
        return self.category_ids[label] if label < len(self.category_ids) else label

    def images(self, paths: Sequence[str]) -> list[int | str]:
        """Return an id for each image of a run.

        An image is recognised by as many parent folders as needed to distinguish it; if several paths get the same id, the
        one with the most common folders wins, and none if that is not one file: they may be of different data sets. If at
        least one image is known, the others get their path as id, which no data set uses, so that none is mistaken for
        another image. If none is known: the numbers in the names, as in COCO's own images, if all have one and all differ;
        else the positions, from 1.
        """
        tails = self._tails()
        known = [_look_up(tails, path) for path in paths] if tails else []
        if any(length for _, length in known):
            longest: dict[int | str, int] = {}
            for value, length in known:
                longest[value] = max(length, longest.get(value, 1))
            files: dict[int | str, set[str]] = {}
            for path, (value, length) in zip(paths, known, strict=True):
                if length == longest[value]:
                    files.setdefault(value, set()).add(os.path.abspath(path))  # noqa: PTH100 - without links
            unique = {value for value, same in files.items() if len(same) == 1}
            return [
                value if length == longest[value] and value in unique else path
                for path, (value, length) in zip(paths, known, strict=True)
            ]
        stems = [Path(path).stem for path in paths]
        if all(stem.isascii() and stem.isdecimal() for stem in stems) and len({int(s) for s in stems}) == len(stems):
            return [int(stem) for stem in stems]
        return list(range(1, len(paths) + 1))

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata entries; a map of more than ``LONGEST_MAP`` characters is left out."""
        entries = {}
        if self.category_ids:
            entries["category_ids"] = json.dumps(list(self.category_ids), ensure_ascii=False)
        # surrogates represent bytes that are not UTF-8; escaped, they can be written anywhere
        text = json.dumps(dict(self.image_ids), ensure_ascii=True, separators=(",", ":"))
        if self.image_ids and len(text) <= LONGEST_MAP:
            entries["image_ids"] = text
        return entries

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Identity:
        """Parse what ``to_metadata`` wrote; empty if there is nothing, or nothing usable."""
        try:
            categories = json.loads(metadata.get("category_ids", "[]"))
            images = json.loads(metadata.get("image_ids", "{}"))
        except (ValueError, RecursionError):
            return cls()
        if not (isinstance(categories, list) and isinstance(images, dict)):
            return cls()
        if not all(_is_id(value) for value in (*categories, *images.values())):
            return cls()
        return cls(tuple(categories), images)

    def _tails(self) -> dict[str, object]:
        """Map every ending of every file's path to its id, or to a mark if files with different ids share it."""
        tails: dict[str, object] = {}
        for name, value in self.image_ids.items():
            parts = PurePosixPath(name).parts
            for start in range(len(parts)):
                tail = "/".join(parts[start:])
                tails[tail] = value if tails.get(tail, value) == value else _AMBIGUOUS
        return tails


def is_number_in_name(path: Path, image_id: int | str) -> bool:
    """Whether an image's id is just the number in its file's name, so that it need not be stored."""
    stem = path.stem
    return isinstance(image_id, int) and stem.isascii() and stem.isdecimal() and int(stem) == image_id


def _look_up(tails: Mapping[str, object], path: str) -> tuple[int | str, int]:
    """Return the id of an image, and how many parts of its path match; 0 of them if it is uncertain."""
    parts = Path(path).absolute().parts
    for start in range(1, len(parts)):
        found = tails.get("/".join(parts[start:]))
        if found is not None:
            return (found, len(parts) - start) if isinstance(found, int | str) else ("", 0)
    return "", 0


def _is_id(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)
