"""The gate: every export is opened in its own runtime and compared with the PyTorch model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextdetr.inference.contract import Precision
from nextdetr.postprocess import Detected, postprocess
from nextdetr.tensors import as_outputs

__all__ = ["LIMITS", "Comparison", "Limits", "compare", "drawn_images", "latency"]

MOST = 100  # maximum detections compared per image
LEAST = 20  # compared even if their scores are low
LOW_SCORE = 0.05


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for an export.

    Attributes:
        tolerance: maximum difference of box coordinates (as fractions of the image) and of scores; None for no limit.
        matched: least fraction of the detections with a counterpart within the tolerance. It is below 1 since two tokens
            with nearly the same score may swap places among the queries, and the last one drops out.
        accuracy_drop: maximum loss of AP.
    """

    tolerance: float | None
    matched: float
    accuracy_drop: float


#: Default limits by precision. 8-bit outputs are only reported, and judged by AP alone.
LIMITS: dict[Precision, Limits] = {
    "float32": Limits(1e-3, 0.99, 0.001),
    "half": Limits(2e-2, 0.95, 0.001),
    "int8": Limits(None, 0.0, 0.005),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Differences between the detections of two models.

    Attributes:
        images: number of images.
        detections: number of compared detections of the first model.
        matched: fraction of both models' detections with a counterpart within the tolerance (1 if there are none).
        box: maximum difference of a coordinate among those, as a fraction of the image.
        score: maximum difference of a score; a detection without a counterpart counts with its full score.
        finite: whether all of the second model's outputs are finite.
    """

    images: int
    detections: int
    matched: float
    box: float
    score: float
    finite: bool

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain numbers."""
        return asdict(self)


@torch.inference_mode()
def compare(
    first: Callable[..., Any], second: Callable[..., Any], images: Sequence[Tensor], tolerance: float | None
) -> Comparison:
    """Compare two models' detections, each with the nearest one of the same class.

    Args:
        first: maps [1, 3, S, S] to a ``DetectorOutput``, or to ``Outputs``.
        second: likewise.
        images: [3, S, S] float RGB, 0 to 1.
        tolerance: see ``Limits``; None measures the differences to the nearest counterparts, however far.
    """
    compared, total, matched, box, score, finite = 0, 0, 0, 0.0, 0.0, True
    for image in images:
        a, b = (_detect(model, image) for model in (first, second))
        finite = finite and bool(np.isfinite(b.boxes).all() and np.isfinite(b.scores).all())
        compared += _count(a)
        for one, other in ((a, b), (b, a)):
            count, near, far, difference = _counterparts(one, other, tolerance)
            total, matched = total + count, matched + near
            box, score = max(box, far), max(score, difference)
    return Comparison(len(images), compared, matched / total if total else 1.0, box, score, finite)


def _count(found: Detected) -> int:
    """Return how many of the best detections are compared."""
    kept = (found.scores >= LOW_SCORE) | (np.arange(len(found)) < LEAST)
    return min(int(kept.sum()), MOST)  # scores are descending


def _counterparts(one: Detected, other: Detected, tolerance: float | None) -> tuple[int, int, float, float]:
    """Number of detections of ``one``, how many have a counterpart, and the maximum differences of box and score."""
    count = _count(one)
    if not count:
        return 0, 0, 0.0, 0.0
    if not len(other):
        return count, 0, 0.0, float(one.scores[:count].max())
    boxes = np.abs(one.boxes[:count, None] - other.boxes[None]).max(axis=-1)  # [count, len(other)]
    scores = np.abs(one.scores[:count, None] - other.scores[None])
    strange = one.labels[:count, None] != other.labels[None]
    distances = np.where(strange, np.inf, np.maximum(boxes, scores))
    rows, nearest = np.arange(count), distances.argmin(axis=1)
    least = distances[rows, nearest]
    near = np.isfinite(least) if tolerance is None else least <= tolerance
    gaps = np.nan_to_num(np.where(near, scores[rows, nearest], one.scores[:count]), nan=1.0)
    far = boxes[rows, nearest][near]
    return count, int(near.sum()), float(far.max()) if len(far) else 0.0, float(gaps.max())


def _detect(model: Callable[..., Any], image: Tensor) -> Detected:
    return postprocess(as_outputs(model(image.unsqueeze(0))), [(1, 1)], max_detections=300)[0]


@torch.inference_mode()
def latency(model: Callable[..., Any], image: Tensor, *, repeats: int = 7, warmup: int = 2) -> float:
    """Median seconds of one image [3, S, S] through the model and its runtime."""
    batch, seconds = image.unsqueeze(0), []
    for turn in range(warmup + repeats):
        started = time.perf_counter()
        model(batch)
        if turn >= warmup:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def drawn_images(count: int, size: int, seed: int = 0) -> list[Tensor]:
    """Draw smooth coloured backgrounds with rectangles and discs, for use without photographs.

    Returns:
        [3, size, size] each, 0 to 1 in steps of 1/255.
    """
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:size, 0:size] / size
    images = []
    for _ in range(count):
        coarse = torch.from_numpy(generator.random((1, 3, 6, 6), dtype=np.float32))
        ground = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)[0].numpy().copy()
        for _ in range(12):
            x, y, width, height = generator.uniform((0, 0, 0.03, 0.03), (1, 1, 0.3, 0.3))
            inside = (abs(columns - x) < width / 2) & (abs(rows - y) < height / 2)
            if generator.random() < 0.5:
                inside = ((columns - x) / width) ** 2 + ((rows - y) / height) ** 2 < 0.25
            ground[:, inside] = generator.random((3, 1), dtype=np.float32)
        ground += generator.normal(0, 0.02, ground.shape).astype(np.float32)
        images.append(torch.from_numpy(np.rint(ground.clip(0, 1) * 255).astype(np.float32) / np.float32(255)))
    return images
