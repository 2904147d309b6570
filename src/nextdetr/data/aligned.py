"""Whether two images show the same picture, cropped, scaled, brightened or re-encoded: once aligned, all details agree.

The affine map between two thumbnails is found with the inverse compositional method (Baker and Matthews, Lucas-Kanade 20
Years On, IJCV 2004, section 3.2), on images of mean 0 and norm 1, so that brightness and contrast do not matter. Without
low frequencies and saturated regions, both must then correlate, overall and nearly everywhere: two photographs of one
scene, taken in succession, seldom do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from nextdetr.data.candidates import SIDE, TURNS, Candidate

__all__ = ["Alignment", "align"]

_ROUNDS = 12  # maximum rounds of the alignment
_STILL = 0.02  # pixels: the alignment has converged below this motion
_SMOOTH = 1.5  # pixels, blur of the images before alignment
_ALIGNED = 0.7  # least correlation of the aligned thumbnails for a closer look
_AGREES = 0.92  # least correlation of the details; on the data sets used to choose it, no other pair exceeds 0.89
_NEARLY_EVERYWHERE = 0.5  # least likeness of the tile at the lowest tenth
_BRIGHT, _DARK = 247, 8  # grey levels above and below which an image may be saturated
_LEFT = 0.03  # least unsaturated fraction of an image, else all of it counts
_FAINT = 1.0  # levels of detail below which there is nothing to compare
_COVERED = 0.5  # least fraction of the second image that the first must cover
_SHEAR = 0.1  # maximum shear of a copy
_TILE = 8


@dataclass(frozen=True, slots=True)
class Alignment:
    """Two images that show the same picture.

    Attributes:
        part: the part of the first that the second shows, x1, y1, x2, y2 as fractions (of the turned first, if turned).
        agreement: correlation of their details, up to 1.
    """

    part: tuple[float, float, float, float]
    agreement: float


def align(thumbnails: NDArray[np.uint8], candidate: Candidate) -> Alignment | None:
    """Align two images, and return where the second lies in the first; None if they show different pictures.

    Args:
        thumbnails: thumbnails of all images, [N, 64, 64].
        candidate: the pair, and its approximate window.
    """
    x, y, width, height = candidate.window
    first = thumbnails[candidate.first].astype(np.float64)
    second = TURNS[candidate.turn].apply(thumbnails[candidate.second]).astype(np.float64)
    start = np.array([[height, 0, SIDE * y], [0, width, SIDE * x], [0, 0, 1]])  # pixel edges, rows before columns
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
    """Return the affine map from positions in the second image to positions in the first, [3, 3]; None if there is none."""
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
    except np.linalg.LinAlgError:  # stripes: one direction is undetermined
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
    """Return a step as an affine map of positions, [3, 3]; its first two columns are per half side from the centre."""
    found = np.eye(3)
    found[:2, :2] += step[:, :2] / (SIDE / 2)
    found[:2, 2] = step[:, 2] - step[:, :2].sum(axis=1)
    return found


def _under(picture: NDArray[np.float64], warp: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the image warped onto the other one; beyond its border, the nearest pixel."""
    offset = warp[:2, :2].sum(axis=1) * 0.5 + warp[:2, 2] - 0.5  # from pixel edges to pixel centres
    return np.asarray(affine_transform(picture, warp[:2, :2], offset, order=1, mode="nearest"))


def _normalised(picture: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return an image with mean 0 and norm 1, flattened; None if it is constant."""
    flat = picture.ravel() - picture.mean()
    length = float(np.sqrt(flat @ flat))
    return flat / length if length > SIDE * _FAINT else None


def _compare(first: NDArray[np.float64], second: NDArray[np.float64], warp: NDArray[np.float64]) -> float | None:
    """Return how well the details agree after warping; None if not well enough."""
    middles = np.arange(SIDE) + 0.5
    down, across = (
        row[0] * middles[:, None] + row[1] * middles + row[2] for row in warp[:2]
    )  # position of each pixel of the second in the first
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
    """Return the mask of saturated pixels, where details may be lost, and their neighbours."""
    found = (picture >= _BRIGHT) | (picture <= _DARK)
    rows = found.copy()
    rows[1:] |= found[:-1]
    rows[:-1] |= found[1:]
    both = rows.copy()
    both[:, 1:] |= rows[:, :-1]
    both[:, :-1] |= rows[:, 1:]
    return both


def _details(picture: NDArray[np.float64], counts: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the difference of two blurs over the valid pixels; 0 elsewhere."""
    fine, coarse = (
        _blur(picture * counts, width) / np.maximum(_blur(counts, width), 1e-3) for width in (1.0, 4.0)
    )  # mean over the valid pixels
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
