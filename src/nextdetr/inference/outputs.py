"""What a prediction run writes: annotated pictures and videos, COCO results, YOLO label files.

Each file is whole or not at all, but for those of videos: what there is by then stays if the run is broken off.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nextdetr.errors import ConfigError
from nextdetr.files import atomic_write, write_text_atomic
from nextdetr.inference.drawing import draw_detections
from nextdetr.inference.predictor import Prediction
from nextdetr.inference.video_output import Draw, VideoOutput

__all__ = ["SAVE_KINDS", "coco_results", "free_stem", "save_predictions", "yolo_text"]

SAVE_KINDS = ("images", "json", "yolo")


def save_predictions(
    predictions: Iterable[Prediction],
    output: str | Path,
    save: Collection[str],
    *,
    category_ids: Sequence[int] | None = None,
    draw: Draw | None = None,
) -> Iterator[Prediction]:
    """Write each prediction as it comes, and pass it on.

    Under ``output``: ``images/<stem>.jpg`` (annotated pictures), ``labels/<stem>.txt`` (YOLO) and ``predictions.json``
    (COCO results, written when the run ends, also when it is broken off, with what there is by then). An image whose stem
    was taken already, from another folder or with another ending, becomes ``<stem>-2``, and so on. Unreadable images leave
    no file. Of a video there are ``videos/<stem>.mp4`` (annotated), ``videos/<stem>.jsonl`` (one line of JSON a frame) and
    ``labels/<stem>_<frame>.txt`` instead.

    Args:
        predictions: the results, from ``Predictor.stream``.
        output: folder, made if need be.
        save: any of ``images``, ``json``, ``yolo``.
        category_ids: the data set's own id of each class, for the COCO results; by default the class indices.
        draw: makes the picture of a video's frame; by default its detections are drawn.

    Raises:
        ConfigError: ``save`` names something else.
    """
    unknown = [kind for kind in save if kind not in SAVE_KINDS]
    if unknown:
        raise ConfigError(f"nothing is saved as {unknown[0]}: choose from {', '.join(SAVE_KINDS)}.")
    return _save(predictions, Path(output), frozenset(save), category_ids, draw)


def _save(
    predictions: Iterable[Prediction],
    output: Path,
    save: frozenset[str],
    category_ids: Sequence[int] | None,
    draw: Draw | None,
) -> Iterator[Prediction]:
    taken: set[str] = set()
    seen: list[tuple[str, dict[str, Any]]] = []
    videos = _Videos(output, save, taken, draw)
    try:
        for prediction in predictions:
            if prediction.frame is not None:
                videos.add(prediction)
                yield prediction
                continue
            if prediction.image is not None:
                stem = free_stem(prediction.path, taken)
                if "images" in save:
                    picture = draw_detections(prediction.image, prediction.detections)
                    with atomic_write(output / "images" / f"{stem}.jpg") as temporary:
                        picture.save(temporary, format="JPEG", quality=92)
                if "yolo" in save:
                    write_text_atomic(output / "labels" / f"{stem}.txt", yolo_text(prediction))
            if "json" in save:
                seen.append((prediction.path, prediction.to_json()))
            yield prediction
    finally:
        videos.close()
        if "json" in save and (seen or not videos.path):
            write_text_atomic(output / "predictions.json", json.dumps(_coco(seen, category_ids), ensure_ascii=False))


class _Videos:
    """Writes the frames of one video after the other."""

    def __init__(self, output: Path, save: frozenset[str], taken: set[str], draw: Draw | None) -> None:
        self.output, self.save, self.taken, self.draw = output, save, taken, draw
        self.path, self.stem = "", ""
        self.writing: VideoOutput | None = None

    def add(self, prediction: Prediction) -> None:
        if self.writing is None or prediction.begins_video(self.path):
            self.close()
            self.path, self.stem = prediction.path, free_stem(prediction.path, self.taken)
            folder = self.output / "videos"
            self.writing = VideoOutput(
                folder / f"{self.stem}.mp4" if "images" in self.save else None,
                folder / f"{self.stem}.jsonl" if "json" in self.save else None,
                self.draw,
            )
        self.writing.add(prediction)
        if "yolo" in self.save:
            write_text_atomic(self.output / "labels" / f"{self.stem}_{prediction.frame:06d}.txt", yolo_text(prediction))

    def close(self) -> None:
        if self.writing is not None:
            writing, self.writing = self.writing, None
            writing.close()


def coco_results(predictions: Iterable[Prediction], *, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """Return detections as COCO results, boxes (x, y, width, height) in pixels.

    ``image_id`` is the number that the file names consist of, as in COCO's own images, where all of them do and differ;
    else the position of the image, from 1. ``file_name`` is added, so that no result is ever in doubt.

    Args:
        predictions: the results.
        category_ids: the data set's own id of each class; by default the class indices.
    """
    return _coco([(prediction.path, prediction.to_json()) for prediction in predictions], category_ids)


def yolo_text(prediction: Prediction) -> str:
    """Return lines ``class cx cy width height confidence``, boxes as fractions of the image; "" where nothing is found."""
    lines = []
    width, height = max(1, prediction.width), max(1, prediction.height)
    for row in prediction.to_json()["detections"]:
        x1, y1, x2, y2 = row["box"]
        box = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(" ".join([str(row["class_id"]), *(f"{value:.6f}" for value in (*box, row["confidence"]))]))
    return "".join(f"{line}\n" for line in lines)


def _coco(seen: Sequence[tuple[str, dict[str, Any]]], category_ids: Sequence[int] | None) -> list[dict[str, Any]]:
    stems = [Path(path).stem for path, _ in seen]
    numbered = all(stem.isdecimal() for stem in stems) and len({int(stem) for stem in stems}) == len(stems)
    results = []
    for position, ((path, result), stem) in enumerate(zip(seen, stems, strict=True), start=1):
        for row in result["detections"]:
            x1, y1, x2, y2 = row["box"]
            label = row["class_id"]
            results.append(
                {
                    "image_id": int(stem) if numbered else position,
                    "file_name": path,
                    "category_id": label if category_ids is None else category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": row["confidence"],
                }
            )
    return results


def free_stem(path: str, taken: set[str]) -> str:
    """Return a stem that no image of this run has taken; names that differ in case alone are the same on many disks."""
    wanted = Path(path).stem or "image"
    stem, number = wanted, 1
    while stem.casefold() in taken:
        number += 1
        stem = f"{wanted}-{number}"
    taken.add(stem.casefold())
    return stem
