"""Parquet files of Hugging Face's ``datasets``: a column of encoded images, and one of objects: see ``hf.py``.

Splits are given by file names (``data/train-00000-of-00002.parquet``) or folders (``default/validation/0000.parquet``). The
images are written once, unchanged, to a folder in the user's cache, since everything else reads image files;
``NEXTDETR_CACHE`` names another folder. Images referenced by path are read in place.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nextdetr.data.hf import BOX_KEYS, CATEGORY_KEYS, RowReader, class_names, readme_names
from nextdetr.data.listing import list_files
from nextdetr.data.objects import Annotated, build_split, by_split, locate
from nextdetr.data.raw import RawSplit
from nextdetr.data.recognise import Format, Glance, SplitReader
from nextdetr.data.records import Problem
from nextdetr.errors import DataError, missing_extra
from nextdetr.files import make_directory, write_text_atomic

__all__ = ["PARQUET", "cache_folder"]

_ROWS = 64  # images in memory at once
_TAIL = 1 << 17  # bytes at the end of a file that contain the column names
_INDEX = "index.json"
_REMEDY = "ClassLabel features, as datasets writes them, name them"
_ENDINGS = (
    (b"\x89PNG", ".png"),
    (b"\xff\xd8", ".jpg"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
)


def _files(glance: Glance) -> list[Path]:
    if glance.is_file:
        return glance.files(".parquet")
    own = glance.files(".parquet")
    return own or list_files(glance.path, {".parquet"}).files


def _recognise(glance: Glance) -> str:
    files = glance.nested(".parquet")
    if not files:  # default/train/0000.parquet, as in the Hub's own copies
        files = [path for top in glance.tops for path in top.first_below(".parquet")]
    found = next((path for path in files[:4] if _has_boxes(path)), None)
    return "" if found is None else glance.shown(found)


def _has_boxes(file: Path) -> bool:
    """Whether a Parquet file has columns of image bytes and boxes, by the names at its end."""
    try:
        with file.open("rb") as stream:
            length = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, length - _TAIL))
            end = stream.read()
    except OSError:
        return False
    return end.endswith(b"PAR1") and b"image" in end and any(key.encode() in end for key in BOX_KEYS)


def _open(glance: Glance) -> dict[str, SplitReader]:
    path = glance.path
    splits = by_split(_files(glance), path)
    return {split: partial(_read, path, splits, split) for split in splits}


def _read(root: Path, splits: dict[str, list[Path]], split: str, classes: Sequence[str] | None) -> RawSplit:
    """Read the files of a split; the classes are those of all files if the files do not name them."""
    tables = {file: _Table(file) for files in splits.values() for file in files}
    names = next((table.names for table in tables.values() if table.names), None)
    reader = RowReader(names or readme_names(root if root.is_dir() else root.parent))
    chosen: list[Annotated] = []
    problems: list[Problem] = []
    for file, table in tables.items():
        own = file in splits[split]
        if not own and reader.names:
            continue
        reader.problems = []
        images = []
        for number, row in enumerate(table.objects(), start=1):
            item = Annotated(f"{file.stem}/{number}", str(file), f"row {number}")
            reader.add(item, row)
            images.append(item)
        if own:
            paths, places = table.images()
            for item, path in zip(images, paths, strict=True):
                if path is None:
                    message = "it has neither the bytes of an image nor a path; dropped with its boxes"
                    reader.problems.append(Problem(item.file, item.where, message, "missing image"))
                elif isinstance(path, str):
                    item.name = path
                else:
                    item.path = path
            images = [item for item, path in zip(images, paths, strict=True) if path is not None]
            chosen += images
            problems += [*reader.problems, *locate(images, places, split)]
    own_names, ids = reader.classes()
    for item in chosen:
        item.objects = [mark._replace(label=ids[mark.label]) for mark in item.objects]
    problems += reader.unnamed(str(root), _REMEDY)
    raw = build_split(chosen, own_names, classes, source=str(root), problems=problems)
    raw.extents = True
    return raw


class _Table:
    """One Parquet file.

    Raises:
        DataError: it cannot be read, or has no column of images or none of boxes.
        ConfigError: pyarrow is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise missing_extra("pyarrow", "parquet", f"reading {path.name}") from None
        self.path, self._pa, self._pq = path, pa, pq
        try:
            self.schema = pq.read_schema(path)
        except (OSError, ValueError, pa.ArrowException) as error:  # also for names that are not UTF-8
            raise DataError(f"{path} cannot be read as Parquet: {_first_line(error)}.") from error
        self.names = _names(self.schema)
        self._image = next((field.name for field in self.schema if self._holds_images(field)), "")
        wanted = ("objects", *BOX_KEYS, *CATEGORY_KEYS, "iscrowd")
        self._columns = [field.name for field in self.schema if field.name in wanted]
        if not self._image or not set(self._columns) & {"objects", *BOX_KEYS}:
            lacking = "images (bytes, or bytes and path)" if not self._image else "objects with bbox"
            raise DataError(f"{path}: it has no column of {lacking}; its columns are {', '.join(self.schema.names)}.")

    def _holds_images(self, field: Any) -> bool:
        kind, pa = field.type, self._pa
        if pa.types.is_struct(kind):
            return any(kind.field(number).name == "bytes" for number in range(kind.num_fields))
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def _rows(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        try:
            with self._pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
                    yield from batch.to_pylist()
        except (OSError, ValueError, self._pa.ArrowException) as error:
            raise DataError(f"{self.path} cannot be read as Parquet: {_first_line(error)}.") from error

    def objects(self) -> Iterator[dict[str, Any]]:
        """Yield the objects of each row."""
        return self._rows(self._columns)

    def images(self) -> tuple[list[Path | str | None], list[Path]]:
        """Write the images to the cache, unless that was done before.

        Returns:
            (for each row the image file, the path that the row names in place of bytes, or None; folders to look for such).

        Raises:
            WriteError: the cache cannot be written.
        """
        folder = cache_folder() / "parquet" / f"{self.path.stem}-{_digest(self.path)}"
        index = folder / _INDEX
        if not index.is_file():
            names = [self._write(folder, number, row[self._image]) for number, row in enumerate(self._rows([self._image]))]
            write_text_atomic(index, json.dumps(names))  # last: if it exists, all images do
        names = json.loads(index.read_text("utf-8"))
        paths = [folder / name["file"] if name and "file" in name else name and name["path"] for name in names]
        return paths, [self.path.parent, *self.path.parents[1:3]]

    @staticmethod
    def _write(folder: Path, number: int, value: Any) -> dict[str, str] | None:
        content = value.get("bytes") if isinstance(value, dict) else value
        if not content:
            path = value.get("path") if isinstance(value, dict) else None
            return {"path": path} if path else None
        name = f"{number:06d}{_ending(content)}"
        make_directory(folder)
        part = folder / f".{name}.{os.getpid()}"
        part.write_bytes(content)
        part.replace(folder / name)
        return {"file": name}


def cache_folder() -> Path:
    """Return the cache folder: ``NEXTDETR_CACHE``, or ``nextdetr`` in the user's cache."""
    given = os.environ.get("NEXTDETR_CACHE")
    if given:
        return Path(given).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "nextdetr"


def _digest(path: Path) -> str:
    """Return a digest that changes when the file does."""
    state = path.stat()
    return hashlib.blake2b(f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}".encode(), digest_size=8).hexdigest()


def _ending(content: bytes) -> str:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    return next((ending for start, ending in _ENDINGS if content.startswith(start)), ".jpg")


def _names(schema: Any) -> list[str]:
    """Return the class names that ``datasets`` keeps in a Parquet file's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return []
    return class_names(features)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


PARQUET = Format("parquet", "Parquet files with images and boxes (the extra parquet reads them)", _recognise, _open)
