"""Read a split of a data set in any format; ``formats.py`` has the list."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from nextdetr.data.check import finish
from nextdetr.data.folders import YAML_NAMES
from nextdetr.data.formats import Source, open_source
from nextdetr.data.joined import DataSets, join, sets_of, sets_text, without
from nextdetr.data.objects import split_called
from nextdetr.data.raw import RawSplit
from nextdetr.data.recognise import SplitReader
from nextdetr.data.records import DetectionData
from nextdetr.errors import DataError

__all__ = [
    "available_splits", "is_data_set", "is_unfinished", "load_data", "other_images", "read_raw", "require_splits",
    "with_own_ids",
]  # fmt: skip

_ORDER = ("train", "val", "test")


def load_data(
    path: DataSets,
    split: str,
    *,
    classes: Sequence[str] | None = None,
    on_bad_data: Literal["warn", "error"] = "warn",
    check_images: bool = True,
    min_confidence: float | None = None,
    advice: Callable[[Sequence[str]], str] | None = None,
) -> DetectionData:
    """Read and check one split of a data set, or of several as one; see ``joined.join``.

    Args:
        path: a folder or a file of one of the ``formats.FORMATS``, several of them, or a YAML that lists several.
        split: ``train``, ``val``, ``test`` or another split of the data set; ``val`` also finds ``valid`` and ``val2017``.
        classes: names in the order of a model's indices; the data set's own are matched by name, and objects of other
            classes are dropped and reported. None uses the data set's classes in its order.
        on_bad_data: "warn" drops what is unusable and lists it in ``problems``; "error" refuses the data set.
        check_images: decode every image; otherwise only headers are read, for the size.
        min_confidence: drop boxes with a lower confidence, if labels have one; None uses a YAML's limit, else all boxes.
        advice: given the splits that there are, returns what to do if ``split`` is none of them: the end of the message.

    Raises:
        DataError: there is no such data set or split, an essential file cannot be read, no image can be used, none of
            ``classes`` is there, or ``on_bad_data`` is "error" and there is a problem.
    """
    sets = sets_of(path)
    there = sets if len(sets) == 1 else [each for each in sets if _plain(split) in map(_plain, _split_names(each))]
    if not there:
        raise _no_split(sets_text(path), split, available_splits(path), advice)
    options = (on_bad_data, check_images, min_confidence)
    if len(sets) == 1:
        return _load(there[0], split, classes, options, advice)
    unknown: list[str] = []
    parts = [_load(each, split, None, options) for each in there]
    if _plain(split) == "train":
        learnt = {each: {record.path for record in part.records} for each, part in zip(there, parts, strict=True)}
        held = [(str(each), _held_out(each, learnt.get(each, set()), unknown)) for each in sets]
        parts = [
            without(part, str(each), [(name, images) for name, images in held if name != str(each)])
            for each, part in zip(there, parts, strict=True)
        ]
    numbers = [sets.index(each) + 1 for each in there]
    joined = join(parts, [str(each) for each in there], classes, numbers=numbers)
    return replace(joined, notes=(*unknown, *joined.notes))


def _load(
    path: Path,
    split: str,
    classes: Sequence[str] | None,
    options: tuple[Literal["warn", "error"], bool, float | None],
    advice: Callable[[Sequence[str]], str] | None = None,
) -> DetectionData:
    """Read and check one split of one data set."""
    on_bad_data, check_images, min_confidence = options
    try:
        source = open_source(path)
        raw = _find_split(source, split, path, advice)(classes)
    except OSError as error:
        raise _unreadable(path, error) from error
    data = finish(
        raw, name=source.name, split=split, on_bad_data=on_bad_data, check_images=check_images,
        min_confidence=min_confidence,
    )  # fmt: skip
    return replace(data, recognised=source.recognised)


def _held_out(path: Path, learnt: set[Path], unknown: list[str]) -> list[Path]:
    """Return the images of a data set that are in other splits than ``train`` alone, as VOC's ``trainval`` includes it.

    Args:
        path: the data set.
        learnt: the images of its ``train``.
        unknown: list to which a sentence is appended for each split that cannot be read.
    """
    found: list[Path] = []
    for split, images in other_images(path, ["train"]):
        try:
            found += [file for file, _ in images() if file not in learnt]
        except DataError as error:
            unknown.append(f"Images of the split {split} of {path} are not looked for in the other sets, since: {error}")
    return found


def read_raw(path: str | Path, split: str) -> RawSplit:
    """Return a split as in its files, before any check; not of several data sets.

    Raises:
        DataError: see ``load_data``.
    """
    path = Path(path).expanduser()
    try:
        return _find_split(open_source(path), split, path)(None)
    except OSError as error:
        raise _unreadable(path, error) from error


def with_own_ids(path: str | Path) -> list[tuple[str, Callable[[], RawSplit]]]:
    """Return, for each split of a data set whose files may have ids of their own, its name and a function that reads it.

    Raises:
        DataError: there is no such data set; also raised by the function, if a file of the split cannot be read.
    """
    path = Path(path).expanduser()
    source = open_source(path)
    if "coco" not in source.recognised:  # other formats have none, and would be read for nothing
        return []
    return [(split, partial(read_raw, path, split)) for split in source.readers]


def other_images(path: str | Path, known: Sequence[str]) -> list[tuple[str, Callable[[], list[tuple[Path, int | str]]]]]:
    """Return, for each split that is not ``known``, its name and a function for (path, id) of its images; none is opened.

    Raises:
        DataError: there is no such data set; also raised by the function, if a file of the split cannot be read.
    """
    path, plain = Path(path).expanduser(), {_plain(split) for split in known}
    source = open_source(path)

    def images(reader: SplitReader) -> list[tuple[Path, int | str]]:
        try:
            return [(image.path, image.image_id) for image in reader(None).images]
        except OSError as error:
            raise _unreadable(path, error) from error

    others = {split: reader for split, reader in source.readers.items() if _plain(split) not in plain}
    return [(split, partial(images, reader)) for split, reader in others.items()]


def available_splits(path: DataSets) -> list[str]:
    """Return the names of the splits that ``load_data`` finds: train, val and test first.

    Raises:
        DataError: there is no such data set, or its YAML cannot be read.
    """
    shown = set()
    for each in sets_of(path):
        names = _split_names(each)
        plain = [_plain(name) for name in names]
        shown |= {short if plain.count(short) == 1 else name for name, short in zip(names, plain, strict=True)}
    return sorted(shown, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))


def _split_names(path: Path) -> list[str]:
    """Return the names of the splits of one data set, as it spells them."""
    try:
        return list(open_source(path).readers)
    except OSError as error:
        raise _unreadable(path, error) from error


def require_splits(path: DataSets) -> bool:
    """Check that a data set has a training split, and return whether it has one to choose the best weights.

    Without the latter, ``split.split_off`` makes one.

    Raises:
        DataError: there is no train; the message says what to do.
    """
    there = available_splits(path)
    if not there:
        raise DataError(
            f"{sets_text(path)}: no split is named, and training needs train, to learn from, and val, to choose the best "
            "weights by. Write where the images of each are."
        )
    plain = {_plain(name) for name in there}
    if "train" not in plain:
        raise DataError(
            f"{sets_text(path)}: training needs the split train, to learn from; there is none, but {', '.join(there)}. "
            "Name one of them train."
        )
    return "val" in plain


def is_data_set(path: str | Path) -> bool:
    """Whether ``load_data`` recognises a folder or file.

    Raises:
        DataError: it is described by a ``data.yaml`` that has an error.
    """
    path = Path(path).expanduser()
    try:
        return bool(available_splits(path))
    except DataError:
        if any((path / name).is_file() for name in YAML_NAMES):
            raise
        return False


def is_unfinished(path: str | Path) -> bool:
    """Whether a folder is a data set without held-out images, some of whose images may not be annotated yet.

    Raises:
        DataError: see ``is_data_set``.
    """
    path = Path(path).expanduser()
    if not path.is_dir() or not is_data_set(path) or sets_of(path) != [path]:
        return False
    source = open_source(path)
    return source.unfinished and [_plain(split) for split in source.readers] == ["train"]


def _unreadable(path: Path, error: OSError) -> DataError:
    """Build the error for an unreadable folder, a name that is too long, or a failing disk."""
    return DataError(f"{error.filename or path} cannot be read: {error.strerror or error}.")


def _plain(split: str) -> str:
    """Normalise a split name: ``val2017``, ``valid`` and ``validation`` are ``val``, CVAT's ``default`` is ``train``."""
    name = re.sub(r"[_-]?(19|20)\d\d$", "", split.lower())
    return split_called(name) or {"default": "train"}.get(name, name)


def _find_split(
    source: Source, split: str, path: Path, advice: Callable[[Sequence[str]], str] | None = None
) -> SplitReader:
    if split in source.readers:
        return source.readers[split]
    alike = [name for name in source.readers if _plain(name) == _plain(split)]
    if len(alike) == 1:
        return source.readers[alike[0]]
    if alike:
        raise DataError(f"{path}: the split {split} may be any of {', '.join(alike)}: choose one of these.")
    raise _no_split(str(path), split, available_splits(path), advice)


def _no_split(shown: str, split: str, there: Sequence[str], advice: Callable[[Sequence[str]], str] | None) -> DataError:
    told = f" {advice(there)}" if there and advice is not None else ""
    return DataError(f"{shown}: there is no split {split}; available: {', '.join(there) or 'none'}.{told}")
