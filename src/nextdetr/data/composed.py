"""Samples of one class, "object", composed from unlabelled images, to pre-train the head of a detector.

Each sample is an image whose salient segments (``data/proposals.py``) are targets, with segments of other images pasted
along their outlines, so that their boxes are exact. Pasted segments alone may teach a detector to look for pasting and to
treat all else as background; found ones alone often have wrong boxes. Copy-paste (arXiv 2012.07177) does the same with
human masks.

A sample is a function of images, seed and key only, as in ``data/dataset.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from nextdetr.boxes import cxcywh_to_xyxy
from nextdetr.data.dataset import DetectionDataset, Sample, SampleKey, sample_seed
from nextdetr.data.proposals import SIDE, Segment, find_segments
from nextdetr.data.records import DetectionData
from nextdetr.data.transforms import TrainTransform
from nextdetr.data.windows import make_target
from nextdetr.structures import Target

__all__ = ["OBJECT", "ComposeConfig", "ComposedDataset", "Kind", "as_objects"]

OBJECT = "object"
Kind: TypeAlias = Literal["mixed", "pasted", "found"]

_KEPT = 8192  # images whose segments are kept in memory, about 10 KB each
_ROOM = 3  # pixels around a segment that are copied with it
_DONORS = 2  # images that provide the segments of one sample


@dataclass(frozen=True, slots=True)
class ComposeConfig:
    """Composition of a sample.

    Attributes:
        kind: targets are the pasted segments (``pasted``), the image's own (``found``), or both (``mixed``).
        most_found: maximum number of the image's own segments as targets.
        least_score: least score of such a segment.
        most_pasted: maximum number of pasted segments.
        scale: range of the size of a pasted segment, relative to the original.
        side: range of the longer side of a pasted segment, as a fraction of the sample's side.
        visible: least visible fraction of a target.
    """

    kind: Kind = "mixed"
    most_found: int = 12
    least_score: float = 0.4
    most_pasted: int = 10
    scale: tuple[float, float] = (0.6, 1.8)
    side: tuple[float, float] = (0.04, 0.6)
    visible: float = 0.5


def as_objects(data: DetectionData) -> DetectionData:
    """Return unlabelled images as a data set of the one class ``object``, still without boxes."""
    return replace(data, classes=[OBJECT], category_ids=[1])


class ComposedDataset(DetectionDataset):
    """Images with found and pasted segments.

    Args:
        data: result of ``as_objects``.
        transform: augmentation of the image before pasting.
        seed: seed of all random draws, 0 or above.
        compose: composition of the samples.
        cache_bytes, shrink_to: see ``DetectionDataset``.
    """

    def __init__(
        self,
        data: DetectionData,
        transform: TrainTransform,
        seed: int = 0,
        *,
        compose: ComposeConfig | None = None,
        cache_bytes: int = 0,
        shrink_to: int | None = None,
    ) -> None:
        super().__init__(data, transform, seed, cache_bytes=cache_bytes, shrink_to=shrink_to)
        self.compose = compose or ComposeConfig()
        self._segments: dict[int, list[Segment]] = {}

    def __getitem__(self, key: SampleKey) -> Sample:
        """Return the sample of ``key``.

        Raises:
            DataError: an image file cannot be read; the message names it.
        """
        assert self.transform is not None
        config, seed = self.compose, sample_seed(self.seed, key)
        draw = np.random.default_rng((seed, 1))
        image = self.read(key.index)
        found: list[Segment] = []
        if config.kind != "pasted":
            found = [s for s in self.segments(key.index)[: config.most_found] if s.score >= config.least_score]
        boxes = np.array([segment.box for segment in found], dtype=np.float32).reshape(-1, 4)
        boxes *= np.array([image.width, image.height] * 2, dtype=np.float32) / SIDE
        labels = np.zeros(len(boxes), dtype=np.int64)
        pixels, target = self.transform(image, boxes, labels, size=key.size, seed=seed, strong=key.strong)
        if config.kind != "found":
            pixels, target = self._paste(pixels, target, draw)
        return pixels, target, key.index

    def segments(self, index: int) -> list[Segment]:
        """Return the segments of an image, in pixels of a square of ``SIDE``; computed once, then cached."""
        known = self._segments.get(index)
        if known is None:
            square = self.read(index).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            known = find_segments(np.asarray(square))
            if len(self._segments) >= _KEPT:
                del self._segments[next(iter(self._segments))]
            self._segments[index] = known
        return known

    def _paste(self, pixels: Tensor, target: Target, draw: Generator) -> tuple[Tensor, Target]:
        """Paste segments of other images, one over the other, and keep the visible part of each target."""
        config, size = self.compose, pixels.shape[-1]
        present = cxcywh_to_xyxy(target.boxes).numpy() * size
        canvas = _Canvas(pixels.permute(1, 2, 0).numpy().copy(), present, config.visible)
        donors = draw.integers(len(self.data.records), size=_DONORS).tolist()
        for _ in range(int(draw.integers(1, config.most_pasted + 1))):
            donor = donors[int(draw.integers(_DONORS))]
            segments = self.segments(donor)
            if not segments:
                continue
            piece = _cut_out(self.read(donor), segments[int(draw.integers(len(segments)))], size, draw, config)
            if piece is not None:
                canvas.paste(*piece, draw.uniform(-0.05, 1.05, size=2) * size)
        placed = torch.from_numpy(canvas.boxes()).float()
        result = torch.from_numpy(canvas.pixels).permute(2, 0, 1).contiguous()
        return result, make_target(placed, torch.zeros(len(placed), dtype=torch.int64), size)


def _cut_out(
    image: Image.Image, segment: Segment, size: int, draw: Generator, config: ComposeConfig
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Cut out a segment and vary its size, rotation, colours and edge softness.

    Returns:
        [h, w, 3] float32, 0 to 1, and its coverage [h, w], 0 to 1; None if it would be too small or too large.
    """
    left, top, right, bottom = segment.box
    scale = math.exp(draw.uniform(*np.log(config.scale)))
    stretch = math.exp(draw.uniform(-0.15, 0.15))
    turn, mirror, angle = int(draw.integers(4)), draw.random() < 0.5, float(draw.uniform(-20, 20))
    softness, gain, shift = draw.uniform(0.4, 1.2), draw.uniform(0.75, 1.25, size=3), draw.uniform(-0.1, 0.1)
    width = round((right - left) * scale * stretch * size / SIDE)
    height = round((bottom - top) * scale / stretch * size / SIDE)
    if not config.side[0] * size <= max(width, height) <= config.side[1] * size or min(width, height) < 3:
        return None
    # Its surroundings are copied too, visible only through the soft edge.
    room = (max(0, left - _ROOM), max(0, top - _ROOM), min(SIDE, right + _ROOM), min(SIDE, bottom + _ROOM))
    mask = np.pad(segment.mask, ((top - room[1], room[3] - bottom), (left - room[0], room[2] - right)))
    extent = round(width * mask.shape[1] / (right - left)), round(height * mask.shape[0] / (bottom - top))
    ratio = image.width / SIDE, image.height / SIDE
    window = (room[0] * ratio[0], room[1] * ratio[1], room[2] * ratio[0], room[3] * ratio[1])
    piece = image.resize(extent, Image.Resampling.BILINEAR, box=window)
    mean = tuple(round(value) for value in np.asarray(piece).reshape(-1, 3).mean(axis=0).tolist())
    outline = Image.fromarray(mask * np.uint8(255)).resize(extent, Image.Resampling.BILINEAR)
    if mirror:
        piece, outline = (layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for layer in (piece, outline))
    angle += 90 * turn
    piece = piece.rotate(angle, Image.Resampling.BILINEAR, expand=True, fillcolor=mean)
    outline = outline.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    colours = np.asarray(piece, dtype=np.float32) / 255
    cover = ndimage.gaussian_filter(np.asarray(outline, dtype=np.float32) / 255, softness)
    varied = ((colours - 0.5) * gain + 0.5 + shift).clip(0, 1).astype(np.float32)
    return varied, cover.astype(np.float32)


class _Canvas:
    """A sample under construction.

    Args:
        pixels: [S, S, 3] float32, 0 to 1; changed in place.
        found: [N, 4] xyxy in pixels, existing targets.
        visible: least visible fraction of a target.
    """

    def __init__(self, pixels: NDArray[np.float32], found: NDArray[np.float32], visible: float) -> None:
        self.pixels, self._visible = pixels, visible
        self._found = found
        self._covered = np.zeros(pixels.shape[:2], dtype=np.float32)
        self._pasted: list[tuple[NDArray[np.float32], float]] = []  # visible part of each [S, S], and its full area

    def paste(self, piece: NDArray[np.float32], cover: NDArray[np.float32], centre: NDArray[np.float64]) -> None:
        """Paste a piece, unless too little of it, or of one below, would be visible."""
        (height, width), size = cover.shape, len(self.pixels)
        left, top = round(centre[0] - width / 2), round(centre[1] - height / 2)
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + width, size), min(top + height, size)
        if x1 >= x2 or y1 >= y2:
            return
        part, there = (slice(y1 - top, y2 - top), slice(x1 - left, x2 - left)), (slice(y1, y2), slice(x1, x2))
        alpha, whole = cover[part], float(cover.sum())
        if alpha.sum() < self._visible * whole:
            return
        for seen, area in self._pasted:
            if seen.sum() - (seen[there] * alpha).sum() < self._visible * area:
                return
        for seen, _ in self._pasted:
            seen[there] *= 1 - alpha
        mine = np.zeros_like(self._covered)
        mine[there] = alpha
        self._pasted.append((mine, whole))
        self._covered[there] = np.maximum(self._covered[there], alpha)
        self.pixels[there] += alpha[..., None] * (piece[part] - self.pixels[there])

    def boxes(self) -> NDArray[np.float32]:
        """Boxes [N, 4] xyxy in pixels of all targets: found ones still visible, and the visible part of each piece."""
        kept = [box for box in self._found if self._share_covered(box) <= 1 - self._visible]
        for seen, _ in self._pasted:
            rows, columns = np.flatnonzero((seen > 0.5).any(axis=1)), np.flatnonzero((seen > 0.5).any(axis=0))
            if len(rows):
                kept.append(np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float32))
        return np.array(kept, dtype=np.float32).reshape(-1, 4)

    def _share_covered(self, box: NDArray[np.float32]) -> float:
        x1, y1, x2, y2 = math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])
        part = self._covered[y1:y2, x1:x2]
        return float(part.mean()) if part.size else 0.0
