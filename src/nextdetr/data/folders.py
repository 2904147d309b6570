"""COCO, YOLO and Pascal VOC as formats: how a path is recognised, and its splits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from nextdetr.data.coco import read_coco
from nextdetr.data.coco_layout import coco_splits, image_folders
from nextdetr.data.objects import split_called
from nextdetr.data.raw import RawSplit, parse_yaml, read_name_list
from nextdetr.data.recognise import Format, Glance, SplitReader
from nextdetr.data.voc import read_voc
from nextdetr.data.voc_layout import VocSplit, voc_splits
from nextdetr.data.yolo_layout import darknet_file, names_file, yolo_readers
from nextdetr.errors import DataError

__all__ = ["COCO", "VOC", "YAML_NAMES", "YOLO", "yaml_in"]

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")


def yaml_in(path: Path) -> Path | None:
    """Return the YAML that describes a data set: the file itself, the folder's ``data.yaml``, or its only YAML."""
    if not path.is_dir():
        return path if path.suffix.lower() in {".yaml", ".yml"} else None
    named = next((path / name for name in YAML_NAMES if (path / name).is_file()), None)
    others = [] if named else [path / name for name in os.listdir(path) if name.endswith((".yaml", ".yml"))]  # noqa: PTH208
    return others[0] if len(others) == 1 else named


def _is_described(folder: Path) -> bool:
    """Whether a folder's YAML describes it as a data set; one without names and format belongs to another program."""
    file = yaml_in(folder)
    if file is None or file.name in YAML_NAMES:
        return file is not None
    try:
        content = parse_yaml(file)
    except DataError:
        return False
    return "names" in content or "format" in content


def _is_voc(glance: Glance) -> str:
    if glance.is_file:
        return ""
    if (glance.path / "Annotations").is_dir() and (glance.path / "JPEGImages").is_dir():
        return "Annotations/, JPEGImages/"
    splits = {} if _is_described(glance.path) else glance.once(voc_splits)  # a YAML takes precedence over XML files
    place = next(iter(splits.values()), None)
    if place is None:
        return ""
    folders = dict.fromkeys(
        f"{glance.shown(folder)}/" for folder in (place.annotations, place.images) if folder != glance.path
    )
    return f"XML files{' in ' if folders else ' beside the images'}{', '.join(folders)}"


def _open_voc(glance: Glance) -> dict[str, SplitReader]:
    splits = glance.once(voc_splits)
    if not splits:
        raise DataError(
            f"{glance.path}: not a VOC folder: there is no Annotations/ with JPEGImages/, and no XML file beside images."
        )
    return {split: partial(_read_voc, place) for split, place in splits.items()}


def _read_voc(place: VocSplit, classes: Sequence[str] | None) -> RawSplit:
    include = None if place.list_file is None else read_name_list(place.list_file)
    return read_voc(place.annotations, place.images, include=include, classes=classes, also=place.also)


def _is_coco(glance: Glance) -> str:
    files = glance.once(coco_splits)
    return glance.shown(files[min(files, key=lambda split: split_called(split) != "train")]) if files else ""


def _open_coco(glance: Glance) -> dict[str, SplitReader]:
    return {split: partial(_read_coco, glance.path, split, file) for split, file in glance.once(coco_splits).items()}


def _read_coco(root: Path, split: str, file: Path, classes: Sequence[str] | None) -> RawSplit:
    return read_coco(file, image_folders(root, split, file), classes=classes)


def _yolo_yaml(path: Path) -> Path | None:
    """Return the YAML of a YOLO set: one with names, or one of the usual name without a format."""
    file = yaml_in(path)
    if file is None or not (path.is_file() or _is_described(path)):
        return None
    return None if "format" in parse_yaml(file) else file


def _is_yolo(glance: Glance) -> str:
    file = _yolo_yaml(glance.path)
    if file is None and glance.is_file:
        return glance.path.name if glance.path.suffix.lower() == ".data" else ""
    file = file or darknet_file(glance.path) or (None if _is_described(glance.path) else names_file(glance.path))
    return "" if file is None else glance.shown(file)


def _open_yolo(glance: Glance) -> dict[str, SplitReader]:
    file = _yolo_yaml(glance.path)
    content = {"names": None} if file is None else parse_yaml(file)
    if "names" in content:
        return yolo_readers(file or glance.path)
    if "backbone" in content or "head" in content:
        raise DataError(f"{file}: this is a model file, not a data set; a model is given with --model.")
    raise DataError(
        f"{file}: neither a YOLO data.yaml, which has names, nor a dataset YAML, which has format (coco, yolo, voc, …)."
    )


VOC = Format(
    "voc", "a Pascal VOC folder (Annotations/ and JPEGImages/, or XML files beside the images)", _is_voc, _open_voc
)
YOLO = Format("yolo", "a YOLO data.yaml, obj.data, or classes.txt with label files", _is_yolo, _open_yolo)
COCO = Format(
    "coco",
    "a COCO file or folder (annotations/instances_*.json, or _annotations.coco.json in each split)",
    _is_coco,
    _open_coco,
)
