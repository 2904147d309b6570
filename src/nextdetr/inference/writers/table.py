"""Predictions on any number of images as one Parquet table, in bounded memory, taken up again where a run broke off.

Rows are written in parts beside the table, each whole or not at all; the next run with the same settings leaves out the
images that stand in them. When all is done the parts become the table. A row is an image: ``path``, ``width``, ``height``,
``problem`` (why it could not be read, else null) and ``detections``, a list of ``{box, confidence, class_id, class_name}``,
boxes xyxy in pixels.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nextdetr.errors import ConfigError
from nextdetr.files import atomic_write, write_text_atomic
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
        resumed: whether an earlier run has written rows.

    Raises:
        ConfigError: the table exists, or was begun with other settings, or pyarrow is missing.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, part_rows: int | None = None) -> None:
        self.path, self.part_rows = path, part_rows or PART_ROWS
        self.parts = path.with_name(f"{path.name}.parts")
        self.settings = json.dumps(settings, sort_keys=True, default=str)
        self._arrow, self._parquet = _pyarrow()
        self._schema = _schema(self._arrow, self.settings)
        if path.exists():
            raise ConfigError(f"{path} exists already: move it away, or choose another --output.")
        self._begin()
        self._done = {_key(path) for part in self._files() for path in self._paths(part)}
        self.resumed = bool(self._done)

    def remaining(self, paths: Iterable[str]) -> Iterator[str]:
        """Leave out the images that stand in the table already."""
        return (path for path in paths if _key(path) not in self._done)

    def add(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Write each prediction and pass it on; what is in hand is written too when the run is broken off."""
        rows: list[dict[str, Any]] = []
        try:
            for prediction in predictions:
                rows.append({"problem": None, **prediction.to_json()})
                if len(rows) >= self.part_rows:
                    self._write(rows)
                    rows = []
                yield prediction
        finally:
            if rows:
                self._write(rows)

    def finish(self) -> None:
        """Make the table of the parts."""
        with atomic_write(self.path) as temporary, self._parquet.ParquetWriter(temporary, self._schema) as writer:
            for part in self._files():
                writer.write_table(self._parquet.read_table(part))
        shutil.rmtree(self.parts)

    def _begin(self) -> None:
        noted = self.parts / "settings.json"
        if not noted.is_file():
            write_text_atomic(noted, self.settings)
        elif noted.read_text(encoding="utf-8") != self.settings:
            raise ConfigError(
                f"{self.path} was begun with another model or other settings: finish it with those, or remove {self.parts}."
            )

    def _files(self) -> list[Path]:
        return sorted(self.parts.glob("part-*.parquet"))

    def _paths(self, part: Path) -> list[str]:
        paths: list[str] = self._parquet.read_table(part, columns=["path"]).column("path").to_pylist()
        return paths

    def _write(self, rows: list[dict[str, Any]]) -> None:
        table = self._arrow.Table.from_pylist(rows, schema=self._schema)
        with atomic_write(self.parts / f"part-{len(self._files()):08d}.parquet") as temporary:
            self._parquet.write_table(table, temporary)


def _key(path: str) -> bytes:
    """Eight bytes for a path: a set of millions of paths would fill the memory."""
    return hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=8).digest()


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
        raise ConfigError("a Parquet table needs the package pyarrow: pip install 'nextdetr[parquet]'.") from error
    return pyarrow, parquet
