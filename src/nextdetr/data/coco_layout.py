"""Locations of annotation files and images in COCO data sets, as written by various tools.

- ``annotations/instances_train.json``, or another name that ends in a split (``lvis_v1_val.json``);
- a folder per split with its own file (Roboflow's ``_annotations.coco.json``, FiftyOne's ``labels.json``);
- one file beside the images (Label Studio's ``result.json``, ``labels.json``, any other), which is one split, ``train``;
- results of ``predict --save json``, as one split too.
"""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path

from nextdetr.data.coco_results import is_results_file
from nextdetr.data.listing import subfolders

__all__ = ["coco_splits", "image_folders", "is_coco_file"]

#: Names of the file in a split's own folder, or of the only file, most likely first.
NAMED = ("_annotations.coco.json", "labels.json", "annotations.json", "result.json", "instances.json")

_SPLIT = r"(?:train|val|valid|validation|test|trainval|minival|default)"
_INSTANCES = re.compile(rf"instances_(.+)\.json|({_SPLIT}\d*)\.json", re.IGNORECASE)
_ENDS_IN_SPLIT = re.compile(rf".*[_-]({_SPLIT}\d*)\.json", re.IGNORECASE)
# files beside the instances for other tasks, or with the same boxes
_OTHER_TASKS = re.compile(r"(captions|person_keypoints|panoptic|stuff|image_info|densepose)[_-].*", re.IGNORECASE)
_KEYPOINTS = re.compile(rf"person_keypoints_({_SPLIT}\d*)\.json", re.IGNORECASE)
_LONE = "train"
_MANY = 20  # files in one folder from which they are one per image, of another format


def coco_splits(root: Path) -> dict[str, Path]:
    """Find the annotation files of a COCO data set: file by split name, as the folder spells it.

    Args:
        root: the folder, or one annotation file.

    Raises:
        OSError: a folder cannot be listed.
    """
    if root.is_file():
        is_coco = root.suffix.lower() == ".json" and (is_coco_file(root) or is_results_file(root))
        return {_LONE: root} if is_coco else {}
    return _in_annotations(root) or _in_split_folders(root) or _by_themselves(root)


def _in_annotations(root: Path) -> dict[str, Path]:
    folder = next((root / name for name in ("annotations", "Annotations") if (root / name).is_dir()), None)
    names = [] if folder is None else os.listdir(folder)  # noqa: PTH208 - there may be an XML for each of many images
    files = [folder / name for name in sorted(names) if name.lower().endswith(".json")] if folder else []
    instances = [path for path in files if not _OTHER_TASKS.fullmatch(path.name) and path.is_file()]
    for pattern, among in ((_INSTANCES, instances), (_ENDS_IN_SPLIT, instances), (_KEYPOINTS, files)):
        found: dict[str, Path] = {}
        for path in among:
            match = pattern.fullmatch(path.name)
            if match and (pattern is not _ENDS_IN_SPLIT or is_coco_file(path)):  # not a file of one image with such a name
                found.setdefault(next(group for group in match.groups() if group), path)
        if found:
            return found
    return {_LONE: instances[0]} if len(instances) == 1 and is_coco_file(instances[0]) else {}


def _in_split_folders(root: Path) -> dict[str, Path]:
    folders = subfolders(root)
    found = {folder.name: folder / NAMED[0] for folder in folders if (folder / NAMED[0]).is_file()}
    if found:
        return found
    for folder in folders:
        if re.fullmatch(rf"{_SPLIT}\d*", folder.name, re.IGNORECASE):
            for name in NAMED[1:]:
                if (folder / name).is_file() and is_coco_file(folder / name):
                    found.setdefault(folder.name, folder / name)
    return found


def _by_themselves(root: Path) -> dict[str, Path]:
    """Find files in the folder itself: one per split, or a single one."""
    names = [name for name in os.listdir(root) if name.endswith(".json") and not name.startswith(".")]  # noqa: PTH208
    if len(names) > _MANY:
        return {}
    files = [path for path in map(root.joinpath, sorted(names)) if path.is_file() and is_coco_file(path)]
    found: dict[str, Path] = {}
    for path in files:
        match = _INSTANCES.fullmatch(path.name) or _ENDS_IN_SPLIT.fullmatch(path.name)
        if match and not _OTHER_TASKS.fullmatch(path.name):
            found.setdefault(next(group for group in match.groups() if group), path)
    if found:
        return found
    named = [path for name in NAMED for path in files if path.name == name]
    if not files:  # written by predict --save json
        files = [path for path in (root / "predictions.json",) if path.is_file() and is_results_file(path)]
    return {_LONE: (named or files)[0]} if named or len(files) == 1 else {}


def is_coco_file(path: Path) -> bool:
    """Whether a JSON file has the three lists of a COCO file; it is searched for their names, not parsed."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(key) >= 0 for key in (b'"images"', b'"categories"', b'"annotations"'))
    except (OSError, ValueError):  # an empty file cannot be mapped
        return False


def image_folders(root: Path, split: str, annotation_file: Path) -> list[Path]:
    """Return candidate folders for the images of a split, most likely first.

    Args:
        root: the folder of the data set, or its annotation file.
        split: as in ``coco_splits``.
        annotation_file: the file of the split.
    """
    if is_results_file(annotation_file):
        return []  # they name images relative to the working directory
    own = annotation_file.parent
    if root.is_file():
        root = own.parent if own.name.lower() == "annotations" else own
    if own.parent == root and own.name.lower() != "annotations":
        return [own, own / "images", own / "data"]
    years = re.sub(r"\d+$", "", split)
    other = {"val": ("valid", "validation"), "valid": ("val",), "validation": ("val",)}.get(years, ())
    names = list(dict.fromkeys((split, years, *other)))
    nested = [folder for name in names for folder in (root / name, root / "images" / name)]
    return [
        *nested, root / "images", root / "data", root, *sorted(root.glob(f"{years}[0-9][0-9][0-9][0-9]")),
        *sorted(root.glob(f"images/{years}[0-9][0-9][0-9][0-9]")),
    ]  # fmt: skip
