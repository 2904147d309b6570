"""Write a data set in the layouts that most programs read: COCO, YOLO and Pascal VOC.

The result has every split, every class in order, and every box as read and checked; reading it again gives the same boxes
to the last digit. Crowds are kept in COCO; the other formats cannot hold them, so they are dropped and counted. Images are
copied unchanged, or linked.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nextdetr.data.records import DetectionData, ImageRecord, Problem
from nextdetr.data.sources import available_splits, load_data
from nextdetr.data.writers import WRITERS, Named
from nextdetr.errors import ConfigError, DataError, WriteError
from nextdetr.files import make_directory, remove_leftovers, temporary_name
from nextdetr.pictures import is_picture_name, open_picture

__all__ = ["ConvertResult", "convert"]

_YOLO_SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """What ``convert`` wrote; the fields of the JSON result.

    Attributes:
        data: the data set that was read.
        recognised: how it was recognised.
        to: the format that was written.
        output: the folder.
        classes: class names in order.
        splits: by name, the number of ``images`` and ``boxes`` written.
        crowds_left_out: boxes that the format cannot hold.
        confidences_left_out: boxes whose confidence the format cannot hold.
        problems: what was dropped, changed or doubtful on reading; not in the JSON.
    """

    data: str
    recognised: str
    to: str
    output: str
    classes: list[str]
    splits: dict[str, dict[str, int]]
    crowds_left_out: int = 0
    confidences_left_out: int = 0
    splits_left_out: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON result of the command."""
        return {"command": "convert", **{key: value for key, value in asdict(self).items() if key != "problems"}}


def convert(
    data: str | Path,
    to: Literal["coco", "yolo", "voc"],
    output: str | Path,
    *,
    images: Literal["copy", "link"] = "copy",
    on_bad_data: Literal["warn", "error"] = "warn",
    min_confidence: float | None = None,
) -> ConvertResult:
    """Write a data set in another format, or a cleaned copy in the same one.

    Args:
        data: as for ``load_data``.
        to: format to write.
        output: folder that does not exist yet, or is empty; it appears, or is filled, when everything is written.
        images: copy the image files, or link to them: symbolic links, or hard links if the system allows no others.
        on_bad_data: "warn" drops what is unusable; "error" refuses the data set.
        min_confidence: drop boxes with a lower confidence; None uses a YAML's limit, else all boxes.

    Raises:
        DataError: see ``load_data``.
        ConfigError: ``output`` is not empty, or is the data set itself, or there is no such format.
        WriteError: it cannot be written.
    """
    target = Path(output).expanduser()
    remove_leftovers(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target}: holds something already; name a new folder with --output.")
    if to not in WRITERS:
        raise ConfigError(f"{to}: no format that is written here; choose from {', '.join(WRITERS)}.")
    parts, left = _read(data, to, on_bad_data, min_confidence)
    classes = parts[0].classes
    with _new_folder(target) as folder:
        named = _name_images(parts, to)
        sources = {name.path: record.path for part, names in zip(parts, named, strict=True)
                   for record, name in zip(part.records, names, strict=True)}  # fmt: skip
        for name, source in sources.items():
            _place(source, folder / name, images)
        WRITERS[to](folder, parts, named)
    crowds = 0 if to == "coco" else sum(int(record.crowd.sum()) for part in parts for record in part.records)
    sure = [record.confidence for part in parts for record in part.records if to == "voc" and record.confidence is not None]
    counts = {part.split: _count(part, with_crowds=to == "coco") for part in parts}
    problems = list(dict.fromkeys(problem for part in parts for problem in part.problems))  # some concern the whole set
    return ConvertResult(
        str(data), parts[0].recognised, to, str(target), list(classes), counts, crowds,
        sum(int(np.isfinite(values).sum()) for values in sure), left, problems,
    )  # fmt: skip


def _read(
    data: str | Path, to: str, on_bad_data: Literal["warn", "error"], min_confidence: float | None
) -> tuple[list[DetectionData], list[str]]:
    """Read all splits with the same class order; return them, and the names of those left out."""
    splits = available_splits(data)
    if not splits:
        raise DataError(f"{data}: no split is named, so there is nothing to convert.")
    parts = [load_data(data, split, on_bad_data=on_bad_data, min_confidence=min_confidence) for split in splits]
    parts = _without_unions(data, parts) if to == "yolo" else parts
    left = [split for split in splits if split not in {part.split for part in parts}]
    classes = list(dict.fromkeys(name for part in parts for name in part.classes))
    own = {name: number for part in reversed(parts) for name, number in zip(part.classes, part.category_ids, strict=True)}
    return [_with_classes(part, classes, [own[name] for name in classes]) for part in parts], left


def _without_unions(data: str | Path, parts: list[DetectionData]) -> list[DetectionData]:
    """Leave out splits unknown to YOLO programs if their images are in the others (VOC's ``trainval``).

    Raises:
        DataError: there is another such split.
    """
    known = [part for part in parts if part.split in _YOLO_SPLITS]
    there = {record.path for part in known for record in part.records}
    for part in parts:
        if part.split not in _YOLO_SPLITS and not all(record.path in there for record in part.records):
            named = part.recognised.split(":")[0] in (*WRITERS, "yaml")  # other formats have no such YAML
            also = "" if named else " of what convert --to coco writes"
            raise DataError(
                f"{data}: programs for YOLO look for {', '.join(_YOLO_SPLITS)} and would miss the split {part.split}; name "
                f"the splits accordingly in a dataset YAML{also}."
            )
    return known


def _with_classes(part: DetectionData, classes: list[str], ids: list[int | str]) -> DetectionData:
    """Give a split the classes of all splits."""
    table = np.array([classes.index(name) for name in part.classes] or [0], dtype=np.int64)
    records = [replace(record, labels=table[record.labels]) for record in part.records]
    return replace(part, classes=classes, category_ids=ids, records=records)


def _count(part: DetectionData, *, with_crowds: bool) -> dict[str, int]:
    boxes = sum(len(record.labels) if with_crowds else int((~record.crowd).sum()) for record in part.records)
    return {"images": len(part.records), "boxes": boxes}


def _name_images(parts: Sequence[DetectionData], to: str) -> list[list[Named]]:
    """Name each image in the new folder as in its split's own folder, each name once.

    An image in several splits, as those of VOC's ``trainval``, is written once in COCO and VOC. In YOLO and VOC, two images
    must not differ in their extension alone, since they would share an annotation file.
    """
    taken: set[str] = set()
    known: dict[Path, tuple[ImageRecord, Named]] = {}
    everywhere = [[Path(os.path.abspath(record.path)) for record in part.records] for part in parts]  # noqa: PTH100 - links keep their names
    shared = len(set().union(*everywhere)) < sum(map(len, everywhere))
    found = []
    for part, paths in zip(parts, everywhere, strict=True):
        own = "images" if shared else part.split
        folder = {"coco": own, "yolo": f"images/{part.split}", "voc": "JPEGImages"}[to]
        top = _common_folder(paths)
        names = []
        for record, path in zip(part.records, paths, strict=True):
            if path in known and (to == "coco" or (to == "voc" and _same_boxes(known[path][0], record))):
                names.append(known[path][1])
                continue
            inside = _inside(path, top, to)
            name, number = inside, 1
            while _key(folder, name, to) in taken:
                number += 1
                name = inside.with_name(f"{inside.stem}-{number}{inside.suffix}")
            taken.add(_key(folder, name, to))
            names.append(Named(name.as_posix(), f"{folder}/{name.as_posix()}"))
            known[path] = record, names[-1]
        found.append(names)
    return found


def _same_boxes(first: ImageRecord, second: ImageRecord) -> bool:
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in ("boxes", "labels", "crowd"))


def _inside(path: Path, top: Path, to: str) -> Path:
    """Return an image's path below the folder of its split, where every reader finds it.

    Hidden folders get another name. In YOLO, folders called images are left out: the last one of that name would be
    replaced to find the labels. In YOLO and VOC, an image without a usual ending gets one, as only such files are listed.
    In VOC, names lose spaces around them, as lists have a name in each line.
    """
    inside = path.relative_to(top) if path.is_relative_to(top) else Path(path.name)
    parts = [part.lstrip(".") or "_" for part in inside.parts]
    if to != "coco" and not is_picture_name(parts[-1]):
        parts[-1] += _ending(path)
    if to == "voc":
        stem, dot, ending = parts[-1].rpartition(".")
        parts = [*(part.strip() for part in parts[:-1]), f"{stem.strip() or '_'}{dot}{ending}"]
    return Path(*(part for part in parts[:-1] if to != "yolo" or part.lower() != "images"), parts[-1])


def _ending(path: Path) -> str:
    """Return the usual ending of an image's format."""
    with open_picture(path) as image:
        kind = (image.format or "jpeg").lower()
    return {"jpeg": ".jpg", "jpeg2000": ".jp2"}.get(kind, f".{kind}")


def _key(folder: str, name: Path, to: str) -> str:
    """Return the key that must be unique; many file systems ignore case."""
    return f"{folder}/{name if to == 'coco' else name.with_suffix('')}".casefold()


def _common_folder(paths: Sequence[Path]) -> Path:
    try:
        return Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError:  # on different drives
        return paths[0].parent


@contextlib.contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``target`` that is renamed to it at the end, and removed if the block fails.

    If ``target`` exists, it is filled instead, as a mounted disk or the working folder cannot be replaced.
    """
    inside = target.is_dir()
    make_directory(target.parent)
    remove_leftovers(target.parent)
    folder = (target if inside else target.parent) / temporary_name(target)
    try:
        folder.mkdir()
    except OSError as error:
        raise WriteError(f"{target}: the folder cannot be made ({error.strerror or error}).") from error
    try:
        yield folder
        if not inside:
            folder.replace(target)
        for entry in sorted(folder.iterdir()) if inside else ():
            entry.replace(target / entry.name)
    except OSError as error:
        raise WriteError(f"{target}: cannot be written ({error.strerror or error}); nothing is left of it.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place(source: Path, target: Path, images: Literal["copy", "link"]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if images == "copy":
        shutil.copyfile(source, target)
        return
    real = source.resolve()
    try:
        target.symlink_to(real)
    except OSError:
        try:
            os.link(real, target)
        except OSError as error:
            raise WriteError(
                f"{target.name}: this system cannot link to {real} ({error.strerror or error}); use --images copy."
            ) from error
