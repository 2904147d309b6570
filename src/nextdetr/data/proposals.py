"""Regions of an image that may be objects, found without labels.

An image is segmented at several scales with Felzenszwalb and Huttenlocher's graph method (IJCV 59, 2004), the first step of
selective search (Uijlings et al., IJCV 104, 2013), whose boxes pre-train the head in DETReg (arXiv 2106.04550). Selective
search merges neighbours and keeps thousands of boxes; here a few salient segments are kept: compact regions inside the
image whose colour differs from their surroundings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nextdetr.errors import missing_extra

__all__ = ["SIDE", "Segment", "find_segments", "require_segmentation"]

SIDE = 192  # pixels of the square that is segmented; about 0.15 seconds per image
_SCALES = (50.0, 200.0, 600.0)  # of the graph method: larger ones give larger segments
_SMOOTH = 0.8  # pixels, before segmenting; the method's usual value
_LEAST, _MOST = 0.001, 0.25  # range of a segment's area as a fraction of the image
_THINNEST = 4  # least shorter side of a segment in pixels
_SAME = 0.6  # IoU from which two segments count as one
_SOLID = 0.45  # least fraction of its box that a segment fills
_SLENDER = 4.0  # maximum aspect ratio of a box
_USUAL = 0.01  # fraction of the image above which a segment is not small
_MARGIN = 3  # pixels around a segment that count as its surroundings


@dataclass(frozen=True, slots=True)
class Segment:
    """A region that may be an object.

    Attributes:
        box: left, top, right, bottom in whole pixels of the segmented square.
        mask: [bottom - top, right - left] bool, holes filled.
        score: saliency, 0 to 1.
    """

    box: tuple[int, int, int, int]
    mask: NDArray[np.bool_]
    score: float


def require_segmentation() -> Callable[..., NDArray[np.int64]]:
    """Import scikit-image's segmentation.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from skimage.segmentation import felzenszwalb
    except ImportError as error:
        raise missing_extra("scikit-image", "quickstart", "finding objects without labels") from error
    segment: Callable[..., NDArray[np.int64]] = felzenszwalb
    return segment


def find_segments(pixels: NDArray[np.uint8], most: int = 30) -> list[Segment]:
    """Find salient segments; deterministic.

    Args:
        pixels: [H, W, 3] RGB, 0 to 255.
        most: maximum number of segments.

    Returns:
        Segments by decreasing score; no two have nearly the same box.

    Raises:
        ConfigError: scikit-image is not installed.
    """
    felzenszwalb = require_segmentation()
    found: list[Segment] = []
    smooth = ndimage.gaussian_filter(pixels.astype(np.float32), (1.0, 1.0, 0.0))
    for scale in _SCALES:
        least = max(_THINNEST**2, round(_LEAST * pixels.shape[0] * pixels.shape[1]))
        labels = felzenszwalb(pixels, scale=scale, sigma=_SMOOTH, min_size=least)
        for number, span in enumerate(ndimage.find_objects(labels + 1)):
            segment = _judge(labels, number, span, smooth)
            if segment is not None:
                found.append(segment)
    found.sort(key=lambda segment: (-segment.score, segment.box))
    return _distinct(found, most)


def _judge(labels: NDArray[np.int64], number: int, span: tuple[slice, ...], smooth: NDArray[np.float32]) -> Segment | None:
    """Score a segment; None if its size, shape or place is not that of an object."""
    height, width = labels.shape
    top, bottom, left, right = span[0].start, span[0].stop, span[1].start, span[1].stop
    sides = sorted((bottom - top, right - left))
    if sides[0] < _THINNEST or sides[1] > _SLENDER * sides[0] or sides[0] * sides[1] > 2 * _MOST * height * width:
        return None
    if sum((top == 0, left == 0, bottom == height, right == width)) > 1:
        return None
    mask = ndimage.binary_fill_holes(labels[span] == number)
    area = int(mask.sum())
    solidity = area / mask.size
    if not _LEAST * height * width <= area <= _MOST * height * width or solidity < _SOLID:
        return None
    around = slice(max(0, top - _MARGIN), bottom + _MARGIN), slice(max(0, left - _MARGIN), right + _MARGIN)
    inside = np.zeros((min(height, around[0].stop) - around[0].start, min(width, around[1].stop) - around[1].start), bool)
    inside[top - around[0].start :, left - around[1].start :][: bottom - top, : right - left] = mask
    ring = ndimage.binary_dilation(inside, iterations=_MARGIN) & ~inside
    core = ndimage.binary_erosion(inside) if area > 40 else inside
    if not ring.any() or not core.any():
        return None
    within, without = smooth[around][core], smooth[around][ring]
    distance = float(np.linalg.norm(within.mean(axis=0) - without.mean(axis=0)))
    spread = float(np.sqrt(within.var(axis=0).sum() + without.var(axis=0).sum()))
    large = min(1.0, area / (_USUAL * height * width)) ** 0.25
    score = distance / (distance + spread + 4.0) * min(1.0, solidity / 0.75) * large
    return Segment((left, top, right, bottom), mask, score)


def _distinct(segments: list[Segment], most: int) -> list[Segment]:
    """Drop segments whose box nearly equals that of a better one."""
    boxes = np.array([segment.box for segment in segments], dtype=np.float64).reshape(-1, 4)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    kept: list[int] = []
    for index in range(len(segments)):
        low = np.maximum(boxes[kept, :2], boxes[index, :2])
        high = np.minimum(boxes[kept, 2:], boxes[index, 2:])
        shared = (high - low).clip(min=0).prod(axis=1)
        if not (shared > _SAME * (areas[kept] + areas[index] - shared)).any():
            kept.append(index)
        if len(kept) == most:
            break
    return [segments[index] for index in kept]
