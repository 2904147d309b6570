"""Our dataset YAML: it names the format of a data set and the files of each split.

```yaml
format: coco                 # or yolo, voc, …
root: photos                 # relative to this file
classes: [cat, dog]          # optional: otherwise from the annotations, in their order
train: {images: images, annotations: train.json, include: lists/train.txt}
val: {images: images, annotations: val.json}
min_confidence: 0.5          # optional: leave out boxes of which a detector was less sure, where labels say so
```

Splits are named for COCO, YOLO and VOC. Without any, the root is opened as a folder of that format, as for ``--data``; so
the YAML can also choose a format if several match.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nextdetr.data.coco import read_coco
from nextdetr.data.confidence import least_confidence
from nextdetr.data.raw import NameList, RawSplit, parse_yaml, read_name_list
from nextdetr.data.recognise import Format, Glance, SplitReader
from nextdetr.data.voc import read_voc
from nextdetr.data.yolo import find_yolo_images, read_yolo
from nextdetr.data.yolo_labels import keypoint_values
from nextdetr.errors import DataError

__all__ = ["JOINED", "open_dataset_yaml", "root_of"]

JOINED = "joined"  # the format of a YAML that lists data sets instead; see joined.py

_ORDER = ("train", "val", "test")
_SPLIT_KEYS = ("images", "annotations", "include")
_KEYS = ("format", "root", "classes", "kpt_shape", "min_confidence")
_WITH_SPLITS = ("coco", "yolo", "voc")


def open_dataset_yaml(path: Path, formats: Mapping[str, Format]) -> dict[str, SplitReader]:
    """Return one reader per split.

    Args:
        path: the YAML.
        formats: all formats that may be named, by name.

    Raises:
        DataError: it has an error; the message names the key.
    """
    content = parse_yaml(path)
    if content["format"] == JOINED:
        raise DataError(f"{path}: it joins data sets, which is not possible here: name one of those that it lists.")
    if not isinstance(content["format"], str) or content["format"] not in formats:
        *most, last = dict.fromkeys((*_WITH_SPLITS, *formats))
        raise DataError(f"{path}: format is {content['format']!r}; it must be {', '.join(most)} or {last}.")
    kind = formats[content["format"]]
    root = root_of(content, path)
    if not root.is_dir() and not (root.is_file() and kind.name not in _WITH_SPLITS):
        raise DataError(f"{path}: root names {root}, which is not a folder (it is relative to the YAML).")
    classes = content.get("classes") or None
    if classes is not None and not (isinstance(classes, list) and all(isinstance(item, str) and item for item in classes)):
        raise DataError(f"{path}: classes must be a list of names.")
    if classes is not None and len(set(classes)) < len(classes):
        raise DataError(f"{path}: classes names the same class twice.")
    splits = {key: value for key, value in content.items() if key not in _KEYS and value}
    keypoints = keypoint_values(content, path)
    for split, entry in splits.items():
        _check_split(split, entry, path)
    if splits and kind.name not in _WITH_SPLITS:
        raise DataError(
            f"{path}: {next(iter(splits))} names files, which is for {', '.join(_WITH_SPLITS)}; a data set of the format "
            f"{kind.name} has the splits that its own files say."
        )
    readers: dict[str, SplitReader] = {
        split: partial(_read_split, kind.name, root, split, entry, classes, path, keypoints)
        for split, entry in splits.items()
    }
    glance = Glance(root)
    if not readers and (kind.name != "yolo" or kind.recognise(glance)):
        readers = {split: partial(_with_default, reader, classes) for split, reader in kind.open(glance).items()}
    least = least_confidence(content, path)
    return {split: partial(_with_least, reader, least) for split, reader in readers.items()} if least else readers


def root_of(content: Mapping[str, Any], path: Path) -> Path:
    """Return the root folder that a dataset YAML names; relative to the YAML, or to the user's own folder (``~``)."""
    return path.parent / os.path.expanduser(str(content.get("root") or "."))  # noqa: PTH111 - which raises nothing


def _with_least(reader: SplitReader, least: float, classes: Sequence[str] | None) -> RawSplit:
    raw = reader(classes)
    raw.min_confidence = least
    return raw


def _with_default(reader: SplitReader, default: Sequence[str] | None, classes: Sequence[str] | None) -> RawSplit:
    return reader(default if classes is None else classes)


def _check_split(split: str, entry: Any, path: Path) -> None:
    if not isinstance(entry, dict):
        close = difflib.get_close_matches(split, (*_KEYS, *_ORDER), n=1)
        guess = f" Did you mean {close[0]}?" if close and close[0] != split else ""
        raise DataError(f"{path}: {split} must be a mapping with {', '.join(_SPLIT_KEYS)}.{guess}")
    for key, value in entry.items():
        if key not in _SPLIT_KEYS:
            raise DataError(f"{path}: {split} has the unknown key {key}; it takes {', '.join(_SPLIT_KEYS)}.")
        if not isinstance(value, str) and not (key == "include" and isinstance(value, list)):
            raise DataError(f"{path}: {key} of {split} must be a path.")


def _read_split(
    kind: str,
    root: Path,
    split: str,
    entry: Mapping[str, Any],
    own: Sequence[str] | None,
    path: Path,
    keypoints: int,
    classes: Sequence[str] | None,
) -> RawSplit:
    include = _include(entry.get("include"), root, split, path)
    wanted = own if classes is None else classes
    annotations = root / entry["annotations"] if entry.get("annotations") else None
    if kind == "voc":
        images = root / (entry.get("images") or "JPEGImages")
        return read_voc(annotations or root / "Annotations", images, include=include, classes=wanted)
    images = root / (entry.get("images") or ".")
    if not images.exists():
        raise DataError(f"{path}: images of {split} is {images}, which does not exist.")
    if kind == "coco":
        if annotations is None:
            raise DataError(f"{path}: {split} needs annotations, the COCO file.")
        return read_coco(annotations, [images], include=include, classes=wanted)
    if own is None:
        raise DataError(f"{path}: format yolo needs classes, as label files hold only their numbers.")
    found = find_yolo_images([images], root)
    names = dict(enumerate(own))
    return read_yolo(
        found, names, root=root, source=path, labels=annotations, include=include, classes=classes, keypoints=keypoints
    )


def _include(value: Any, root: Path, split: str, path: Path) -> NameList | None:
    if not value:
        return None
    if isinstance(value, str):
        beside = path.parent / value  # as the val.txt of a run, and a YAML written there
        return read_name_list(beside if beside.is_file() and not (root / value).is_file() else root / value)
    return NameList.build(str(path), ((f"{split}.include, name {n}", str(name)) for n, name in enumerate(value, start=1)))
