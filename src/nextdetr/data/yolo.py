"""YOLO label files: a text file an image, a line an object: class index, centre x, centre y, width, height as fractions.

A line with a class index and three or more points (x y, fractions) is a segmentation polygon; its bounding box is used. An
image without a label file is background. The label file of ``…/images/a/b.jpg`` is ``…/labels/a/b.txt`` (the last folder
called ``images`` changes its name), and ``b.txt`` beside the image where no folder is called so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextdetr.data.raw import BoxTable, NameList, RawImage, RawSplit, map_classes, plural, read_lines, read_name_list
from nextdetr.data.records import Problem
from nextdetr.errors import DataError
from nextdetr.preprocess import IMAGE_SUFFIXES

__all__ = ["YoloImages", "find_yolo_images", "label_path", "read_yolo", "yolo_entries", "yolo_names", "yolo_root"]

_Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class YoloImages:
    """The images of a split, before anyone has looked at them.

    Attributes:
        images: path, and (file, where) that names it; ("", "") for what a folder holds.
        folders: the folders that were listed.
        problems: what was found on the way.
    """

    images: list[tuple[Path, str, str]]
    folders: list[Path]
    problems: list[Problem]


def yolo_names(content: Mapping[str, Any], source: Path) -> dict[int, str]:
    """Read ``names``, a list or a mapping of index to name.

    Raises:
        DataError: it is missing or of another form, or an index is not a number.
    """
    names = content.get("names")
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return dict(enumerate(names))
    if isinstance(names, dict) and names and all(isinstance(name, str) for name in names.values()):
        try:
            return dict(sorted((int(index), name) for index, name in names.items()))
        except (ValueError, TypeError):
            pass
    raise DataError(f"{source}: names must be a list of class names, or a mapping from index (0, 1, …) to name.")


def yolo_root(content: Mapping[str, Any], source: Path) -> Path:
    """Return the folder that the entries of a ``data.yaml`` are relative to.

    ``path`` is taken relative to the file; where nothing is there (it is often a path on its author's machine), the file's
    own folder stands in.
    """
    path = content.get("path")
    if isinstance(path, str) and path.strip():
        root = source.parent / Path(path).expanduser()
        if root.is_dir():
            return root
    return source.parent


def yolo_entries(content: Mapping[str, Any], split: str, root: Path, source: Path) -> list[Path]:
    """Return the folders and list files of a split.

    Raises:
        DataError: the entry is not a path or a list of paths, or one of them does not exist.
    """
    value = content.get(split)
    entries = value if isinstance(value, list) else [value]
    paths = []
    for entry in entries:
        if not isinstance(entry, str) or not entry.strip():
            raise DataError(f"{source}: {split} must be a folder, a list file, or a list of these.")
        # Roboflow writes ../train/images where it means train/images
        tried = [
            root / entry,
            source.parent / entry,
            root / entry.removeprefix("../"),
            source.parent / entry.removeprefix("../"),
        ]
        found = next((path for path in tried if path.exists()), None)
        if found is None:
            looked = ", ".join(dict.fromkeys(str(path) for path in tried))
            raise DataError(f"{source}: {split} names {entry}, which does not exist (looked for {looked}).")
        paths.append(found)
    return paths


def find_yolo_images(entries: Sequence[Path], root: Path) -> YoloImages:
    """List the images of folders (with their subfolders) and of list files, in the order of their names.

    Raises:
        DataError: a folder holds no image, or a list file cannot be read or is empty.
    """
    images: dict[Path, tuple[Path, str, str]] = {}
    folders, problems = [], []
    for entry in entries:
        before = len(images)
        if entry.is_dir():
            folders.append(entry)
            for path in sorted(entry.rglob("*")):
                if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
                    images.setdefault(path, (path, "", ""))
        else:
            names = read_name_list(entry)
            problems += names.problems
            for where, name in names.entries:
                path = _listed_path(name, entry.parent, root)
                if path in images:
                    message = f"{name} is listed twice; counted once"
                    problems.append(Problem(str(entry), where, message, "image listed twice"))
                images.setdefault(path, (path, str(entry), where))
        if len(images) == before:
            raise DataError(f"{entry}: the split is empty; it {'holds' if entry.is_dir() else 'lists'} no image.")
    return YoloImages(list(images.values()), folders, problems)


def _listed_path(name: str, folder: Path, root: Path) -> Path:
    """Resolve a line of a list file: ``./`` is the list's own folder; other relative paths may start at the root too."""
    name = name.replace("\\", "/") if "\\" in name and not (folder / name).exists() else name
    tried = [folder / name] if name.startswith("./") else [root / name, folder / name]
    return next((path for path in tried if path.exists()), tried[0])


def label_path(image: Path) -> Path:
    """Return where the labels of an image are expected."""
    folders = list(image.parent.parts)
    for position in range(len(folders) - 1, -1, -1):
        if folders[position] == "images":
            folders[position] = "labels"
            break
    return Path(*folders) / f"{image.stem}.txt"


def read_yolo(
    found: YoloImages,
    names: Mapping[int, str],
    *,
    root: Path,
    source: Path,
    labels: Path | None = None,
    include: NameList | None = None,
    classes: Sequence[str] | None = None,
) -> RawSplit:
    """Read the label files of a split.

    Args:
        found: its images.
        names: class index in the files -> name.
        root: image ids are paths relative to it.
        source: the YAML, for messages.
        labels: folder of the label files, by the images' names; None follows the rule of ``label_path``.
        include: file names of the images to use; None uses all.
        classes: names in the model's order; None takes ``names``.

    Raises:
        DataError: not one image has a label file.
    """
    problems = list(found.problems)
    mapped, to_label = map_classes(names, classes, str(source))
    images, table = [], BoxTable()
    label_files: set[Path] = set()
    chosen = found.images if include is None else _select(found.images, include, problems)
    for path, file, where in chosen:
        images.append(RawImage(path, _image_id(path, root), file, where))
        label_file = label_path(path) if labels is None else labels / f"{path.stem}.txt"
        if label_file.is_file():
            label_files.add(label_file)
            for line, index, box in _read_labels(label_file, problems):
                if index not in to_label:
                    name = names.get(index)
                    what = f"the class index {index}" + (f" ({name})" if name is not None else "")
                    message = f"{what} is not among the classes of {source}; dropped"
                    problems.append(Problem(str(label_file), line, message, "unknown class"))
                    continue
                table.add(len(images) - 1, box, to_label[index], (str(label_file), line))
    if images and not label_files:
        expected = label_path(images[0].path) if labels is None else labels / f"{images[0].path.stem}.txt"
        raise DataError(
            f"{source}: none of {plural(len(images), 'image')} has a label file; that of {images[0].path} is looked for at "
            f"{expected}."
        )
    if labels is None and include is None:
        problems += _orphans(found, label_files)
    return table.split(mapped, images, problems, source=str(source), fractions=True)


def _image_id(path: Path, root: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _select(
    images: Sequence[tuple[Path, str, str]], include: NameList, problems: list[Problem]
) -> list[tuple[Path, str, str]]:
    """Keep the images that the list names, by file name or by stem."""
    by_name: dict[str, tuple[Path, str, str]] = {}
    for image in images:
        by_name.setdefault(image[0].name, image)
        by_name.setdefault(image[0].stem, image)
    chosen = {}
    for where, name in include.entries:
        found = by_name.get(Path(name).name)
        if found is None:
            problems.append(Problem(include.file, where, f"there is no image {name}; passed over", "missing image"))
        else:
            chosen[found[0]] = found
    problems += include.problems
    return list(chosen.values())


def _orphans(found: YoloImages, used: set[Path]) -> list[Problem]:
    """Report label files, in the folders that mirror the image folders, whose image is missing."""
    problems: list[Problem] = []
    for folder in found.folders:
        mirror = label_path(folder / "any").parent
        if mirror == folder or not mirror.is_dir():
            continue
        problems += [
            Problem(str(path), "", f"the label file has no image in {folder}; passed over", "missing image")
            for path in sorted(mirror.rglob("*.txt"))
            if path not in used and path.name != "classes.txt"  # some annotation tools leave their list of classes there
        ]
    return problems


def _read_labels(path: Path, problems: list[Problem]) -> Iterator[tuple[str, int, _Box]]:
    """Yield (line, class index, xyxy in fractions) of every line that can be read, and report the others."""
    file = str(path)
    try:
        lines = read_lines(path)
    except DataError as error:
        problems.append(Problem(file, "", f"{error}".removeprefix(file).strip(" :."), "unreadable label file"))
        return
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        where = f"line {number}"
        try:
            values = [float(value) for value in fields]
        except ValueError:
            message = f"{_excerpt(line)} is not made of numbers; dropped"
            problems.append(Problem(file, where, message, "malformed label line"))
            continue
        if len(fields) != 5 and (len(fields) < 7 or len(fields) % 2 == 0):
            message = (
                f"{plural(len(fields), 'value')} where 5 belong (class, centre x, centre y, width, height), or a class and "
                "three or more points; dropped"
            )
            problems.append(Problem(file, where, message, "malformed label line"))
            continue
        if not values[0].is_integer():
            problems.append(Problem(file, where, f"the class index {fields[0]} is not whole; dropped", "unknown class"))
            continue
        yield where, int(values[0]), _corners(values[1:])


def _excerpt(line: str) -> str:
    text = line.strip().encode("utf-8", "replace").decode()
    return repr(text if len(text) <= 60 else f"{text[:60]}…")


def _corners(values: list[float]) -> _Box:
    if len(values) == 4:
        x, y, width, height = values
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    xs, ys = values[0::2], values[1::2]
    if any(math.isnan(value) for value in values):  # which min and max may pass over
        return (math.nan,) * 4
    return min(xs), min(ys), max(xs), max(ys)
