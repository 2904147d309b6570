"""How unlike the training images an image is: a distance in the backbone's space, and the limit that few images exceed.

The distance is Mahalanobis' from the training images' mean (Lee et al., arXiv 1807.03888, use it for the same purpose), of
the vector that ``nextdetr embed`` gives: the pooled last map of the backbone. The covariance is that of probabilistic
principal components (Tipping and Bishop, 1999): the leading directions with their own variances, and one variance for all
others, so that a few hundred training images are enough, and a checkpoint keeps it in some ten kilobytes.

The limit is a split-conformal quantile: of images that are exchangeable with n calibration images, which the distance was
not made from, at most the stated share exceeds the ``ceil((n + 1) (1 - share))``-th smallest of their distances.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FAMILIARITY", "Familiarity", "Space", "conformal_limit", "fit_space", "read_familiarity"]

FAMILIARITY = "familiarity"
MOST_DIRECTIONS = 32
FEWEST_IMAGES = 8  # per direction: its variance is estimated from this many training images


@dataclass(frozen=True, slots=True)
class Space:
    """Where the training images lie.

    Attributes:
        mean: [C] float32.
        directions: [K, C] float32, orthonormal.
        variances: [K] of the training images along each, above 0.
        rest: variance along every other direction, above 0.
    """

    mean: NDArray[np.float32]
    directions: NDArray[np.float32]
    variances: NDArray[np.float32]
    rest: float

    def distances(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return Mahalanobis' distance of each of the vectors [N, C] from the mean, [N], divided by the root of C."""
        centred = np.asarray(vectors, np.float64) - self.mean
        along = centred @ self.directions.T.astype(np.float64)
        across = np.maximum((centred**2).sum(axis=1) - (along**2).sum(axis=1), 0.0)
        squared = (along**2 / self.variances).sum(axis=1) + across / self.rest
        distances: NDArray[np.float64] = np.sqrt(squared / len(self.mean))
        return distances


def fit_space(vectors: NDArray[np.floating]) -> Space | None:
    """Return where training images lie; None for too few of them, or where all are the same.

    Args:
        vectors: [N, C] of the training images.
    """
    count, channels = vectors.shape
    most = min(MOST_DIRECTIONS, count // FEWEST_IMAGES, channels - 1)
    if most < 1:
        return None
    mean = vectors.mean(axis=0, dtype=np.float64)
    _, sizes, directions = np.linalg.svd(vectors - mean, full_matrices=False)
    variances = sizes**2 / (count - 1)
    rest = float(variances[most:].sum() / (channels - most))
    if not (math.isfinite(rest) and rest > 1e-12 * variances[0] > 0):
        return None
    return Space(
        mean.astype(np.float32), directions[:most].astype(np.float32),
        np.maximum(variances[:most], rest).astype(np.float32), rest,
    )  # fmt: skip


def conformal_limit(distances: NDArray[np.floating], share: float) -> float | None:
    """Return what at most ``share`` of further images exceed, 0 to 1; None for fewer than 1 / share - 1 distances."""
    rank = math.ceil((len(distances) + 1) * (1 - share) - 1e-9)
    return None if rank > len(distances) else float(np.sort(distances)[rank - 1])


@dataclass(frozen=True, slots=True)
class Familiarity:
    """How unlike the training images an image may be, as a detector's file has it.

    Attributes:
        space: where the training images lie.
        limit: the largest distance that is not flagged.
        share: most of the images like the calibration images that are flagged, a fraction, 0 to 1.
        image_size: side of the square input, in pixels, that the vectors are of.
    """

    space: Space
    limit: float
    share: float
    image_size: int

    def unlikeness(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return for the vectors [N, C] their distance as a multiple of the limit, [N]; above 1 an image is flagged."""
        return self.space.distances(vectors) / self.limit

    def to_metadata(self) -> dict[str, str]:
        """Return the entry of a detector's metadata."""
        space = self.space
        content = {
            "limit": self.limit, "share": self.share, "image_size": self.image_size, "rest": space.rest,
            "channels": len(space.mean), "mean": _packed(space.mean), "variances": _packed(space.variances),
            "directions": _packed(space.directions),
        }  # fmt: skip
        return {FAMILIARITY: json.dumps(content)}


def read_familiarity(metadata: Mapping[str, str]) -> Familiarity | None:
    """Return what a detector's file says of unlike images; None where it says nothing, or nothing sound."""
    try:
        content = json.loads(metadata.get(FAMILIARITY, "null"))
        if not isinstance(content, dict):
            return None
        channels = int(content["channels"])
        mean, variances = _unpacked(content["mean"]), _unpacked(content["variances"])
        directions = _unpacked(content["directions"]).reshape(-1, channels)
        numbers = np.array([content[name] for name in ("limit", "share", "rest")], np.float64)
        found = Familiarity(
            Space(mean, directions, variances, float(numbers[2])), float(numbers[0]), float(numbers[1]),
            int(content["image_size"]),
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    shapes = len(mean) == channels > 0 and len(variances) == len(directions)
    finite = all(np.isfinite(values).all() for values in (mean, variances, directions, numbers))
    return found if shapes and finite and (variances > 0).all() and (numbers > 0).all() else None


def _packed(values: NDArray[np.float32]) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode("ascii")


def _unpacked(text: Any) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)
