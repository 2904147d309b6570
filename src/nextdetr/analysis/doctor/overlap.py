"""Overlap of boxes in NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["covered_shares", "iou_matrix"]


def iou_matrix(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the IoU of every box in [N, 4] with every box in [M, 4], xyxy; [N, M], 0 to 1."""
    shared, own, others = _areas(first, second)
    return _divided(shared, own[:, None] + others - shared)


def covered_shares(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the fraction of every box in [N, 4] that lies in every box in [M, 4], xyxy; [N, M], 0 to 1."""
    shared, own, _ = _areas(first, second)
    return _divided(shared, np.broadcast_to(own[:, None], shared.shape))


def _areas(
    first: NDArray[np.floating], second: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the shared area [N, M] of boxes, and their own areas [N] and [M]."""
    a, b = np.asarray(first, dtype=np.float64).reshape(-1, 4), np.asarray(second, dtype=np.float64).reshape(-1, 4)
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    own, others = ((boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1) for boxes in (a, b))
    return sides.clip(min=0).prod(axis=2), own, others


def _divided(shared: NDArray[np.float64], by: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.divide(shared, by, out=np.zeros_like(shared), where=by > 0))
