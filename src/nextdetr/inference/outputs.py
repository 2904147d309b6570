"""What a prediction run writes: annotated pictures and videos, COCO results, YOLO label files, crops of objects."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nextdetr.errors import ConfigError
from nextdetr.inference.predictor import Prediction
from nextdetr.inference.writers.behind import Behind
from nextdetr.inference.writers.coco import CocoFile, coco_results
from nextdetr.inference.writers.crops import CropFiles
from nextdetr.inference.writers.lines import JsonLines
from nextdetr.inference.writers.names import Stems, free_stem
from nextdetr.inference.writers.pictures import Draw, PictureFiles
from nextdetr.inference.writers.protocol import Writer, written
from nextdetr.inference.writers.yolo import LabelFiles, yolo_text

if TYPE_CHECKING:
    from nextdetr.identity import Identity

__all__ = ["SAVE_KINDS", "coco_results", "free_stem", "save_predictions", "yolo_text"]

SAVE_KINDS = ("images", "json", "yolo", "crops")


def save_predictions(
    predictions: Iterable[Prediction],
    output: str | Path,
    save: Collection[str],
    *,
    identity: Identity | None = None,
    draw: Draw | None = None,
    classes: Sequence[str] | None = None,
    root: Path | None = None,
) -> Iterator[Prediction]:
    """Write each prediction as it comes, and pass it on.

    Under ``output``: ``images/<stem>.jpg`` (annotated pictures; ``.png`` above 65,500 pixels a side), ``labels/<stem>.txt``
    (YOLO), ``crops/<class>/<stem>-<n>.jpg`` (an object each) and ``predictions.json`` (COCO results, written when the run
    ends). An image whose stem was taken already, from another folder or with another ending, becomes ``<stem>-2``, and so
    on; below ``root`` the stem has the subfolders, as in ``images/a/b/photo.jpg``. Unreadable images leave no file. Of a
    video there are ``videos/<stem>.mp4`` (annotated), ``videos/<stem>.jsonl`` (one line of JSON a frame),
    ``labels/<stem>_<frame>.txt`` and ``crops/<class>/<stem>_<frame>_<n>.jpg`` instead. ``predictions.yaml`` makes a data
    set of the label files and of the images that they are of, which ``predictions.txt`` lists.

    Of a run that is broken off, or left before its end, ``predictions.part.json``, ``videos/<stem>.part.mp4`` and
    ``videos/<stem>.part.jsonl`` hold what there is by then; the names without ``part`` are for what is whole.

    Args:
        predictions: the results, from ``Predictor.stream``.
        output: folder, made if need be.
        save: any of ``images``, ``json``, ``yolo``, ``crops``.
        identity: what the data set calls its classes and images, for the COCO results; see ``coco_results``.
        draw: makes the picture of an image or frame; by default its detections are drawn.
        classes: names in the order of the model's indices; with them, label files get a ``predictions.yaml``.
        root: the folder that all images are below, whose subfolders ``images`` and ``labels`` get too.

    Raises:
        ConfigError: ``save`` names something else, or another process is writing the same results.
        WriteError: something cannot be written; what was whole before stays.
    """
    unknown = [kind for kind in save if kind not in SAVE_KINDS]
    if unknown:
        raise ConfigError(f"nothing is saved as {unknown[0]}: choose from {', '.join(SAVE_KINDS)}.")
    output, stems = Path(output), Stems(root)
    writers: list[Writer] = []
    if "images" in save:
        writers.append(PictureFiles(output / "images", stems, draw))
    if "yolo" in save:
        writers.append(LabelFiles(output / "labels", stems, classes, root))
    if "crops" in save:
        writers.append(CropFiles(output / "crops", stems, classes))
    if "json" in save:
        writers.append(CocoFile(output / "predictions.json", identity))
    if "images" in save or "json" in save:
        writers.append(VideoFiles(output / "videos", stems, pictures="images" in save, lines="json" in save, draw=draw))
    return written(predictions, writers)


class VideoFiles:
    """Writes the frames of one video after the other, each video in a thread; images are skipped.

    Args:
        folder: where to.
        stems: names the files.
        pictures: whether to write annotated videos.
        lines: whether to write a line of JSON a frame.
        draw: see :func:`save_predictions`.
    """

    def __init__(self, folder: Path, stems: Stems, *, pictures: bool, lines: bool, draw: Draw | None = None) -> None:
        self._folder, self._stems, self._pictures, self._lines, self._draw = folder, stems, pictures, lines, draw
        self._path: str | None = None
        self._current: Writer | None = None

    def add(self, prediction: Prediction) -> None:
        """Hand on a frame; with the first one of another video, the one before is committed."""
        if prediction.frame is None:
            return
        if self._current is None or prediction.begins_video(self._path):
            self.commit()
            self._path, self._current = prediction.path, self._open(self._stems.of(prediction))
        self._current.add(prediction)

    def commit(self) -> None:
        """Commit the current video."""
        current, self._current = self._current, None
        if current is not None:
            current.commit()

    def abort(self) -> None:
        """Abort the current video; those before it are complete."""
        current, self._current = self._current, None
        if current is not None:
            current.abort()

    def _open(self, stem: str) -> Writer:
        from nextdetr.inference.writers.video import AnnotatedVideo

        opened: list[Writer] = []
        if self._lines:
            opened.append(JsonLines(self._folder / f"{stem}.jsonl"))
        if self._pictures:
            opened.append(AnnotatedVideo(self._folder / f"{stem}.mp4", self._draw))
        return Behind(opened)
