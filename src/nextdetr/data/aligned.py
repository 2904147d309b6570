"""Whether two pictures are the same one, cropped, scaled, brightened or stored anew: aligned, they agree in every detail.

Enhanced correlation (Evangelidis and Psarakis, IEEE PAMI 2008; OpenCV's ``findTransformECC``) finds the affine map between
two thumbnails. What is left of both without their coarse light and without what is burnt out must then correlate, on the
whole and nearly everywhere: two photographs of one scene, taken one after the other, seldom do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextdetr.data.likeness import SIDE, TURNS, Candidate

__all__ = ["Alignment", "align"]

_ROUNDS = 10  # of the alignment; a copy needs three
_ALIGNED = 0.7  # correlation of the aligned thumbnails, below which there is no use in looking closer
_AGREES = 0.92  # correlation of the details; no other pair of the sets that this was chosen on has more than 0.89
_NEARLY_EVERYWHERE = 0.5  # likeness of the tile that is less alike than nine in ten
_BRIGHT, _DARK = 247, 8  # levels from which, and up to which, a picture may be burnt out
_LEFT = 0.03  # share of a picture that must not be burnt out, else all of it counts
_FAINT = 1.0  # levels of detail below which there is nothing to compare
_COVERED = 0.5  # share of the second picture that the first must cover
_SHEAR = 0.1  # most that a copy may be sheared
_TILE = 8


@dataclass(frozen=True, slots=True)
class Alignment:
    """Two pictures that show the same.

    Attributes:
        part: what the second shows of the first, x1, y1, x2, y2 in fractions of it (of the turned one, if it is turned).
        agreement: correlation of their details, up to 1.
    """

    part: tuple[float, float, float, float]
    agreement: float


def align(thumbnails: NDArray[np.uint8], candidate: Candidate) -> Alignment | None:
    """Lay one picture over the other, and return where it fits; None if they do not show the same.

    Args:
        thumbnails: of all pictures, [N, 64, 64].
        candidate: which two, and about where.
    """
    import cv2

    x, y, width, height = candidate.window
    start = np.array([[width, 0, SIDE * x + (width - 1) / 2], [0, height, SIDE * y + (height - 1) / 2]], dtype=np.float32)
    first = thumbnails[candidate.first].astype(np.float32)
    second = np.ascontiguousarray(TURNS[candidate.turn].apply(thumbnails[candidate.second])).astype(np.float32)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, _ROUNDS, 1e-4)
    try:
        correlation, found = cv2.findTransformECC(second, first, start, cv2.MOTION_AFFINE, stop)
    except cv2.error:  # it does not converge
        return None
    warp = np.asarray(found, dtype=np.float32)
    if correlation < _ALIGNED or max(abs(warp[0, 1]), abs(warp[1, 0])) > _SHEAR:
        return None
    agreement = _compare(first, second, warp)
    if agreement is None:
        return None
    left, top = (warp[:, 2] + 0.5 - 0.5 * warp[[0, 1], [0, 1]]) / SIDE
    part = (float(left), float(top), float(left + warp[0, 0]), float(top + warp[1, 1]))
    return Alignment(part, agreement)


def _compare(first: NDArray[np.float32], second: NDArray[np.float32], warp: NDArray[np.float32]) -> float | None:
    """Return how well the details of the second agree with the first, laid under it; None if that is not enough."""
    import cv2

    def under(picture: NDArray[np.float32], how: int) -> NDArray[np.float32]:
        flags = how | cv2.WARP_INVERSE_MAP
        warped = cv2.warpAffine(picture, warp, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(warped, dtype=np.float32)

    x, y = (warp[:, :2] @ np.mgrid[:SIDE, :SIDE][::-1].reshape(2, -1) + warp[:, 2:]).reshape(2, SIDE, SIDE)
    covered = (x > -1) & (x < SIDE) & (y > -1) & (y < SIDE)
    if covered.mean() < _COVERED:
        return None
    laid = under(first, cv2.INTER_LINEAR)
    around = np.ones((3, 3), dtype=np.uint8)
    burnt = (np.asarray(cv2.dilate(np.maximum(laid, second), around)) >= _BRIGHT) | (
        np.asarray(cv2.erode(np.minimum(laid, second), around)) <= _DARK
    )
    counts = covered & ~burnt
    if counts.mean() < _LEFT:
        counts = covered
    details, others = _details(laid, counts), _details(second, counts)
    energy, other_energy = float(np.square(details).sum()), float(np.square(others).sum())
    if min(energy, other_energy) < counts.sum() * _FAINT**2:
        return None
    others *= np.sqrt(energy / other_energy)
    agreement = float((details * others).sum()) / energy
    floor = 0.1 * energy / (SIDE / _TILE) ** 2
    likeness = (2 * _tiles(details * others) + floor) / (_tiles(details**2) + _tiles(others**2) + floor)
    alike = agreement >= _AGREES and np.quantile(likeness, 0.1) >= _NEARLY_EVERYWHERE
    return agreement if alike else None


def _details(picture: NDArray[np.float32], counts: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return what two blurs differ by, of the pixels that count alone; 0 elsewhere."""
    import cv2

    weights = counts.astype(np.float32)

    def blurred(width: float) -> NDArray[np.float32]:
        values = np.asarray(cv2.GaussianBlur(picture * weights, (0, 0), width))
        return np.asarray(values / np.maximum(np.asarray(cv2.GaussianBlur(weights, (0, 0), width)), 1e-3))

    return (blurred(1) - blurred(4)) * weights


def _tiles(values: NDArray[np.float32]) -> NDArray[np.float32]:
    count = SIDE // _TILE
    return np.asarray(values.reshape(count, _TILE, count, _TILE).sum(axis=(1, 3)))
