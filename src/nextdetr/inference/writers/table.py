"""Predictions on any number of images as one Parquet table, in bounded memory, taken up again where a run broke off.

Rows are written in parts beside the table, each whole or not at all; the next run with the same settings leaves out the
images that are in them. When all is done the parts become the table. One process writes a table at a time. A row is an
image: ``path``, ``width``, ``height``, ``problem`` (why it could not be read, else null) and ``detections``, a list of
``{box, confidence, class_id, class_name}``, boxes xyxy in pixels.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nextdetr.errors import ConfigError, DataError, missing_extra
from nextdetr.files import atomic_write, exclusive, make_directory, path_text, write_text_atomic
from nextdetr.inference.predictor import Prediction

__all__ = ["PART_ROWS", "PredictionTable"]

PART_ROWS = 256  # images that a kill costs at most


class PredictionTable:
    """A table in the making.

    Args:
        path: of the table, ``.parquet``.
        settings: whatever the rows depend on; another run must have the same to go on.
        part_rows: rows of a part; ``PART_ROWS`` by default.

    Attributes:
        resumed: whether an earlier run has written rows; known once the table is ``kept``.

    Raises:
        ConfigError: the table exists, or was begun with other settings, or pyarrow is missing.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, part_rows: int | None = None) -> None:
        self.path, self.part_rows = path, part_rows or PART_ROWS
        self.parts = path.with_name(f"{path.name}.parts")
        self.settings = json.dumps(settings, sort_keys=True, default=str)
        self._arrow, self._parquet = _pyarrow()
        self._schema = _schema(self._arrow, self.settings)
        self._rows: list[dict[str, Any]] = []
        self._done: set[bytes] = set()
        self.resumed = False
        self._check()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the table for this process, and look up what earlier runs have written.

        Raises:
            ConfigError: another process is writing it, or has finished it meanwhile.
            WriteError: the folder of the parts cannot be written.
        """
        make_directory(self.parts)
        try:
            with exclusive(self.parts):
                self._check()
                if not self._noted.is_file():
                    write_text_atomic(self._noted, self.settings)
                self._done = {_key(path) for part in self._files() for path in self._paths(part)}
                self.resumed = bool(self._done)
                yield
        finally:
            if self.path.exists():  # the parts are in it
                shutil.rmtree(self.parts, ignore_errors=True)

    def remaining(self, paths: Iterable[str]) -> Iterator[str]:
        """Leave out the images that are in the table already, and those that are named twice."""
        for path in paths:
            key = _key(path)
            if key not in self._done:
                self._done.add(key)
                yield path

    def add(self, prediction: Prediction) -> None:
        """Keep a row, and write a part when there are enough of them."""
        self._rows.append({"problem": None, **prediction.to_json()})
        if len(self._rows) >= self.part_rows:
            self._write()

    def commit(self) -> None:
        """Make the table of the parts, and count its rows."""
        self._write()
        files = self._files()
        wanted = sum(self._parquet.read_metadata(part).num_rows for part in files)
        with atomic_write(self.path) as temporary:
            with self._parquet.ParquetWriter(temporary, self._schema) as writer:
                for part in files:
                    writer.write_table(self._parquet.read_table(part))
            rows = self._parquet.read_metadata(temporary).num_rows
            if rows != wanted:
                raise OSError(f"it has {rows} of {wanted} rows")

    def abort(self) -> None:
        """Write what is in hand; the next run goes on behind it."""
        self._write()

    @property
    def _noted(self) -> Path:
        return self.parts / "settings.json"

    def _check(self) -> None:
        if self.path.exists():
            raise ConfigError(f"{self.path} exists already: move it away, or choose another --output.")
        if self._noted.is_file() and self._noted.read_text(encoding="utf-8") != self.settings:
            raise ConfigError(
                f"{self.path} was begun with another model or other settings: finish it with those, or remove {self.parts}."
            )

    def _files(self) -> list[Path]:
        return sorted(self.parts.glob("part-*.parquet"))

    def _next_number(self) -> int:
        """Return a number above those of all parts: one in the middle may have been removed, as it was damaged."""
        numbers = (part.stem.removeprefix("part-") for part in self._files())
        return max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1

    def _paths(self, part: Path) -> list[str]:
        try:
            paths: list[str] = self._parquet.read_table(part, columns=["path"]).column("path").to_pylist()
        except (self._arrow.ArrowException, OSError) as error:
            raise DataError(f"{part} is damaged ({error}): remove it, and the images in it are looked at again.") from error
        return paths

    def _write(self) -> None:
        if not self._rows:
            return
        table = self._arrow.Table.from_pylist(self._rows, schema=self._schema)
        with atomic_write(self.parts / f"part-{self._next_number():08d}.parquet") as temporary:
            self._parquet.write_table(table, temporary)
        self._rows = []


def _key(path: str) -> bytes:
    """Eight bytes for a path as the table has it: a set of millions of paths would fill the memory."""
    return hashlib.blake2b(path_text(path).encode(), digest_size=8).digest()


def _schema(arrow: Any, settings: str) -> Any:
    found = arrow.struct(
        [
            ("box", arrow.list_(arrow.float32())),
            ("confidence", arrow.float32()),
            ("class_id", arrow.int32()),
            ("class_name", arrow.string()),
        ]
    )
    fields = [
        ("path", arrow.string()),
        ("width", arrow.int32()),
        ("height", arrow.int32()),
        ("problem", arrow.string()),
        ("detections", arrow.list_(found)),
    ]
    return arrow.schema(fields, metadata={"nextdetr": settings})


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise missing_extra("pyarrow", "parquet", "a Parquet table") from error
    return pyarrow, parquet
