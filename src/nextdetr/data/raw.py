"""What readers pass to ``check.finish``: images and boxes as in the files; and helpers to read text files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from nextdetr.data.listing import NameIndex, is_foreign
from nextdetr.data.records import Problem
from nextdetr.errors import DataError
from nextdetr.files import path_text

__all__ = [
    "BoxTable",
    "NameList",
    "RawImage",
    "RawSplit",
    "choose",
    "find_nearest",
    "map_classes",
    "parse_yaml",
    "plural",
    "read_lines",
    "read_name_list",
]

_NOTHING = ("null", "Null", "NULL", "~")


@dataclass(frozen=True, slots=True)
class RawImage:
    """An image named by the annotations; its file may not exist.

    Attributes:
        path: expected path.
        image_id: as in ``ImageRecord``.
        file, where: annotation or list file that names it, and the position in it; for messages.
        size: declared (width, height), or None.
    """

    path: Path
    image_id: int | str
    file: str = ""
    where: str = ""
    size: tuple[float, float] | None = None


@dataclass(slots=True)
class RawSplit:
    """One split as in its files; the boxes of all images are in one table.

    Attributes:
        classes: names; the position is the model's index.
        category_ids: the files' own ids, in the order of ``classes``; -1 for a class unknown to the files.
        images: the images in file order.
        box_image: [M] int64, position in ``images``.
        boxes: [M, 4] float64 xyxy, pixels or fractions of the image; any value including NaN.
        labels: [M] int64, model indices.
        crowd: [M] bool.
        areas: [M] float64, square pixels; NaN if the files give none.
        where: returns (file, position in it) of box m.
        problems: problems found while parsing.
        fractions: whether ``boxes`` are fractions of the image's size.
        extents: whether the files give width and height, which may be confused with a corner.
        source: file or folder to name if nothing in it can be used.
        own_ids: as in ``DetectionData``.
        confidence: [M] float64, 0 to 1, NaN if a box has none; None if no box has one.
        min_confidence: boxes with a lower confidence are dropped.
    """

    classes: list[str]
    category_ids: list[int | str]
    images: list[RawImage]
    box_image: NDArray[np.int64]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    where: Callable[[int], tuple[str, str]]
    problems: list[Problem]
    fractions: bool = False
    source: str = ""
    own_ids: bool = False
    confidence: NDArray[np.float64] | None = None
    min_confidence: float = 0.0
    extents: bool = False


@dataclass(slots=True)
class BoxTable:
    """Collects boxes one by one, for formats with one file per image."""

    images: list[int] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    places: list[tuple[str, str]] = field(default_factory=list)
    crowds: list[bool] = field(default_factory=list)
    confidences: dict[int, float] = field(default_factory=dict)

    def add(
        self,
        image: int,
        box: tuple[float, float, float, float],
        label: int,
        place: tuple[str, str],
        *,
        crowd: bool = False,
        confidence: float | None = None,
    ) -> None:
        """Append one xyxy box of image ``image``, found at ``place`` (file, where)."""
        if confidence is not None:
            self.confidences[len(self.labels)] = confidence
        self.images.append(image)
        self.boxes.append(box)
        self.labels.append(label)
        self.places.append(place)
        self.crowds.append(crowd)

    def split(
        self,
        classes: tuple[list[str], list[int | str]],
        images: list[RawImage],
        problems: list[Problem],
        *,
        source: str,
        fractions: bool = False,
    ) -> RawSplit:
        """Return everything as a ``RawSplit``; ``classes`` are (names, category ids)."""
        count = len(self.labels)
        return RawSplit(
            classes[0],
            classes[1],
            images,
            np.array(self.images, dtype=np.int64),
            np.array(self.boxes, dtype=np.float64).reshape(count, 4),
            np.array(self.labels, dtype=np.int64),
            np.array(self.crowds, dtype=np.bool_),
            np.full(count, np.nan),
            self.places.__getitem__,
            problems,
            fractions,
            source,
            confidence=self._confidence(),
        )

    def _confidence(self) -> NDArray[np.float64] | None:
        if not self.confidences:
            return None
        values = np.full(len(self.labels), np.nan)
        values[list(self.confidences)] = list(self.confidences.values())
        return values


@dataclass(frozen=True, slots=True)
class NameList:
    """Names of images, from a list file or from the dataset YAML itself.

    Attributes:
        file: the file that holds the list.
        entries: pairs (position in the file, name), in order and without duplicates.
        problems: names listed twice.
    """

    file: str
    entries: list[tuple[str, str]]
    problems: list[Problem]

    @classmethod
    def build(cls, file: str, entries: Iterable[tuple[str, str]]) -> NameList:
        """Drop and report repeated names."""
        first: dict[str, str] = {}
        problems = []
        for where, name in entries:
            if name in first:
                message = f"{name} is listed twice (first at {first[name]}); counted once"
                problems.append(Problem(file, where, message, "image listed twice"))
            else:
                first[name] = where
        return cls(file, [(where, name) for name, where in first.items()], problems)


def choose(index: NameIndex, include: NameList, missing: str, kind: str, problems: list[Problem]) -> list[int]:
    """Return the positions of the images that a list names, in its order and each once, and report unclear names.

    Args:
        index: the images.
        include: the list.
        missing: clause for an image that does not exist, with {name}.
        kind: the kind of that problem.
        problems: list to which problems are appended.
    """
    chosen: dict[int, str] = {}
    hits = [index.find(name) for _, name in include.entries]
    if not any(hits):
        hits = find_nearest(index, include, problems)
    for (where, name), found in zip(include.entries, hits, strict=True):
        if not found:
            problems.append(Problem(include.file, where, missing.format(name=name), kind))
        elif len(found) > 1:
            message = f"{name} may be any of {index.describe(found)}, so none is taken; write the folder too"
            problems.append(Problem(include.file, where, message, "ambiguous name"))
        elif found[0] in chosen:
            message = f"{name} is listed twice (first as {chosen[found[0]]}); counted once"
            problems.append(Problem(include.file, where, message, "image listed twice"))
        else:
            chosen[found[0]] = name
    return list(chosen)


def find_nearest(
    index: NameIndex, include: NameList, problems: list[Problem], spelt: Sequence[str] = ()
) -> list[list[int]]:
    """Match paths of another computer by their longest endings; no image is matched twice.

    Args:
        index: the images.
        include: the list, of which no name was found as written.
        problems: list to which problems are appended.
        spelt: names of the list as in the index, for example without extensions; by default as written.
    """
    pairs = zip(include.entries, spelt or [name for _, name in include.entries], strict=True)
    hits = [index.nearest(other) if is_foreign(name) else [] for (_, name), other in pairs]
    counts = Counter(found[0] for found in hits if len(found) == 1)
    hits = [found if len(found) != 1 or counts[found[0]] == 1 else [] for found in hits]
    taken = [(name, found[0]) for (_, name), found in zip(include.entries, hits, strict=True) if len(found) == 1]
    if taken:
        message = (
            f"not one of its {plural(len(hits), 'name')} is the path of an image, as in a list of another computer; "
            f"{len(taken):,} of them are taken by their endings, such as {index.names[taken[0][1]]} for {taken[0][0]}"
        )
        problems.append(Problem(include.file, "", message, "path of another computer"))
    return hits


def read_name_list(path: Path) -> NameList:
    """Read a list file: one name per line; empty lines are skipped.

    Raises:
        DataError: the file cannot be read.
    """
    lines = ((f"line {number}", line.strip()) for number, line in enumerate(read_lines(path), start=1))
    return NameList.build(str(path), ((where, line) for where, line in lines if line))


def read_lines(path: Path) -> list[str]:
    """Read a text file, UTF-8 with or without a BOM; bytes that are not UTF-8 survive in file names.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def parse_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping with every scalar as a string, so that a class may be called ``no``, ``on`` or ``007``.

    A key whose value is ``null``, as Python writes None, is left out.

    Raises:
        DataError: the file cannot be read, is not valid YAML (the message has the line), or is not a mapping.
    """
    try:
        # BaseLoader builds only strings, lists and dicts
        text = path.read_bytes()
        _refuse_doubles(path, yaml.compose(text, Loader=yaml.BaseLoader), set())
        content = yaml.load(text, Loader=yaml.BaseLoader)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise DataError(f"{path}{line}: not valid YAML ({error.problem or error.context}).") from error
    except yaml.reader.ReaderError as error:
        raise DataError(f"{path}: not valid YAML (not UTF-8 at character {error.position}).") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"{path}: not valid YAML ({type(error).__name__}).") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: a dataset file is a mapping of keys such as train, val and names; this one is not.")
    return {key if isinstance(key, str) else str(key): value for key, value in content.items() if value not in _NOTHING}


def _refuse_doubles(path: Path, node: yaml.Node | None, done: set[int]) -> None:
    """Refuse a mapping with a repeated key, of which YAML would silently take the last; ``done`` are visited nodes."""
    if id(node) in done:  # an alias: without this, a few lines of nested aliases would take forever
        return
    done.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise DataError(f"{path}, line {line}: {key.value} is given again, after line {seen[key.value]}.")
                seen[key.value] = line
            _refuse_doubles(path, value, done)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_doubles(path, value, done)


def map_classes(
    own: Mapping[int, str], wanted: Sequence[str] | None, source: str
) -> tuple[tuple[list[str], list[int | str]], dict[int, int]]:
    """Assign model indices to the classes of a data set.

    Args:
        own: own id and name of each class.
        wanted: names in the model's order; None uses the data set's own classes in their order.
        source: name for the error message.

    Returns:
        ((names, own id of each name or -1), map from own id to model index; ids of unwanted classes are not in it).

    Raises:
        DataError: none of the wanted classes is among the data set's own.
    """
    own = {own_id: path_text(name) for own_id, name in own.items()}  # of other bytes than UTF-8 no file can be written
    names = list(dict.fromkeys(own.values())) if wanted is None else [path_text(name) for name in wanted]
    index = {name: position for position, name in enumerate(names)}
    if own and wanted is not None and not any(name in index for name in own.values()):
        raise DataError(
            f"{source}: has none of the classes asked for ({_listing(names)}); its own are {_listing(own.values())}. Names "
            "must be spelt the same."
        )
    first: dict[str, int] = {}
    for own_id, name in own.items():
        first.setdefault(name, own_id)
    ids: list[int | str] = [first.get(name, -1) for name in names]
    return (names, ids), {own_id: index[name] for own_id, name in own.items() if name in index}


def plural(count: int, noun: str) -> str:
    """Return "1 box", "2 boxes", "3 classes", "4,000 images"."""
    ending = "" if count == 1 else "es" if noun.endswith(("x", "s")) else "s"
    return f"{count:,} {noun}{ending}"


def _listing(names: Iterable[str]) -> str:
    shown = list(dict.fromkeys(names))
    return ", ".join(shown[:8]) + (", …" if len(shown) > 8 else "")
