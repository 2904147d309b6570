"""What ``Detector.predict`` returns: supervision's detections, which also know their image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, SupportsIndex, overload

from nextdetr.errors import ConfigError, NextDETRError
from nextdetr.inference._supervision import sv
from nextdetr.inference.notebook import html_picture, html_table, html_text
from nextdetr.inference.origin import ImageReader
from nextdetr.inference.picture_file import picture_stem, picture_suffix, write_picture
from nextdetr.inference.prediction import Prediction
from nextdetr.inference.shown import Shown, import_pandas, listed, table_rows
from nextdetr.inference.writers.names import free_stem

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

__all__ = ["Result", "Results"]

_PICTURES = 6  # of a list that are shown in a notebook
_SIDE = 400  # pixels of each


class Result(Shown, sv.Detections):
    """The detections of one image: a ``supervision.Detections``, boxes xyxy in pixels of the image, best first.

    A part of it, such as ``result[result.confidence > 0.5]``, is a ``Result`` of the same image. The pixels of files are
    not kept but read again when needed; images in memory belong to the caller.
    """

    _prediction: Prediction | None = None

    @classmethod
    def of(cls, prediction: Prediction, *, keep: bool = True) -> Self:
        """Return the result of a prediction.

        Args:
            prediction: what was found in an image, which is let go of.
            keep: whether an image in memory is held on to.
        """
        origin = prediction.origin
        if origin is not None and not keep:
            origin = replace(origin, given=None)
        return cls._made(prediction.detections, replace(prediction, image=None, maps=None, origin=origin))

    @classmethod
    def _made(cls, found: sv.Detections, prediction: Prediction | None) -> Self:
        result = cls(
            xyxy=found.xyxy, mask=found.mask, confidence=found.confidence, class_id=found.class_id,
            tracker_id=found.tracker_id, data=found.data, metadata=found.metadata,
        )  # fmt: skip
        result._prediction = prediction
        return result

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return self._made(found, self._prediction) if isinstance(found, sv.Detections) else found

    @property
    def path(self) -> str | None:
        """Path or address of the image, or of the video that it is a frame of; None of an image from memory."""
        origin = self._known().origin
        return None if origin is not None and origin.in_memory else self._known().path

    @property
    def name(self) -> str:
        """The path, or the name of an image in memory: what it knows itself, or else image-1, image-2 and so on."""
        return self._known().path

    @property
    def width(self) -> int:
        """Width of the image, pixels, EXIF orientation applied; 0 where it could not be read."""
        return self._known().width

    @property
    def height(self) -> int:
        """Height of the image, likewise."""
        return self._known().height

    @property
    def frame(self) -> int | None:
        """Number of the frame, where the image is one of a video."""
        return self._known().frame

    @property
    def seconds(self) -> float | None:
        """Time of the frame from the video's start."""
        return self._known().seconds

    @property
    def problem(self) -> str | None:
        """Why the image could not be read; None where all is well."""
        return self._known().problem

    @property
    def counted(self) -> dict[str, Any] | None:
        """Of a frame, what ``line`` and ``zone`` have counted by then."""
        return self._known().counted

    @property
    def image(self) -> Image.Image:
        """The image, RGB; a file is read again each time.

        Raises:
            DataError: it cannot be read, or is not kept.
        """
        return self._picture()

    def to_json(self) -> dict[str, Any]:
        """Return the image's part of the JSON result of ``nextdetr predict``."""
        return replace(self._known(), found=self).to_json()

    def _known(self) -> Prediction:
        if self._prediction is None:
            raise ConfigError(
                "these detections do not know their image any more: keep the result of predict, or a part of it."
            )
        return self._prediction

    def _found(self) -> sv.Detections:
        return self

    def _called(self) -> tuple[str, int | None]:
        return self._known()._called()

    def _picture(self, reader: ImageReader | None = None) -> Image.Image:
        return self._known()._picture(reader)


class Results(list[Result]):
    """A list with one ``Result`` an image."""

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> Result: ...
    @overload
    def __getitem__(self, index: slice, /) -> Results: ...
    def __getitem__(self, index: Any, /) -> Any:
        found = super().__getitem__(index)
        return Results(found) if isinstance(index, slice) else found

    def save(self, folder: str | Path) -> list[Path]:
        """Write the annotated images to a folder, as ``<name>.jpg``, ``<name>-2.jpg``, … where names are the same.

        Frames of a video are ``<name>_<frame>.jpg``.

        Returns:
            Where they are, without those that could not be read.

        Raises:
            DataError: an image is gone.
            WriteError: a file cannot be written.
        """
        taken: set[str] = set()
        written = []
        with ImageReader() as reader:
            for result in self:
                if result.problem is None:
                    picture = result.plot(result._picture(reader))
                    stem = free_stem(picture_stem(result.name, result.frame) + picture_suffix(picture), taken)
                    written.append(write_picture(picture, Path(folder) / f"{stem}{picture_suffix(picture)}"))
        return written

    def to_pandas(self) -> pd.DataFrame:
        """Return one table of all detections; see ``Result.to_pandas``."""
        table: pd.DataFrame = import_pandas().DataFrame(*table_rows([result.to_json() for result in self]))
        return table

    def _repr_html_(self) -> str:
        rows = [(result.name, len(result), listed(result.counts())) for result in self]
        with ImageReader() as reader:
            gallery = _gallery(self[:_PICTURES], reader)
        return gallery + html_table(("image", "objects", "classes"), rows)


def _gallery(results: Iterable[Result], reader: ImageReader) -> str:
    pictures = []
    for result in results:
        try:
            pictures.append(html_picture(result.plot(result._picture(reader)), _SIDE))
        except NextDETRError as error:
            pictures.append(f"<p>{html_text(error)}</p>")
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{"".join(pictures)}</div>'
