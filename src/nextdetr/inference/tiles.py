"""Large images in overlapping tiles, so that small objects keep their pixels.

Slicing Aided Hyper Inference, arXiv 2202.06934. Each tile, and the whole image for what is larger than a tile, goes through
the model; the tiles of an image share batches. Where tiles overlap an object is found twice: equal boxes are thinned out by
non-maximum suppression, and what an edge has cut off is dropped if another box of its class has it whole, or else joined
with its other half, which is in another tile. Nothing else is suppressed: a small object inside a large one of its class
stays. An image that is no larger than a tile is looked at as without tiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nextdetr.array_boxes import batched_nms
from nextdetr.errors import ConfigError
from nextdetr.inference.frames import unfold
from nextdetr.inference.objects import Objects
from nextdetr.inference.origin import Origin
from nextdetr.inference.prediction import merge_detections
from nextdetr.inference.predictor import Prediction, Predictor, tell_unreadable
from nextdetr.inference.sources import SourceItem, Sources, find_images

__all__ = ["merge_tiles", "stream_tiles", "tile_windows"]


EQUAL = 0.5  # IoU from which two boxes of a class are one object
COVERED = 0.6  # share of a cut box that another one must cover
EDGE = 2.0  # pixels from an inner edge of a tile, within which a box counts as cut
LEAST = 0.1  # share of the smaller of two cut boxes of different tiles from which they may be one object
MOST = 300  # detections of a tile, if no more are asked for of the image

Window = tuple[int, int, int, int]


def tile_windows(width: int, height: int, tile: int, overlap: float) -> list[Window]:
    """Return tiles xyxy in pixels that cover an image, row by row; the last of a row or column ends at the image's edge."""
    step = max(1, round(tile * (1 - overlap)))

    def starts(length: int) -> list[int]:
        return [0] if length <= tile else [*range(0, length - tile, step), length - tile]

    return [(x, y, min(x + tile, width), min(y + tile, height)) for y in starts(height) for x in starts(width)]


def stream_tiles(
    predictor: Predictor, sources: Sources, *, tile: int, overlap: float, max_detections: int = 300,
    recursive: bool = False, animations: bool = True, merge_iou: float | None = None, **settings: Any,
) -> Iterator[Prediction]:  # fmt: skip
    """Do what ``Predictor.stream`` does, tile by tile.

    Args:
        predictor: runs the model.
        sources: as there.
        tile: side of a tile in pixels of the image.
        overlap: share of a tile that its neighbour covers too, 0 to 0.9.
        max_detections: most detections an image, after merging.
        recursive: as there.
        animations: as there.
        merge_iou: as there, after the tiles have been merged.
        settings: the other settings of ``Predictor.stream``.

    Raises:
        ConfigError: a setting is out of its range.
        DataError: as there.
    """
    if tile < 32:
        raise ConfigError(f"--tile is at least 32 pixels, not {tile}.")
    if not 0 <= overlap <= 0.9:
        raise ConfigError(f"--overlap is a share of the tile, 0 to 0.9, not {overlap}.")
    items = find_images(sources, videos=True, skipped=predictor.skipped, recursive=recursive)
    items = unfold(items, animations=animations, reading=predictor.reading)
    found = _stream(predictor, items, tile, overlap, max_detections, merge_iou, settings)
    return tell_unreadable(found, predictor.skipped)


def _stream(
    predictor: Predictor, items: Iterable[SourceItem], tile: int, overlap: float, most: int, merge_iou: float | None,
    settings: dict[str, Any],
) -> Iterator[Prediction]:  # fmt: skip
    for item in items:
        image, problem, more, given = item.open(predictor.reading)
        if image is None:
            yield Prediction(item.path, 0, 0, predictor.nothing(), None, problem, item.frame, item.seconds)
            continue
        predictor.skipped.update({"frames": more} if more else {})
        windows = tile_windows(*image.size, tile, overlap)
        if len(windows) > 1:
            windows = [*windows, (0, 0, *image.size)]
        found: list[Objects] = []
        maps, unlike = None, None
        for prediction in predictor.stream(_crops(image, windows), max_detections=max(MOST, most), **settings):
            found.append(Objects.of(prediction.found))
            maps, unlike = prediction.maps, prediction.unlikeness  # in the end of the last crop, the image as a whole
        merged = merge_tiles(found, windows, image.size)
        merged = merge_detections(merged[np.arange(len(merged))[:most]], merge_iou)
        yield Prediction(
            item.path, *image.size, merged, image, None, item.frame, item.seconds, tags=item.tags, maps=maps,
            unlikeness=unlike, origin=Origin(item.path, item.in_memory, item.frame, given, predictor.reading),
        )  # fmt: skip


def _crops(image: Image.Image, windows: Sequence[Window]) -> Iterator[Image.Image]:
    """Cut tiles as they are asked for: all of a large image's at once would take half as much memory again."""
    whole = (0, 0, *image.size)
    return (image if window == whole else image.crop(window) for window in windows)


def merge_tiles(found: Sequence[Objects], windows: Sequence[Window], size: tuple[int, int]) -> Objects:
    """Bring together what was found in an image's tiles.

    Args:
        found: objects of each tile, boxes xyxy in the tile's pixels.
        windows: the tiles, xyxy in the image's pixels.
        size: width and height of the image.

    Returns:
        Boxes in the image's pixels, best first.
    """
    if len(windows) == 1:
        return found[0]
    moved, cut, tiles = [], [], []
    for number, (objects, window) in enumerate(zip(found, windows, strict=True)):
        x, y = window[:2]
        boxes = (objects.xyxy + np.array([x, y, x, y])).astype(np.float32)
        cut.append(_touches(boxes, window, size))
        moved.append(replace(objects, xyxy=boxes))
        tiles.append(np.full(len(boxes), number))
    every = Objects.joined(moved)
    if len(every) == 0:
        return every
    assert every.confidence is not None
    assert every.class_id is not None
    boxes, scores, labels = every.xyxy.astype(np.float32), every.confidence, every.class_id.astype(np.int64)
    kept = batched_nms(boxes, scores.astype(np.float32), labels, EQUAL)
    return _join_halves(every[kept], np.concatenate(cut)[kept], np.concatenate(tiles)[kept])


def _touches(boxes: NDArray[np.float32], window: Window, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Whether each box reaches an edge of its tile that is not the image's."""
    x1, y1, x2, y2 = window
    width, height = size
    inner = np.array([x1 > 0, y1 > 0, x2 < width, y2 < height])
    near = np.abs(boxes - np.array([x1, y1, x2, y2], np.float32)) <= EDGE
    touches: NDArray[np.bool_] = (near & inner).any(axis=1)
    return touches


def _join_halves(found: Objects, is_cut: NDArray[np.bool_], tiles: NDArray[np.integer[Any]]) -> Objects:
    """Drop cut boxes that another box has whole; join the parts of one object that several tiles have."""
    boxes, labels = found.xyxy.astype(np.float32), found.class_id
    assert labels is not None
    keep = np.ones(len(boxes), bool)
    for i in np.flatnonzero(is_cut):
        keep[i] = not (~is_cut & (labels == labels[i]) & (_shared(boxes[i], boxes) >= COVERED * _areas(boxes[i]))).any()
    halves = np.flatnonzero(keep & is_cut)
    first = np.arange(len(boxes))  # of each object its surest part, which has all of it in the end
    for pair in _parts(boxes[halves], labels[halves], tiles[halves]):
        one, other = sorted(first[halves[list(pair)]].tolist())
        first[first == other] = one
    for i in halves[first[halves] != halves]:
        whole, part = boxes[first[i]], boxes[i]
        boxes[first[i]] = np.concatenate((np.minimum(whole[:2], part[:2]), np.maximum(whole[2:], part[2:])))
        keep[i] = False
    return replace(found, xyxy=boxes)[keep]


def _parts(
    boxes: NDArray[np.float32], labels: NDArray[np.integer[Any]], tiles: NDArray[np.integer[Any]]
) -> Iterator[tuple[int, int]]:
    """Yield pairs of cut boxes that are parts of one object.

    They are of two tiles, and share more with each other than with any other box of the other one's tile: where objects of
    a class overlap, so do parts of different ones.
    """
    members = {tile: np.flatnonzero(tiles == tile) for tile in np.unique(tiles)}
    areas = _areas(boxes)
    for i in range(len(boxes)):
        shared = _shared(boxes[i], boxes) * (labels == labels[i])
        for tile in np.unique(tiles[(shared > 0) & (tiles > tiles[i])]):
            there, here = members[tile], members[tiles[i]]
            j = there[shared[there].argmax()]
            if shared[j] < LEAST * min(areas[i], areas[j]):
                continue
            if here[(_shared(boxes[j], boxes[here]) * (labels[here] == labels[j])).argmax()] == i:
                yield i, int(j)


def _areas(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Area [N] of boxes [N, 4], or of a single one, never 0."""
    areas: NDArray[np.float32] = np.maximum((boxes[..., 2:] - boxes[..., :2]).prod(axis=-1), np.float32(1e-9))
    return areas


def _shared(box: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Area [N] that each of ``boxes`` shares with ``box``."""
    overlap = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared: NDArray[np.float32] = overlap.clip(min=0).prod(axis=1)
    return shared
