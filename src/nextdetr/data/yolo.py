"""YOLO data sets: images in folders or lists (see ``yolo_layout.py``), and a label file per image (``yolo_labels.py``).

An image without a label file is background. The label file of ``…/images/a/b.jpg`` is ``…/labels/a/b.txt`` (the last folder
called ``images`` is replaced), or ``b.txt`` beside the image if that does not exist.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextdetr.data.listing import NameIndex, describe_others, list_files, list_images
from nextdetr.data.moved import find_moved
from nextdetr.data.raw import BoxTable, NameList, RawImage, RawSplit, choose, map_classes, plural, read_name_list
from nextdetr.data.records import Problem
from nextdetr.data.yolo_labels import LabelFiles, Row, check_indices, doubts, label_path, read_labels, refuse_poses
from nextdetr.data.yolo_tracks import Tracks
from nextdetr.errors import DataError
from nextdetr.pictures import is_picture_name

__all__ = ["YoloImages", "find_yolo_images", "read_yolo", "yolo_names"]


@dataclass(frozen=True, slots=True)
class YoloImages:
    """The images of a split, before any check.

    Attributes:
        images: path, and (file, where) that names it; ("", "") for images of a listed folder.
        folders: the folders that were listed.
        problems: problems found.
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
    if isinstance(names, list) and names and all(isinstance(name, str) and name.strip() for name in names):
        return {index: name.strip() for index, name in enumerate(names)}
    if isinstance(names, dict) and names and all(isinstance(name, str) and name.strip() for name in names.values()):
        try:
            return dict(sorted((int(index), name.strip()) for index, name in names.items()))
        except (ValueError, TypeError):
            pass
    raise DataError(f"{source}: names must be a list of class names, or a mapping from index (0, 1, …) to name.")


def find_yolo_images(entries: Sequence[Path], root: Path) -> YoloImages:
    """List the images of folders (with their subfolders) and list files, sorted by name.

    Args:
        entries: folders, list files and images.
        root: base for relative paths in lists.

    Raises:
        DataError: a folder holds no image, or a list file cannot be read or is empty.
        OSError: a folder cannot be listed.
    """
    images: dict[Path, tuple[Path, str, str]] = {}
    folders, problems = [], []
    for entry in entries:
        if entry.is_dir():
            folders.append(entry)
            listing = list_images(entry)
            count = len(listing.files)
            problems += listing.problems
            for path in listing.files:
                images.setdefault(path, (path, "", ""))
        elif is_picture_name(entry.name):
            images.setdefault(entry, (entry, "", ""))
            continue
        else:
            count = _read_list(entry, root, images, problems)
        if not count:
            verb = "holds" if entry.is_dir() else "lists"
            raise DataError(f"{entry}: the split is empty; it {verb} no image{describe_others(problems)}.")
    return YoloImages(list(images.values()), folders, problems)


def _read_list(file: Path, root: Path, images: dict[Path, tuple[Path, str, str]], problems: list[Problem]) -> int:
    """Add the images of a list file, and return their number.

    If none is where it says, they are searched by name: see ``moved.py``.
    """
    names = read_name_list(file)
    problems += names.problems
    listed = [_listed_path(name, file.parent, root) for _, name in names.entries]
    if listed and not any(there for _, there in listed):
        written = [name for _, name in names.entries]
        moved = find_moved(written, [root], file.stem)
        problems += moved.tell(written, str(file))
        listed = [(moved.paths.get(position, path), False) for position, (path, _) in enumerate(listed)]
    for (path, _), (where, name) in zip(listed, names.entries, strict=True):
        if path in images:
            message = f"{name} is listed twice; counted once"
            problems.append(Problem(str(file), where, message, "image listed twice"))
        images.setdefault(path, (path, str(file), where))
    return len(listed)


def _listed_path(name: str, folder: Path, root: Path) -> tuple[Path, bool]:
    """Resolve a line of a list file: ``./`` is the list's own folder; other relative paths may also start at the root.

    Returns:
        (the path, whether the file exists).
    """
    name = name.replace("\\", "/") if "\\" in name and not (folder / name).exists() else name
    tried = [folder / name] if name.startswith("./") else [root / name, folder / name]
    found = next((path for path in tried if path.is_file()), None)
    return (tried[0], False) if found is None else (found, True)


def read_yolo(
    found: YoloImages,
    names: Mapping[int, str],
    *,
    root: Path,
    source: Path,
    labels: Path | None = None,
    include: NameList | None = None,
    classes: Sequence[str] | None = None,
    keypoints: int = 0,
) -> RawSplit:
    """Read the label files of a split.

    Args:
        found: its images.
        names: class index in the files -> name.
        root: image ids are paths relative to it.
        source: the YAML, for messages.
        labels: folder of the label files, with the images' subfolders; None uses the rule of ``label_path``.
        include: file names of the images to use; None uses all.
        classes: names in the model's order; None uses ``names``.
        keypoints: number of key point values after the box in each row.

    Raises:
        DataError: no image at all has a label file, a label file may belong to several images, the class indices are all
            off by the same number, rows are boxes with key points, or may be either polygons or end in a track number.
    """
    problems = [*found.problems, *_equal_names(names, str(source))]
    mapped, to_label = map_classes(names, classes, str(source))
    images, used = [], dict[str, Path]()  # used: label file -> image
    rows, tracks = _Rows(names, to_label, str(source), problems), Tracks()
    chosen = found.images if include is None else _select(found.images, include, root, problems)
    files = LabelFiles([path for path, _, _ in chosen], labels, found.folders)
    for number, (path, file, where) in enumerate(chosen):
        images.append(RawImage(path, _image_id(path, root), file, where))
        found_file = files.find(path)
        if found_file is None:
            continue
        label_file = str(found_file)
        if label_file in used:
            message = (
                f"it holds the labels of {used[label_file].name} and of {path.name}, which have one name; used for both"
            )
            problems.append(Problem(label_file, "", message, "label file of two images"))
        used.setdefault(label_file, path)
        for row in read_labels(found_file, keypoints, problems):
            rows.look_at(label_file, row)
            if not tracks.takes(number, label_file, row):
                rows.add(number, label_file, row)
    refuse_poses(rows.poses, rows.pose[0], str(source), rows.pose[1])
    for number, label_file, row in tracks.settle(problems, str(source)):
        rows.add(number, label_file, row)
    check_indices(rows.counts, names, str(source), rows.unnamed)
    if images and not used:
        raise _no_labels(images, files, source)
    problems += doubts(rows.shapes, rows.first_of, keypoints)
    if labels is None and include is None:
        problems += _orphans(found, set(used))
    return rows.table.split(mapped, images, problems, source=str(source), fractions=True)


class _Rows:
    """Collects the rows of a split, and statistics of all of them.

    Args:
        names: class index in the files -> name.
        to_label: class index in the files -> the model's.
        source: the YAML, for messages.
        problems: list to which problems are appended.

    Attributes:
        table: the boxes.
        counts: number of occurrences of each class index.
        shapes: number of rows by their number of values.
        first_of: (file, line) of the first row with each number of values.
        unnamed: file and line of an index without a name; "" if all have one.
        poses: number of rows of more than a box by their ``Row.pose``.
        pose: number of values, and file and line, of the first one whose ``Row.pose`` is True.
    """

    def __init__(self, names: Mapping[int, str], to_label: Mapping[int, int], source: str, problems: list[Problem]) -> None:
        self._names, self._to_label, self._source, self._problems = names, to_label, source, problems
        self.table = BoxTable()
        self.counts, self.shapes = Counter[int](), Counter[int]()
        self.first_of: dict[int, tuple[str, str]] = {}
        self.unnamed = ""
        self.poses, self.pose = Counter[bool | None](), (0, "")

    def look_at(self, file: str, row: Row) -> None:
        """Count a row that may be a box with key points."""
        if row.values > 6 and not row.scored_polygon:
            self.poses[row.pose] += 1
            if row.pose and not self.pose[0]:
                self.pose = row.values, f"{file}, {row.where},"

    def add(self, image: int, file: str, row: Row) -> None:
        """Add a row of an image, given by its number."""
        self.counts[row.label] += 1
        self.shapes[row.values] += 1
        if row.values not in self.first_of:
            self.first_of[row.values] = file, row.where
        if row.label in self._to_label:
            place = (file, row.where)
            self.table.add(image, row.box, self._to_label[row.label], place, confidence=row.confidence)
            return
        named = row.label in self._names
        self.unnamed = self.unnamed or ("" if named else f"{file}, {row.where}")
        what = f"the class index {row.label}" + (f" ({self._names[row.label]})" if named else "")
        message = f"{what} is not among the classes of {self._source}; dropped"
        self._problems.append(Problem(file, row.where, message, "unknown class"))


def _equal_names(names: Mapping[int, str], source: str) -> list[Problem]:
    first: dict[str, int] = {}
    for index, name in names.items():
        first.setdefault(name, index)
    message = "it is called {}, as class {} is; both count as one"
    return [
        Problem(source, f"class {index}", message.format(name, first[name]), "equal names")
        for index, name in names.items()
        if first[name] != index
    ]


def _no_labels(images: Sequence[RawImage], files: LabelFiles, source: Path) -> DataError:
    first, count = images[0], plural(len(images), "image")
    if not any(image.path.exists() for image in images):
        named = f" (named in {first.file}, {first.where})" if first.file else ""
        return DataError(
            f"{source}: none of {count} exists, the first being {first.path}{named}; are these paths of another computer? "
            "Write them relative to the data set."
        )
    places = " or ".join(str(path) for path in files.candidates(first.path))
    return DataError(f"{source}: none of {count} has a label file; that of {first.path} is looked for at {places}.")


def _image_id(path: Path, root: Path) -> str:
    start, text = f"{root}{os.sep}", str(path)
    if text.startswith(start):  # the usual case, and much faster
        return text[len(start) :].replace(os.sep, "/")
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _select(
    images: Sequence[tuple[Path, str, str]], include: NameList, root: Path, problems: list[Problem]
) -> list[tuple[Path, str, str]]:
    """Keep the images that the list names, by as much of their path as it gives."""
    index = NameIndex([_image_id(path, root) for path, _, _ in images], root)
    chosen = choose(index, include, "there is no image {name}; skipped", "missing image", problems)
    problems += include.problems
    return [images[position] for position in chosen]


def _orphans(found: YoloImages, used: set[str]) -> list[Problem]:
    """Report label files, in the folders that mirror the image folders, whose image is missing."""
    problems: list[Problem] = []
    for folder in found.folders:
        mirror = label_path(folder / "any").parent
        if mirror == folder or not mirror.is_dir():
            continue
        listed = [path for path in list_files(mirror, {".txt"}).files if str(path) not in used]
        real = {Path(path).resolve() for path in used} if listed else set()  # links may lead there by several names
        problems += [
            Problem(str(path), "", f"the label file has no image in {folder}; skipped", "missing image")
            for path in listed
            if path.name != "classes.txt" and path.resolve() not in real  # some tools write their list of classes there
        ]
    return problems
