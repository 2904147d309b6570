"""What can be done with the detections of an image, from a list or from a stream: draw, save, show, tabulate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nextdetr.errors import ConfigError, NextDETRError
from nextdetr.files import write_text_atomic
from nextdetr.inference.drawing import draw_detections
from nextdetr.inference.notebook import html_picture, html_table, html_text, jpeg_bytes, show_picture
from nextdetr.inference.objects import Found
from nextdetr.inference.picture_file import picture_stem, picture_suffix, write_picture
from nextdetr.json_text import json_text

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

    from nextdetr.preprocess import ImageSource

_EDGE = 0.01  # pixels that a box must reach into one to touch it

__all__ = ["Shown", "import_pandas", "listed", "table_rows"]


class Shown:
    """Detections that know their image."""

    __slots__ = ()

    def _found(self) -> Found:
        raise NotImplementedError

    def _picture(self) -> Image.Image:
        """Return the image, or raise a DataError that says why it is not there."""
        raise NotImplementedError

    def _called(self) -> tuple[str, int | None]:
        """Return the path or name of the image, as text, and in a video the number of the frame."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Return the image's part of the JSON result of ``nextdetr predict``."""
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        """Return how many objects of each class were found, the most frequent class first."""
        return dict(Counter(str(name) for name in self._found().data.get("class_name", ())).most_common())

    def plot(self, image: ImageSource | None = None) -> Image.Image:
        """Return a copy of the image with boxes, class names and confidences.

        Args:
            image: to draw on; by default the one that the detections are of, which is read again where nobody kept it.

        Raises:
            DataError: the image cannot be read, or is gone.
        """
        return draw_detections(self._picture() if image is None else image, self._found())

    def save(self, path: str | Path | None = None) -> Path:
        """Write the annotated image, or with a name that ends in ``.json`` the JSON result, whole or not at all.

        Args:
            path: the file, of any usual ending of pictures; by default ``<name>-detected.jpg`` in the working folder.

        Returns:
            Where it is.

        Raises:
            ConfigError: nothing is written with that ending.
            DataError: the image cannot be read, or is gone.
            WriteError: the file cannot be written.
        """
        if path is not None and Path(path).suffix.lower() == ".json":
            write_text_atomic(path, json_text(self.to_json()) + "\n")
            return Path(path)
        picture = self.plot()
        if path is None:
            path = f"{picture_stem(*self._called())}-detected{picture_suffix(picture)}"
        return write_picture(picture, path)

    def show(self) -> None:
        """Show the annotated image: in the notebook that runs this, or else in the desktop's viewer.

        Raises:
            ConfigError: there is neither a notebook nor a desktop; ``save`` writes a file.
        """
        show_picture(self.plot(), self._called()[0])

    def crops(self) -> list[Image.Image]:
        """Return what is in each box, in their order, cut out to whole pixels, at least one."""
        picture = self._picture()
        return [picture.crop(window) for window in crop_windows(self._found(), picture.size)]

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with a row for each detection.

        Its columns are ``path``, of videos ``frame`` and ``seconds``, ``x1``, ``y1``, ``x2``, ``y2`` (pixels),
        ``confidence``, ``class_id``, ``class_name``, and of tracked objects ``track_id``.

        Raises:
            ConfigError: pandas is not installed.
        """
        return import_pandas().DataFrame(*table_rows([self.to_json()]))

    def _repr_jpeg_(self) -> bytes | None:
        try:
            return jpeg_bytes(self.plot())
        except NextDETRError:
            return None

    def _repr_html_(self) -> str:
        try:
            picture = html_picture(self.plot())
        except NextDETRError as error:
            picture = f"<p>{html_text(error)}</p>"
        result = self.to_json()
        title = f"{result['path']}, {result['width']} x {result['height']}"
        title += f", frame {result['frame']}" if "frame" in result else ""
        names, rows = ("class", "confidence", "box"), []
        for row in result["detections"]:
            track = "" if row.get("track_id") is None else f" {row['track_id']}"
            rows.append((row["class_name"] + track, row["confidence"], ", ".join(f"{edge:.0f}" for edge in row["box"])))
        return f"{picture}<p>{html_text(title)}</p>" + (html_table(names, rows) if rows else "<p>nothing found</p>")


def listed(counts: Mapping[str, int]) -> str:
    """Return "9 RBC, 1 WBC" for counts by class, the most frequent first; "nothing" where there are none."""
    return ", ".join(f"{count:,} {name}" for name, count in Counter(counts).most_common()) or "nothing"


def crop_windows(found: Found, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Return the whole pixels that each box touches, xyxy, at least one of an image of this width and height."""
    width, height = size
    low = np.floor(found.xyxy[:, :2] + _EDGE).clip(0, (width - 1, height - 1)).astype(int)
    high = np.ceil(found.xyxy[:, 2:] - _EDGE).clip(low + 1, (width, height)).astype(int)
    return [(left, upper, right, lower) for (left, upper), (right, lower) in zip(low.tolist(), high.tolist(), strict=True)]


def table_rows(results: list[dict[str, Any]]) -> tuple[list[list[Any]], None, list[str]]:
    """Return rows, no index, and names of columns for ``pandas.DataFrame``, of the JSON results of images."""
    videos = any("frame" in result for result in results)
    tracks = any("track_id" in row for result in results for row in result["detections"])
    names = [
        "path",
        *(("frame", "seconds") if videos else ()),
        "x1",
        "y1",
        "x2",
        "y2",
        "confidence",
        "class_id",
        "class_name",
    ]
    rows = []
    for result in results:
        place = [result["path"], *((result.get("frame"), result.get("seconds")) if videos else ())]
        for row in result["detections"]:
            track = [row.get("track_id")] if tracks else []
            rows.append([*place, *row["box"], row["confidence"], row["class_id"], row["class_name"], *track])
    return rows, None, [*names, *(["track_id"] if tracks else [])]


def import_pandas() -> Any:
    """Return pandas.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ConfigError("a table needs the package pandas, which is not installed: pip install pandas.") from error
    return pd
