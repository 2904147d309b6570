"""Whether two pictures are the same one, cropped, scaled, brightened or stored anew: aligned, they agree in every detail.

The affine map between two thumbnails is found by the inverse compositional method (Baker and Matthews, Lucas-Kanade 20
Years On, IJCV 2004, section 3.2), on pictures of mean 0 and length 1, so that brightness and contrast do not count. What is
left of both without their coarse light and without what is burnt out must then correlate, on the whole and nearly
everywhere: two photographs of one scene, taken one after the other, seldom do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from nextdetr.data.likeness import SIDE, TURNS, Candidate

__all__ = ["Alignment", "align"]

_ROUNDS = 12  # of the alignment, at most
_STILL = 0.02  # pixels that the map moves in the last round
_SMOOTH = 1.5  # pixels, blur of the pictures that are aligned
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
    x, y, width, height = candidate.window
    first = thumbnails[candidate.first].astype(np.float64)
    second = TURNS[candidate.turn].apply(thumbnails[candidate.second]).astype(np.float64)
    start = np.array([[height, 0, SIDE * y], [0, width, SIDE * x], [0, 0, 1]])  # edges of pixels, down before across
    warp = _find_map(_blur(first, _SMOOTH), _blur(second, _SMOOTH), start)
    if warp is None or max(abs(warp[0, 1]), abs(warp[1, 0])) > _SHEAR:
        return None
    agreement = _compare(first, second, warp)
    if agreement is None:
        return None
    (top, left), (bottom, right) = warp[:2, 2] / SIDE, warp[:2, 2] / SIDE + np.diag(warp)[:2]
    return Alignment((float(left), float(top), float(right), float(bottom)), agreement)


def _find_map(
    first: NDArray[np.float64], second: NDArray[np.float64], warp: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Return the affine map from places in the second picture to places in the first, [3, 3]; None if there is none."""
    wanted = _normalised(second)
    if wanted is None:
        return None
    down, across = np.gradient(wanted.reshape(SIDE, SIDE))
    places = (np.arange(SIDE) + 0.5 - SIDE / 2) / (SIDE / 2)
    slopes = [slope * weight for slope in (down, across) for weight in (places[:, None], places, 1.0)]
    steepest = np.stack([slope.ravel() for slope in slopes])  # [6, 4096]
    steepest -= steepest.mean(axis=1, keepdims=True)
    steepest -= (steepest @ wanted)[:, None] * wanted
    try:
        solve = np.linalg.inv(steepest @ steepest.T)
    except np.linalg.LinAlgError:  # stripes: one direction is not determined
        return None
    for _ in range(_ROUNDS):
        laid = _normalised(_under(first, warp))
        if laid is None:
            return None
        step = (solve @ (steepest @ (laid - wanted))).reshape(2, 3)
        if np.abs(step).max() > SIDE / 4:
            return None
        warp = warp @ np.linalg.inv(_step_map(step))
        if np.abs(step).max() < _STILL:
            break
    laid = _normalised(_under(first, warp))
    return warp if laid is not None and float(laid @ wanted) >= _ALIGNED else None


def _step_map(step: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a step, whose first two columns are per half a side from the middle, as a map of places; [3, 3]."""
    found = np.eye(3)
    found[:2, :2] += step[:, :2] / (SIDE / 2)
    found[:2, 2] = step[:, 2] - step[:, :2].sum(axis=1)
    return found


def _under(picture: NDArray[np.float64], warp: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the picture as it lies under the other one; beyond its border the nearest pixel."""
    offset = warp[:2, :2].sum(axis=1) * 0.5 + warp[:2, 2] - 0.5  # from edges of pixels to their middles
    return np.asarray(affine_transform(picture, warp[:2, :2], offset, order=1, mode="nearest"))


def _normalised(picture: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return a picture with mean 0 and length 1, flat; None if there is nothing in it."""
    flat = picture.ravel() - picture.mean()
    length = float(np.sqrt(flat @ flat))
    return flat / length if length > SIDE * _FAINT else None


def _compare(first: NDArray[np.float64], second: NDArray[np.float64], warp: NDArray[np.float64]) -> float | None:
    """Return how well the details of the second agree with the first, laid under it; None if that is not enough."""
    middles = np.arange(SIDE) + 0.5
    down, across = (
        row[0] * middles[:, None] + row[1] * middles + row[2] for row in warp[:2]
    )  # where each pixel of the second lies in the first
    covered = (down > -0.5) & (down < SIDE + 0.5) & (across > -0.5) & (across < SIDE + 0.5)
    if covered.mean() < _COVERED:
        return None
    laid = _under(first, warp)
    counts = covered & ~_burnt(laid) & ~_burnt(second)
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


def _burnt(picture: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return what is so bright or so dark that there may have been more to see, and the pixels beside it."""
    found = (picture >= _BRIGHT) | (picture <= _DARK)
    rows = found.copy()
    rows[1:] |= found[:-1]
    rows[:-1] |= found[1:]
    both = rows.copy()
    both[:, 1:] |= rows[:, :-1]
    both[:, :-1] |= rows[:, 1:]
    return both


def _details(picture: NDArray[np.float64], counts: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return what two blurs differ by, of the pixels that count alone; 0 elsewhere."""
    fine, coarse = (
        _blur(picture * counts, width) / np.maximum(_blur(counts, width), 1e-3) for width in (1.0, 4.0)
    )  # a mean of the pixels that count
    return np.asarray((fine - coarse) * counts)


def _blur(picture: NDArray[np.float64] | NDArray[np.bool_], width: float) -> NDArray[np.float64]:
    matrix = _blur_matrix(width)
    return np.asarray(matrix @ picture @ matrix.T)


@cache
def _blur_matrix(width: float) -> NDArray[np.float64]:
    distance = np.arange(SIDE)[:, None] - np.arange(SIDE)
    weights = np.exp(-0.5 * (distance / width) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _tiles(values: NDArray[np.float64]) -> NDArray[np.float64]:
    count = SIDE // _TILE
    return np.asarray(values.reshape(count, _TILE, count, _TILE).sum(axis=(1, 3)))
