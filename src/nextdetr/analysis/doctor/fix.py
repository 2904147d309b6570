"""Write a dataset YAML of the images to keep; no image or annotation file is changed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import yaml

from nextdetr.analysis.doctor.copies import Copies
from nextdetr.analysis.doctor.findings import Parts
from nextdetr.data.dataset_yaml import JOINED, root_of
from nextdetr.data.folders import yaml_in
from nextdetr.data.joined import sets_of
from nextdetr.data.raw import parse_yaml
from nextdetr.data.records import DetectionData, ImageRecord
from nextdetr.data.sources import available_splits, load_data, read_raw
from nextdetr.errors import DataError
from nextdetr.files import path_text, write_text_atomic

__all__ = ["choose_images", "write_fixed"]

_FORMATS = ("coco", "yolo", "voc")  # formats whose splits a dataset YAML can name
_KEPT_IN = ("test", "val", "train")  # an image in several splits stays in the first of these: scores stay comparable


def choose_images(parts: Parts, copies: Copies) -> dict[str, list[Path]]:
    """Return the images to keep of each split.

    Of identical files in one split the first is kept. Of copies in several splits, those in ``test`` are kept, else those
    in ``val``. Near duplicates within a split are kept: they are often intended, such as Roboflow's augmented copies.
    """
    dropped: set[int] = set()
    ranks = {split: rank for rank, split in enumerate((*_KEPT_IN, *(name for name in parts if name not in _KEPT_IN)))}
    for group in copies.groups():
        best = min(ranks[copies.images[at][0]] for at in group)
        dropped |= {at for at in group if ranks[copies.images[at][0]] > best}
    for group in copies.groups(exact=True):
        seen: set[str] = set()
        for at in group:
            split = copies.images[at][0]
            if split in seen:
                dropped.add(at)
            if at not in dropped:
                seen.add(split)
    kept: dict[str, list[Path]] = {split: [] for split in parts}
    for at, (split, record) in enumerate(copies.images):
        if at not in dropped:
            kept[split].append(record.path)
    empty = next((split for split, paths in kept.items() if not paths), None)
    if empty is not None:
        raise DataError(
            f"every image of {empty} has a copy in another split, so nothing would be left of it; split the data again."
        )
    return kept


def write_fixed(data: str | Path, parts: Parts, kept: dict[str, list[Path]], target: Path) -> None:
    """Write the YAML, read it again, and check that it has the images to keep with all their boxes.

    For several data sets that a YAML joins, there is one for each beside it (``clean-1.yaml``, …), and it joins those.

    Args:
        data: the data set that was read.
        parts: its splits.
        kept: the images to keep, from ``choose_images``.
        target: the YAML.

    Raises:
        DataError: a dataset YAML cannot name the splits of this format, or the locations of this data set.
        WriteError: it cannot be written.
    """
    sets = sets_of(data)
    contents = {target: _content(sets[0], parts, kept, target)} if len(sets) == 1 else _of_sets(sets, parts, kept, target)
    head = f"# Written by nextdetr doctor from {path_text(data)}: the images of each split that are worth keeping.\n"
    texts = {file: head + _yaml(content) for file, content in contents.items()}
    trials = {file: file.with_name(f".{file.stem}.trial{file.suffix}") for file in texts}
    try:
        for file, text in texts.items():
            write_text_atomic(trials[file], text)
        for split, part in parts.items():
            read = load_data(list(trials.values()), split, classes=part.classes, check_images=False)
            _compare(data, part, kept[split], read)
    finally:
        for trial in trials.values():
            trial.unlink(missing_ok=True)
    for file, text in texts.items():
        write_text_atomic(file, text)
    if len(sets) > 1:
        write_text_atomic(target, head + _yaml({"format": JOINED, "sets": [file.name for file in texts]}))


def _yaml(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


def _compare(data: str | Path, part: DetectionData, kept: list[Path], read: DetectionData) -> None:
    """Check that what was read again has the images to keep, and their boxes, which other class names could change."""
    wanted = set(kept)
    expected = {record.path.resolve(): _boxes(record) for record in part.records if record.path in wanted}
    if {record.path.resolve(): _boxes(record) for record in read.records} != expected:
        raise DataError(
            f"{data}: a dataset YAML cannot name the images of {part.split} here; write the data set with nextdetr convert "
            "first, and fix what it wrote."
        )


def _boxes(record: ImageRecord) -> tuple[bytes, bytes, bytes]:
    return record.boxes.tobytes(), record.labels.tobytes(), record.crowd.tobytes()


def _of_sets(sets: list[Path], parts: Parts, kept: dict[str, list[Path]], target: Path) -> dict[Path, dict[str, Any]]:
    """Return a dataset YAML for each of several data sets of which an image is kept.

    Raises:
        DataError: as ``write_fixed``, or one of these files exists.
    """
    contents = {}
    for number, path in enumerate(sets, start=1):
        own = {split: load_data(path, split, check_images=False) for split in available_splits(path) if split in parts}
        wanted = {split: set(kept[split]) for split in own}
        left = {split: [r.path for r in part.records if r.path in wanted[split]] for split, part in own.items()}
        own = {split: part for split, part in own.items() if left[split]}
        if not own:
            continue
        file = target.with_name(f"{target.stem}-{number}{target.suffix}")
        if file.exists():
            raise DataError(f"{file}, for the images of {path}, exists already, and is not touched; choose another name.")
        content = _content(path, own, {split: left[split] for split in own}, file)
        contents[file] = {key: value for key, value in content.items() if left.get(key, True)}
    return contents


def _content(data: Path, parts: Parts, kept: dict[str, list[Path]], target: Path) -> dict[str, Any]:
    """Return a dataset YAML for one data set."""
    kind = next(iter(parts.values())).recognised.split(":")[0]
    root = data.resolve() if data.is_dir() else data.resolve().parent
    content: dict[str, Any] = {}
    if kind == "yaml":
        file = yaml_in(data)
        assert file is not None
        content = parse_yaml(file)
        root = root_of(content, file).resolve()
        kind = content["format"]
        if kind in _FORMATS and all(isinstance(content.get(split), dict) for split in parts):
            return _from_yaml(content, root, kept, target)
    if kind not in _FORMATS:
        raise DataError(
            f"{data}: of the format {kind} a dataset YAML cannot name the splits; write it with nextdetr convert --to coco "
            "first, and fix what it wrote."
        )
    classes = list(dict.fromkeys(name for part in parts.values() for name in part.classes))
    found: dict[str, Any] = {"format": kind, "root": _relative(root, target.resolve().parent), "classes": classes}
    found |= _row_settings(yaml_in(root if content else data) if kind == "yolo" else None, content)
    for split in parts:
        raw = read_raw(data, split)
        folder = Path(os.path.commonpath([image.path.resolve().parent for image in raw.images]))
        entry: dict[str, Any] = {"images": _relative(folder, root)}
        files = sorted({image.file for image in raw.images if image.file})
        if kind == "coco":
            if len(files) != 1:
                raise DataError(f"{data}: the split {split} has {len(files)} annotation files; a dataset YAML names one.")
            entry["annotations"] = _relative(Path(files[0]).resolve(), root)
        elif kind == "voc":
            parents = [Path(file).resolve().parent for file in files if file.endswith(".xml")]
            entry["annotations"] = _relative(Path(os.path.commonpath(parents or [folder])), root)
        found[split] = {**entry, "include": _names(kept[split], folder)}
    return found


def _row_settings(yolo: Path | None, content: dict[str, Any]) -> dict[str, Any]:
    """Return what YAMLs say of the rows of labels: a YOLO set's own, and ours, whose ``content`` is given."""
    with contextlib.suppress(DataError):  # a file of another program, in a folder with a classes.txt
        content = {**({} if yolo is None else parse_yaml(yolo)), **content}
    return {key: content[key] for key in ("kpt_shape", "min_confidence") if key in content}


def _from_yaml(content: dict[str, Any], root: Path, kept: dict[str, list[Path]], target: Path) -> dict[str, Any]:
    """Return a dataset YAML with only its location and included images changed."""
    fixed = {**content, "root": _relative(root, target.resolve().parent)}
    default = "JPEGImages" if content["format"] == "voc" else "."
    for split, paths in kept.items():
        folder = (root / str(content[split].get("images") or default)).resolve()
        fixed[split] = {**content[split], "include": _names(paths, folder)}
    return fixed


def _names(paths: list[Path], folder: Path) -> list[str]:
    resolved = [path.resolve() for path in paths]
    return [(path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix() for path in resolved]


def _relative(path: Path, start: Path) -> str:
    try:
        return Path(os.path.relpath(path, start)).as_posix()
    except ValueError:  # a different drive
        return path.as_posix()
