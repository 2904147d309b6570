"""Hugging Face's ImageFolder (https://huggingface.co/docs/datasets/image_load): images and ``metadata.jsonl``.

A row has ``file_name``, relative to the metadata file, and ``objects``: see ``hf.py``. The folders train, validation and
test, also inside a folder ``data``, are the splits, each with a metadata file; with one file above them, its paths name the
split. In a CSV, objects are written as JSON. Images without a row are left out and reported.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nextdetr.data.hf import BOX_KEYS, CATEGORY_KEYS, RowReader, readme_names
from nextdetr.data.listing import list_images, subfolders
from nextdetr.data.objects import Annotated, build_split, locate, split_called, unannotated
from nextdetr.data.raw import RawSplit, read_lines
from nextdetr.data.recognise import Format, Glance, SplitReader, start_of
from nextdetr.data.records import Problem
from nextdetr.errors import DataError

__all__ = ["IMAGEFOLDER"]

_NAMES = ("metadata.jsonl", "metadata.csv")
_LONE = "train"
_REMEDY = "a README.md with dataset_info, as datasets writes it, gives them names"


def _files(root: Path) -> list[Path]:
    """Return the metadata files: the folder's own, or those of its subfolders or of its folder ``data``."""
    for folder in (root, root / "data"):
        own = [folder / name for name in _NAMES if (folder / name).is_file()]
        if own:
            return own[:1]
        below = subfolders(folder) if folder.is_dir() else []
        files = [next((sub / name for name in _NAMES if (sub / name).is_file()), None) for sub in below]
        if any(files):
            return [file for file in files if file is not None]
    return []


def _recognise(glance: Glance) -> str:
    if glance.is_file:
        return glance.shown(glance.path) if glance.path.name in _NAMES and _has_boxes(glance.path) else ""
    files = _files(glance.path)
    return glance.shown(files[0]) if files and _has_boxes(files[0]) else ""


def _has_boxes(file: Path) -> bool:
    start = start_of(file, 1 << 16)
    return b"file_name" in start and any(key.encode() in start for key in ("objects", *BOX_KEYS))


def _open(glance: Glance) -> dict[str, SplitReader]:
    path = glance.path
    files = [path] if path.is_file() else _files(path)
    root = path.parent if path.is_file() else path
    if len(files) == 1 and (files[0].parent == root or not split_called(files[0].parent.name)):
        names = {_split_of(str(row.get("file_name"))) for _, row in _rows(files[0], [])}
        return {split: partial(_read, root, files, split, True) for split in sorted(names) or [_LONE]}
    splits = dict.fromkeys(_split_above(file) for file in files)
    return {split: partial(_read, root, files, split, False) for split in splits}


def _split_above(file: Path) -> str:
    return split_called(file.parent.name) or file.parent.name


def _split_of(name: str) -> str:
    """Return the split named by the first folder of a path, else the only one."""
    first, slash, _ = name.replace("\\", "/").removeprefix("./").partition("/")
    return split_called(first) or _LONE if slash else _LONE


def _read(root: Path, files: Sequence[Path], split: str, by_path: bool, classes: Sequence[str] | None) -> RawSplit:
    reader = RowReader(readme_names(root))
    chosen: list[Annotated] = []
    problems: list[Problem] = []
    for file in files:
        own = by_path or _split_above(file) == split
        images: list[Annotated] = []
        reader.problems = []
        for where, row in _rows(file, reader.problems):
            name = row.get("file_name")
            if not isinstance(name, str) or not name:
                reader.problems.append(Problem(str(file), where, "it has no file_name; dropped", "malformed image entry"))
                continue
            item = Annotated(name, str(file), where)
            reader.add(item, row)
            if not by_path or _split_of(name) == split:
                images.append(item)
        if own:
            problems += reader.problems
            problems += locate(images, [file.parent])
            problems += _unnamed(file, images, split if by_path else "")
            chosen += images
    names, ids = reader.classes()
    for item in chosen:
        item.objects = [mark._replace(label=ids[mark.label]) for mark in item.objects]
    problems += reader.unnamed(str(files[0]), _REMEDY)
    raw = build_split(chosen, names, classes, source=str(root), problems=problems)
    raw.extents = True
    return raw


def _unnamed(file: Path, images: Sequence[Annotated], split: str) -> list[Problem]:
    """Report the images beside a metadata file that have no row; for one split, if the paths name it."""
    named = {item.path for item in images}
    others = [path for path in list_images(file.parent).files if path not in named]
    others = [path for path in others if not split or _split_of(path.relative_to(file.parent).as_posix()) == split]
    return unannotated(file, others, "beside it that no row names")


def _rows(file: Path, problems: list[Problem]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of a metadata file."""
    return _csv_rows(file, problems) if file.suffix.lower() == ".csv" else _json_rows(file, problems)


def _json_rows(file: Path, problems: list[Problem]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(Problem(str(file), f"line {number}", f"not valid JSON ({error}); dropped", "malformed row"))
            continue
        if isinstance(row, dict):
            yield f"line {number}", row
        else:
            problems.append(Problem(str(file), f"line {number}", "it is not an object; dropped", "malformed row"))


def _csv_rows(file: Path, problems: list[Problem]) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(read_lines(file))
    try:
        in_json = _json_columns(reader.fieldnames or ())
        for row in reader:
            where = f"line {reader.line_num}"
            try:
                values = {
                    key: (json.loads(value) if value else None) if key in in_json else value
                    for key, value in row.items()
                    if key is not None
                }
            except (ValueError, RecursionError) as error:
                problems.append(
                    Problem(str(file), where, f"its objects are not valid JSON ({error}); dropped", "malformed row")
                )
                continue
            yield where, values
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: not valid CSV ({error}).") from error


def _json_columns(columns: Sequence[str]) -> set[str]:
    """Return the columns of a CSV whose cells are JSON, those of objects; others may hold any text, also a ``label``."""
    kinds = (("objects",),) if "objects" in columns else (BOX_KEYS, CATEGORY_KEYS, ("iscrowd",))
    return {key for keys in kinds for key in [key for key in keys if key in columns][:1]}


IMAGEFOLDER = Format(
    "imagefolder", "a Hugging Face image folder (metadata.jsonl with objects)", _recognise, _open, unfinished=True
)  # fmt: skip
