"""Recognise a data set by its path and read a split of it.

Four kinds: a Pascal VOC folder, a YOLO ``data.yaml`` (or the folder it is in), a COCO or Roboflow folder, and our dataset
YAML, which names the files of each split.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from nextdetr.data.check import finish
from nextdetr.data.coco import coco_splits, image_folders, read_coco
from nextdetr.data.raw import NameList, RawSplit, parse_yaml, read_name_list
from nextdetr.data.records import DetectionData, Problem
from nextdetr.data.voc import read_voc, voc_splits
from nextdetr.data.yolo import find_yolo_images, read_yolo, yolo_entries, yolo_names, yolo_root
from nextdetr.data.yolo_labels import keypoint_values
from nextdetr.errors import DataError

__all__ = ["available_splits", "is_data_set", "load_data", "other_images", "require_splits"]

# Reads a split; the argument is the model's classes, or None for the data set's own.
_Reader: TypeAlias = Callable[[Sequence[str] | None], RawSplit]

_KINDS = (
    "a Pascal VOC folder (Annotations/, JPEGImages/, ImageSets/Main/), a YOLO data.yaml, a COCO folder "
    "(annotations/instances_*.json, or _annotations.coco.json in each split) or a dataset YAML"
)
_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_YOLO_SPLITS = ("train", "val", "valid", "validation", "test", "minival")
_ORDER = ("train", "val", "test")
_SPLIT_KEYS = ("images", "annotations", "include")
_KEYS = ("format", "root", "classes", "kpt_shape")


@dataclass(frozen=True, slots=True)
class _Source:
    name: str
    readers: dict[str, _Reader]  # by split, spelt as the data set does


def load_data(
    path: str | Path,
    split: str,
    *,
    classes: Sequence[str] | None = None,
    on_bad_data: Literal["warn", "error"] = "warn",
    check_images: bool = True,
) -> DetectionData:
    """Read and check one split of a data set.

    Args:
        path: a VOC, COCO or Roboflow folder, a YOLO ``data.yaml`` or its folder, or a dataset YAML.
        split: ``train``, ``val``, ``test`` or what else the data set has; ``val`` also finds ``valid`` and ``val2017``.
        classes: names in the order of a model's indices; the data set's own are mapped to them by name, and objects of
            other classes are dropped and reported. None takes the data set's classes in its order.
        on_bad_data: "warn" drops what is unusable and lists it in ``problems``; "error" refuses the data set.
        check_images: decode every image; otherwise only its header is read, for the size.

    Raises:
        DataError: there is no such data set or split, a file that all depends on cannot be read, no image can be used, none
            of ``classes`` is there, or ``on_bad_data`` is "error" and something is wrong.
    """
    path = Path(path).expanduser()
    try:
        source = _open(path)
        raw = _find_split(source, split, path)(classes)
    except OSError as error:
        raise _unreadable(path, error) from error
    return finish(raw, name=source.name, split=split, on_bad_data=on_bad_data, check_images=check_images)


def other_images(path: str | Path, known: Sequence[str]) -> list[tuple[str, Callable[[], list[tuple[Path, int | str]]]]]:
    """Return, for each split that is not ``known``, its name and what reads (path, id) of its images; none is opened.

    Raises:
        DataError: there is no such data set; what reads raises it too, where a file of the split cannot be read.
    """
    source, plain = _open(Path(path).expanduser()), {_plain(split) for split in known}

    def images(reader: _Reader) -> list[tuple[Path, int | str]]:
        return [(image.path, image.image_id) for image in reader(None).images]

    others = {split: reader for split, reader in source.readers.items() if _plain(split) not in plain}
    return [(split, partial(images, reader)) for split, reader in others.items()]


def available_splits(path: str | Path) -> list[str]:
    """Return the names of the splits that ``load_data`` finds in a data set: train, val and test first.

    Raises:
        DataError: there is no such data set, or its YAML cannot be read.
    """
    path = Path(path).expanduser()
    try:
        names = list(_open(path).readers)
    except OSError as error:
        raise _unreadable(path, error) from error
    plain = [_plain(name) for name in names]
    shown = [short if plain.count(short) == 1 else name for name, short in zip(names, plain, strict=True)]
    return sorted(shown, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))


def require_splits(path: str | Path) -> None:
    """See that a data set can be trained on: that it has a split to learn from and one to choose the best weights by.

    Raises:
        DataError: one of them is missing; the message says what to do.
    """
    there = available_splits(path)
    if not there:
        raise DataError(
            f"{path}: no split is named, and training needs train, to learn from, and val, to choose the best weights by. "
            "Write where the images of each are."
        )
    missing = [split for split in ("train", "val") if split not in {_plain(name) for name in there}]
    if missing:
        raise DataError(
            f"{path}: training needs the splits train, to learn from, and val, to choose the best weights by; there is no "
            f"{' and no '.join(missing)}, but {', '.join(there)}. Set some of the images aside."
        )


def is_data_set(path: str | Path) -> bool:
    """Whether ``load_data`` knows what a folder or file is.

    Raises:
        DataError: it says so itself, by a ``data.yaml``, but that has a mistake.
    """
    path = Path(path).expanduser()
    try:
        return bool(available_splits(path))
    except DataError:
        if any((path / name).is_file() for name in _YAML_NAMES):
            raise
        return False


def _unreadable(path: Path, error: OSError) -> DataError:
    """A folder without permission, a name that is too long, a disk that fails."""
    return DataError(f"{error.filename or path} cannot be read: {error.strerror or error}.")


def _plain(split: str) -> str:
    """Spell a split as users do: ``val2017``, ``valid`` and ``validation`` are ``val``."""
    name = re.sub(r"[_-]?(19|20)\d\d$", "", split.lower())
    return "val" if name in {"valid", "validation"} else name


def _find_split(source: _Source, split: str, path: Path) -> _Reader:
    if split in source.readers:
        return source.readers[split]
    alike = [name for name in source.readers if _plain(name) == _plain(split)]
    if len(alike) == 1:
        return source.readers[alike[0]]
    if alike:
        raise DataError(f"{path}: the split {split} may be any of {', '.join(alike)}: choose one of these.")
    there = ", ".join(available_splits(path)) or "none"
    raise DataError(f"{path}: there is no split {split}; available: {there}.")


def _open(path: Path) -> _Source:
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise DataError(_missing(path))
    if path.suffix.lower() in {".yaml", ".yml"}:
        return _open_yaml(path)
    hint = ""
    if path.suffix.lower() == ".json":
        hint = " For a COCO file, write a dataset YAML with format: coco that names it and its images, or give its folder."
    raise DataError(f"{path}: not a data set; expected is {_KINDS}.{hint}")


def _missing(path: Path) -> str:
    try:
        neighbours = [entry.name for entry in path.absolute().parent.iterdir()]
    except OSError:
        neighbours = []
    close = difflib.get_close_matches(path.name, neighbours, n=1, cutoff=0.8)
    guess = f" Did you mean {path.parent / close[0]}?" if close else ""
    if path.name == str(path) and not path.suffix:
        return f"{path}: there is no such folder, and no data set is known by name: give the path of {_KINDS}.{guess}"
    return f"{path}: there is no such file or folder; expected is {_KINDS}.{guess}"


def _open_folder(path: Path) -> _Source:
    name = path.resolve().name
    if (path / "Annotations").is_dir() and (path / "JPEGImages").is_dir():
        lists = voc_splits(path)
        if not lists:
            raise DataError(
                f"{path}: a VOC folder needs its splits as lists, ImageSets/Main/train.txt, val.txt, …; there are none."
            )
        return _Source(name, {split: partial(_read_voc_folder, path, file) for split, file in lists.items()})
    for file in (path / entry for entry in _YAML_NAMES):
        if file.is_file():
            return _open_yaml(file)
    files = coco_splits(path)
    if files:
        return _Source(name, {split: partial(_read_coco_folder, path, split, file) for split, file in files.items()})
    yamls = sorted((*path.glob("*.yaml"), *path.glob("*.yml")))
    if len(yamls) == 1:
        return _open_yaml(yamls[0])
    hint = ""
    if (path / "images").is_dir() and (path / "labels").is_dir():
        hint = " It looks like a YOLO set without its data.yaml, which names the splits and the classes."
    beside = path.parent / f"{name}.yaml"
    if not hint and beside.is_file():
        hint = f" Did you mean {beside}?"
    raise DataError(f"{path}: not recognised as a data set; expected is {_KINDS}.{hint}")


def _read_voc_folder(root: Path, list_file: Path, classes: Sequence[str] | None) -> RawSplit:
    return read_voc(root / "Annotations", root / "JPEGImages", include=read_name_list(list_file), classes=classes)


def _read_coco_folder(root: Path, split: str, file: Path, classes: Sequence[str] | None) -> RawSplit:
    return read_coco(file, image_folders(root, split, file), classes=classes)


def _open_yaml(path: Path) -> _Source:
    content = parse_yaml(path)
    resolved = path.resolve()
    name = resolved.parent.name if path.name in _YAML_NAMES else path.stem
    if "format" in content:
        return _Source(name, _dataset_readers(content, path))
    if "names" in content:
        names, root = yolo_names(content, path), yolo_root(content, path)
        splits = [split for split in _YOLO_SPLITS if content.get(split)]
        return _Source(name, {split: partial(_read_yolo_yaml, content, split, root, path, names) for split in splits})
    if "backbone" in content or "head" in content:
        raise DataError(f"{path}: this is a model file, not a data set; a model is given with --model.")
    raise DataError(
        f"{path}: neither a YOLO data.yaml, which has names, nor a dataset YAML, which has format (coco, yolo or voc)."
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


def _dataset_readers(content: Mapping[str, Any], path: Path) -> dict[str, _Reader]:
    """Read our dataset YAML: one reader a split."""
    if content["format"] not in ("coco", "yolo", "voc"):
        raise DataError(f"{path}: format is {content['format']!r}; it must be coco, yolo or voc.")
    root = path.parent / Path(str(content.get("root") or "."))
    if not root.is_dir():
        raise DataError(f"{path}: root names {root}, which is no folder (it is relative to the YAML).")
    classes = content.get("classes") or None
    if classes is not None and not (isinstance(classes, list) and all(isinstance(item, str) and item for item in classes)):
        raise DataError(f"{path}: classes must be a list of names.")
    if classes is not None and len(set(classes)) < len(classes):
        raise DataError(f"{path}: classes names the same class twice.")
    splits = {key: value for key, value in content.items() if key not in _KEYS and value}
    keypoints = keypoint_values(content, path)
    for split, entry in splits.items():
        _check_split(split, entry, path)
    readers: dict[str, _Reader] = {
        split: partial(_read_dataset_split, content["format"], root, split, entry, classes, path, keypoints)
        for split, entry in splits.items()
    }
    if not readers and content["format"] != "yolo":
        readers = {
            split: partial(_with_default, reader, classes) for split, reader in _open_folder(root).readers.items()
        }  # fmt: skip
    return readers


def _with_default(reader: _Reader, default: Sequence[str] | None, classes: Sequence[str] | None) -> RawSplit:
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


def _read_dataset_split(
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
        return read_name_list(root / value)
    return NameList.build(str(path), ((f"{split}.include, name {n}", str(name)) for n, name in enumerate(value, start=1)))
