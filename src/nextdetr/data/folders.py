"""COCO, YOLO and Pascal VOC as formats: how a path of each is recognised, and which splits it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nextdetr.data.coco import coco_splits, image_folders, read_coco
from nextdetr.data.raw import RawSplit, parse_yaml, read_name_list
from nextdetr.data.recognise import Format, Glance, SplitReader
from nextdetr.data.records import Problem
from nextdetr.data.voc import read_voc, voc_splits
from nextdetr.data.yolo import find_yolo_images, read_yolo, yolo_entries, yolo_names, yolo_root
from nextdetr.data.yolo_labels import keypoint_values
from nextdetr.errors import DataError

__all__ = ["COCO", "VOC", "YAML_NAMES", "YOLO", "yaml_in"]

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_YOLO_SPLITS = ("train", "val", "valid", "validation", "test", "minival")


def yaml_in(path: Path) -> Path | None:
    """Return the YAML that describes a data set: the file itself, the folder's ``data.yaml``, or its only YAML."""
    if not path.is_dir():
        return path if path.suffix.lower() in {".yaml", ".yml"} else None
    named = next((path / name for name in YAML_NAMES if (path / name).is_file()), None)
    others = [] if named else sorted((*path.glob("*.yaml"), *path.glob("*.yml")))
    return others[0] if len(others) == 1 else named


def _is_voc(glance: Glance) -> str:
    if glance.is_file or not ((glance.path / "Annotations").is_dir() and (glance.path / "JPEGImages").is_dir()):
        return ""
    return "Annotations/, JPEGImages/"


def _open_voc(path: Path) -> dict[str, SplitReader]:
    lists = voc_splits(path)
    if not lists:
        raise DataError(
            f"{path}: a VOC folder needs its splits as lists, ImageSets/Main/train.txt, val.txt, …; there are none."
        )
    return {split: partial(_read_voc_folder, path, file) for split, file in lists.items()}


def _read_voc_folder(root: Path, list_file: Path, classes: Sequence[str] | None) -> RawSplit:
    return read_voc(root / "Annotations", root / "JPEGImages", include=read_name_list(list_file), classes=classes)


def _is_coco(glance: Glance) -> str:
    files = {} if glance.is_file else coco_splits(glance.path)
    return glance.shown(next(iter(files.values()))) if files else ""


def _open_coco(path: Path) -> dict[str, SplitReader]:
    return {split: partial(_read_coco_folder, path, split, file) for split, file in coco_splits(path).items()}


def _read_coco_folder(root: Path, split: str, file: Path, classes: Sequence[str] | None) -> RawSplit:
    return read_coco(file, image_folders(root, split, file), classes=classes)


def _is_yolo(glance: Glance) -> str:
    file = yaml_in(glance.path)
    if file is None:
        return ""
    content = parse_yaml(file)
    if "format" in content or not (glance.is_file or file.name in YAML_NAMES or "names" in content):
        return ""
    return glance.shown(file)


def _open_yolo(path: Path) -> dict[str, SplitReader]:
    file = yaml_in(path)
    assert file is not None
    content = parse_yaml(file)
    if "names" in content:
        names, root = yolo_names(content, file), yolo_root(content, file)
        splits = [split for split in _YOLO_SPLITS if content.get(split)]
        return {split: partial(_read_yolo_yaml, content, split, root, file, names) for split in splits}
    if "backbone" in content or "head" in content:
        raise DataError(f"{file}: this is a model file, not a data set; a model is given with --model.")
    raise DataError(
        f"{file}: neither a YOLO data.yaml, which has names, nor a dataset YAML, which has format (coco, yolo, voc, …)."
    )


def _read_yolo_yaml(
    content: Mapping[str, Any], split: str, root: Path, path: Path, names: Mapping[int, str], classes: Sequence[str] | None
) -> RawSplit:
    found = find_yolo_images(yolo_entries(content, split, root, path), root)
    keypoints = keypoint_values(content, path)
    raw = read_yolo(found, names, root=root, source=path, classes=classes, keypoints=keypoints)
    count = content.get("nc")
    if count and count != str(len(names)):
        message = f"nc is {count}, but there are {len(names)} names; the names count"
        raw.problems.append(Problem(str(path), "nc", message, "class count differs"))
    return raw


VOC = Format("voc", "a Pascal VOC folder (Annotations/, JPEGImages/, ImageSets/Main/)", _is_voc, _open_voc)
YOLO = Format("yolo", "a YOLO data.yaml", _is_yolo, _open_yolo)
COCO = Format(
    "coco", "a COCO folder (annotations/instances_*.json, or _annotations.coco.json in each split)", _is_coco, _open_coco
)
