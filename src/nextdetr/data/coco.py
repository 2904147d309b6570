"""COCO files: a JSON with images, annotations and categories (https://cocodataset.org/#format-data).

Boxes are (x, y, width, height) in pixels. All categories count as classes, in the order of the file, with or without
objects. Ids may have gaps, start at 0, or be strings. An ``area`` that is missing or not positive is replaced by the box's
area, as files without masks often have zeros. An annotation without a box, or with a box of zeros, gets the box of its
mask. An image without a ``file_name`` gets it from its ``coco_url``, as in LVIS.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextdetr.data.coco_masks import box_of_mask
from nextdetr.data.coco_results import from_results
from nextdetr.data.listing import NameIndex
from nextdetr.data.moved import find_moved
from nextdetr.data.raw import NameList, RawImage, RawSplit, choose, map_classes, plural
from nextdetr.data.records import Problem
from nextdetr.errors import DataError

__all__ = ["read_coco"]

# value for a reference to an unknown id
_UNKNOWN, _UNWANTED = -1, -2
_NOWHERE = "images not found"
_ABOVE = 8  # levels above the image folder at which a name in results may start


def read_coco(
    annotation_file: Path, folders: Sequence[Path], *, include: NameList | None = None, classes: Sequence[str] | None = None
) -> RawSplit:
    """Read one annotation file.

    Args:
        annotation_file: the JSON.
        folders: candidate folders of the images; the one with most of the first images is used. If none has any, they are
            searched by name: see ``moved.py``. If empty, images are not looked up.
        include: file names of the images to use; None uses all.
        classes: names in the model's order; None uses the file's categories in their order.

    Raises:
        DataError: the file is missing, not valid JSON (the message has the line), or not a COCO file.
    """
    content, is_results = _load(annotation_file)
    file = str(annotation_file)
    problems: list[Problem] = list(include.problems) if include else []
    own, category_index = _categories(content["categories"], file, problems)
    own = _without_parents(own, category_index, content, classes or ())
    (names, ids), to_label = map_classes(own, classes, file)
    written = {category_index[key]: key for key in reversed(category_index)}  # keep the file's own spelling, "7" or 7
    spelt: dict[int | str, int | str] = {own_id: key for own_id, key in written.items() if isinstance(key, str)}
    mapped = names, [spelt.get(own_id, own_id) for own_id in ids]
    images, image_index, file_names = _images(content["images"], file, folders, is_results, problems)
    if include is not None:
        images, image_index = _select(images, image_index, file_names, include, problems)
    labels = {key: to_label[own_id] for key, own_id in category_index.items() if own_id in to_label}
    raw = _annotations(content["annotations"], file, (images, image_index), (mapped, labels), problems)
    raw.own_ids = not is_results
    return raw


def _load(path: Path) -> tuple[dict[str, list[Any]], bool]:
    """Return the content, and whether it was a list of results."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such annotation file.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}).") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}).") from error
    if isinstance(content, list):
        return from_results(content, path), True
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a COCO file, which is an object with images, annotations and categories.")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            own = " It is datumaro's own format: export it with -f coco_instances." if "items" in content else ""
            raise DataError(f'{path}: not a COCO file: it has no list "{key}".{own}')
    return content, False


def _integer(value: Any) -> int | None:
    """Parse an id written as 3, 3.0 or "3"; None if it is none of these."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if re.fullmatch(r"-?\d{1,18}", text, re.ASCII) else None
    if isinstance(value, float):
        return int(value) if math.isfinite(value) and value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _keys(value: Any) -> list[Any]:
    """Return the spellings by which an id may be referenced: 3 and "3"."""
    if type(value) is int:  # the usual case
        return [value, str(value)]
    number = _integer(value)
    if number is not None:
        return list(dict.fromkeys((value, number, str(number))))
    return [value] if isinstance(value, str) else []


def _categories(entries: list[Any], file: str, problems: list[Problem]) -> tuple[dict[int, str], dict[Any, int]]:
    """Return (id -> name, any spelling of an id -> id)."""
    own: dict[int, str] = {}
    index: dict[Any, int] = {}
    for position, entry in enumerate(entries):
        where = f"category number {position + 1}"
        if not isinstance(entry, dict) or not _keys(entry.get("id")):
            problems.append(Problem(file, where, "it has no usable id; dropped", "malformed category"))
            continue
        number = _integer(entry["id"])
        own_id = position if number is None else number
        name = str(entry.get("name") or entry["id"]).strip()
        if own_id in own or entry["id"] in index:
            message = f"the id {entry['id']} of {name} is taken by {own.get(own_id)}; {name} is dropped"
            problems.append(Problem(file, where, message, "duplicated category"))
            continue
        if number is None:
            message = f"the id {entry['id']!r} of {name} is not a number; its position, {position}, is used instead"
            problems.append(Problem(file, where, message, "malformed category"))
        if name in own.values():
            problems.append(
                Problem(file, where, f"a second category is called {name}; both count as one", "duplicated category")
            )
        own[own_id] = name
        index.update(dict.fromkeys(_keys(entry["id"]), own_id))
    return own, index


def _without_parents(
    own: dict[int, str], index: dict[Any, int], content: dict[str, list[Any]], wanted: Sequence[str]
) -> dict[int, str]:
    """Drop categories that only group others, as in Roboflow's exports, unless they are ``wanted``.

    Such a category is the ``supercategory`` of another and has no box in the file.
    """
    parents = {
        str(entry.get("supercategory")).strip()
        for entry in content["categories"]
        if isinstance(entry, dict) and str(entry.get("name")).strip() != str(entry.get("supercategory")).strip()
    }
    if parents.isdisjoint(own.values()):
        return own
    ids = (row.get("category_id") for row in content["annotations"] if isinstance(row, dict))
    used = set(_lookup(index, ids).tolist())
    return {key: name for key, name in own.items() if name not in parents or name in wanted or key in used}


def _images(
    entries: list[Any], file: str, folders: Sequence[Path], is_results: bool, problems: list[Problem]
) -> tuple[list[RawImage], dict[Any, int], list[str]]:
    """Return the images, their positions by any spelling of an id, and their names in the file."""
    sound: list[tuple[dict[str, Any], str]] = []
    for position, entry in enumerate(entries):
        name = _file_name(entry) if isinstance(entry, dict) else ""
        if name and _keys(entry.get("id")):
            sound.append((entry, name))
        else:
            where = f"image number {position + 1}"
            problems.append(Problem(file, where, "it has no usable id and file_name; dropped", "malformed image entry"))
    paths = _find_images([name for _, name in sound], file, folders, is_results, problems)
    images: list[RawImage] = []
    index: dict[Any, int] = {}
    names: list[str] = []
    positions: dict[Path, int] = {}
    dropped: list[int | str] = []
    for (entry, name), path in zip(sound, paths, strict=True):
        image_id = entry["id"]
        where = f"image {image_id}"
        if any(key in index for key in _keys(image_id)):
            message = f"the id {image_id} of {name} is taken by {images[index[_keys(image_id)[0]]].path.name}; dropped"
            problems.append(Problem(file, where, message, "duplicated image id"))
            continue
        if path in positions:
            message = f"{name} is listed twice (first as image {images[positions[path]].image_id}); dropped with its boxes"
            problems.append(Problem(file, where, message, "image listed twice"))
            dropped.append(image_id)
            continue
        positions[path] = len(images)
        names.append(name)
        index.update(dict.fromkeys(_keys(image_id), len(images)))
        number = _integer(image_id)
        images.append(
            RawImage(path, image_id if number is None or isinstance(image_id, str) else number, file, where, _size(entry))
        )
    for image_id in dropped:
        index.update({key: _UNWANTED for key in _keys(image_id) if key not in index})
    return images, index, names


def _file_name(entry: dict[str, Any]) -> str:
    """Return the image's file name; LVIS has only a URL, of which folder and name count."""
    name, address = entry.get("file_name"), entry.get("coco_url")
    if isinstance(name, str) and name:
        return name
    return "/".join(address.split("/")[-2:]) if isinstance(address, str) else ""


def _find_images(
    names: Sequence[str], file: str, folders: Sequence[Path], is_results: bool, problems: list[Problem]
) -> list[Path]:
    """Return the path of each image: in the folder that has most of the first 50, or where ``find_moved`` finds it.

    Results name images as they were given to ``predict``, relative to the working directory. Images of the same names with
    drawn boxes may be next to the file; those must not be used.
    """
    own = Path(file).parent
    others = [own, own.parent] if own.name.lower() == "annotations" else [own]  # other bases of relative names
    if is_results:
        others = [Path(), *(above for folder in folders for above in folder.absolute().parents[:_ABOVE])]
    tried = [*folders, *others]
    counts = [sum(_image_path(folder, name).exists() for name in names[:50]) for folder in tried]
    folder = tried[counts.index(max(counts))]  # the first one wins ties
    if not names or any(counts):
        return [_image_path(folder, name) for name in names]
    moved = find_moved(names, folders, Path(file).stem)
    if folders and not moved.paths and not is_results:
        looked = ", ".join(str(place) for place in dict.fromkeys(tried) if place.is_dir())
        message = (
            f"none of its {plural(len(names), 'image')}, such as {names[0]}, is in {looked}; a dataset YAML with format: "
            "coco names the folder of the images"
        )
        problems.insert(0, Problem(file, "", message, _NOWHERE))
    problems += moved.tell(names, file)
    return [moved.paths.get(position) or _image_path(folder, name) for position, name in enumerate(names)]


def _image_path(folder: Path, name: str) -> Path:
    path = folder / name
    return folder / name.replace("\\", "/") if "\\" in name and not path.exists() else path  # Windows path


def _size(entry: dict[str, Any]) -> tuple[float, float] | None:
    try:
        width, height = float(entry["width"]), float(entry["height"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _select(
    images: list[RawImage], index: dict[Any, int], names: Sequence[str], include: NameList, problems: list[Problem]
) -> tuple[list[RawImage], dict[Any, int]]:
    """Keep the images that the list names, by as much of their path as it gives, with or without extension."""
    missing = "{name} is not among the images of the annotation file; skipped"
    by_name = NameIndex(names, paths=[image.path.as_posix() for image in images])
    chosen = choose(by_name, include, missing, "listed image without annotations", problems)
    renumbered = {old: new for new, old in enumerate(sorted(chosen))}
    # images of other splits are known but unused: their boxes are not at fault
    return [images[old] for old in renumbered], {key: renumbered.get(old, _UNWANTED) for key, old in index.items()}


def _lookup(table: dict[Any, int], values: Iterable[Any]) -> NDArray[np.int64]:
    """Look ids up; unhashable values are unknown."""
    values = list(values)
    try:
        return np.array([table.get(value, _UNKNOWN) for value in values], dtype=np.int64)
    except TypeError:  # a list or object in place of an id
        found = [table.get(value, _UNKNOWN) if isinstance(value, int | float | str) else _UNKNOWN for value in values]
        return np.array(found, dtype=np.int64)


def _numbers(values: list[Any]) -> NDArray[np.float64]:
    """Convert numbers, also those written as strings; NaN for anything else."""
    try:
        return np.array(values, dtype=np.float64).reshape(len(values))
    except (TypeError, ValueError, OverflowError):
        return np.array([_number(value) for value in values], dtype=np.float64)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _extents(values: list[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Convert boxes to [M, 4]; also return which of them are four numbers."""
    try:
        boxes = np.array(values, dtype=np.float64)
        if boxes.shape == (len(values), 4):
            return boxes, np.ones(len(values), dtype=np.bool_)
    except (TypeError, ValueError, OverflowError):
        pass
    boxes, sound = np.full((len(values), 4), np.nan), np.zeros(len(values), dtype=np.bool_)
    for row, value in enumerate(values):
        if isinstance(value, list) and len(value) == 4:
            try:
                boxes[row] = [float(number) for number in value]
            except (TypeError, ValueError, OverflowError):
                continue
            sound[row] = True
    return boxes, sound


def _take_masks(rows: list[dict[str, Any]], extents: NDArray[np.float64], sound: NDArray[np.bool_]) -> None:
    """Give annotations without a box, or with a box of zeros, the box of their mask; in place."""
    for number in np.flatnonzero(~sound | ~extents.any(axis=1)).tolist():
        row = rows[number]
        box = box_of_mask(row["segmentation"]) if row.get("segmentation") and not _has_box(row.get("bbox")) else None
        if box is not None:
            extents[number], sound[number] = box, True


def _has_box(value: Any) -> bool:
    return bool(value) and value != [0, 0, 0, 0]


def _annotations(
    entries: list[Any],
    file: str,
    images: tuple[list[RawImage], dict[Any, int]],
    classes: tuple[tuple[list[str], list[int | str]], dict[Any, int]],
    problems: list[Problem],
) -> RawSplit:
    """Convert the annotations to columns: there may be a million of them."""
    rows = [entry for entry in entries if isinstance(entry, dict)]
    if len(rows) < len(entries):
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict):
                problems.append(
                    Problem(
                        file, f"annotation number {position + 1}", "it is not an object; dropped", "malformed annotation"
                    )
                )
    image = _lookup(images[1], (row.get("image_id") for row in rows))
    label = _lookup(classes[1], (row.get("category_id") for row in rows))
    extents, sound = _extents([row.get("bbox") for row in rows])
    _take_masks(rows, extents, sound)
    known, wanted = image != _UNKNOWN, image >= 0
    bad = np.flatnonzero(~known | (wanted & (~sound | (label < 0)))).tolist()
    problems += [_bad_annotation(rows[row], file, bool(known[row]), bool(sound[row])) for row in bad]
    keep = np.flatnonzero(wanted & sound & (label >= 0))
    extents = extents[keep]
    with np.errstate(invalid="ignore", over="ignore"):
        corners = np.concatenate((extents[:, :2], extents[:, :2] + extents[:, 2:]), axis=1)
    kept = [rows[row] for row in keep.tolist()]

    def where(number: int) -> tuple[str, str]:
        return file, f"annotation {kept[number].get('id', f'number {int(keep[number]) + 1}')}"

    scores = _numbers([row.get("score") for row in kept])
    with np.errstate(invalid="ignore"):
        is_confidence = np.isnan(scores) | ((scores >= 0) & (scores <= 1))
    return RawSplit(
        classes[0][0],
        classes[0][1],
        images[0],
        image[keep],
        corners,
        label[keep],
        np.array([row.get("iscrowd", 0) in (1, "1", "true") for row in kept], dtype=np.bool_),
        _numbers([row.get("area") for row in kept]),
        where,
        problems,
        source=file,
        confidence=scores if is_confidence.all() and not np.isnan(scores).all() else None,
        extents=True,
    )


def _bad_annotation(row: dict[str, Any], file: str, known_image: bool, sound: bool) -> Problem:
    where = f"annotation {row.get('id', '(without id)')}"
    if not known_image:
        message = f"there is no image with the id {row.get('image_id')!r}; dropped"
        return Problem(file, where, message, "annotation of an unknown image")
    if not sound:
        box = f"{row.get('bbox')!r}"[:80]
        return Problem(file, where, f"bbox is {box}, not four numbers x, y, width, height; dropped", "malformed box")
    message = f"its category {row.get('category_id')!r} is not among the classes; dropped"
    return Problem(file, where, message, "unknown class")
