"""How an image of the quickstart is composed: coins and other objects pasted onto a background, then lit and blurred."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

__all__ = ["Cutout", "Grey", "Material", "Scene", "compose"]

Grey = NDArray[np.float32]

_MOST = 25  # coins per image


class Cutout(NamedTuple):
    """An object cut out of a photograph.

    Attributes:
        pixels: [h, w] float32, 0 to 255; outside the outline the nearest pixels inside, so that no halo remains.
        alpha: [h, w] float32 coverage, 0 to 1, with a soft edge.
    """

    pixels: Grey
    alpha: Grey


class Material(NamedTuple):
    """Ingredients of the images of one split."""

    coins: list[Cutout]
    textures: list[Grey]
    distractors: list[Grey]


def compose(rng: Generator, size: int, material: Material) -> tuple[NDArray[np.uint8], list[list[float]], list[float]]:
    """Draw one image.

    Returns:
        [S, S, 3] uint8; the boxes of the visible parts of its coins, xyxy in whole pixels; their visible areas in pixels.
    """
    least_visible = float(rng.choice((0.97, 0.75, 0.45), p=(0.5, 0.3, 0.2)))
    scene = Scene(_ground(rng, size, material.textures), least_visible)
    wanted = 0 if rng.random() < 0.06 else int(rng.integers(4, _MOST + 1))
    scale = rng.uniform(0.7, 1.5 if wanted < 15 else 1.05) * size / 320  # the original photograph has 0.83
    light, contrast = rng.uniform(-50, 45), rng.uniform(0.7, 1.3)
    shadow = rng.uniform(0.2, 0.7) if rng.random() < 0.7 else 0.0
    direction = rng.uniform(0, 2 * np.pi)
    places = _places(rng, size, wanted)
    distractors = int(rng.integers(1, 5)) if rng.random() < 0.4 else 0  # half of them below the coins, half above
    for _ in range(distractors // 2):
        scene.paste(_distractor(rng, size, material.distractors), rng.uniform(0, size, 2), coin=False)
    for place in places:
        coin = _vary(rng, material.coins[int(rng.integers(len(material.coins)))], scale * rng.uniform(0.85, 1.15))
        middle = coin.pixels.mean()
        coin = coin._replace(pixels=(coin.pixels - middle) * contrast + middle + light + rng.normal(0, 8))
        scene.paste(coin, place, coin=True, shadow=shadow, direction=direction)
    for _ in range(distractors - distractors // 2):
        scene.paste(_distractor(rng, size, material.distractors), rng.uniform(0, size, 2), coin=False, shadow=shadow)
    boxes, areas = scene.labels()
    return _develop(rng, scene.canvas), boxes, areas


def _places(rng: Generator, size: int, count: int) -> list[NDArray[np.float64]]:
    """Centres (x, y) to try: scattered, with spares, or in rows as in a display case."""
    if count < 6 or rng.random() < 0.75:
        return list(rng.uniform(-0.02 * size, 1.02 * size, (round(count * 1.6), 2)))
    columns = int(rng.integers(3, 7))
    rows = -(-count // columns)
    grid = np.array([((c + 0.5) / columns, (r + 0.5) / max(rows, 3)) for r in range(rows) for c in range(columns)])
    return list((grid[:count] * size) + rng.normal(0, 0.02 * size, (count, 2)))


class Scene:
    """An image under construction; ``visible`` tracks what is visible of each coin, so that labels follow occlusion."""

    def __init__(self, canvas: Grey, least_visible: float) -> None:
        self.canvas = canvas
        self._least = least_visible
        self._size = canvas.shape[0]
        self._count = 0
        self._visible = np.zeros((2 * _MOST, self._size, self._size), dtype=np.float32)
        self._whole = np.zeros(2 * _MOST)

    def paste(
        self, item: Cutout, centre: NDArray[np.float64], *, coin: bool, shadow: float = 0.0, direction: float = 0.0
    ) -> None:
        """Paste an item, unless it or a coin below would be hidden more than the scene allows."""
        height, width = item.alpha.shape
        left, top = round(centre[0] - width / 2), round(centre[1] - height / 2)
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + width, self._size), min(top + height, self._size)
        if x1 >= x2 or y1 >= y2 or self._count == _MOST:
            return
        part = slice(y1 - top, y2 - top), slice(x1 - left, x2 - left)
        there = slice(y1, y2), slice(x1, x2)
        alpha = item.alpha[part]
        below = self._visible[: self._count, *there]
        hidden = (below * alpha).sum(axis=(1, 2))
        remaining = self._visible[: self._count].sum(axis=(1, 2)) - hidden
        whole = float(item.alpha.sum())
        if (remaining < self._least * self._whole[: self._count]).any():
            return
        if coin:
            if alpha.sum() < min(self._least, 0.6) * whole:
                return
            self._visible[self._count, *there] = alpha
            self._whole[self._count] = whole
            self._count += 1
        below *= 1 - alpha
        if shadow:
            self._cast_shadow(alpha, (x1, y1), max(height, width) * 0.08, shadow, direction)
        self.canvas[there] += alpha * (item.pixels[part] - self.canvas[there])

    def labels(self) -> tuple[list[list[float]], list[float]]:
        """Boxes of the visible parts, xyxy in whole pixels, and their areas."""
        boxes, areas = [], []
        for visible in self._visible[: self._count]:
            seen = visible > 0.5
            columns, rows = np.flatnonzero(seen.any(axis=0)), np.flatnonzero(seen.any(axis=1))
            boxes.append([float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)])
            areas.append(float(seen.sum()))
        return boxes, areas

    def _cast_shadow(self, alpha: Grey, corner: tuple[int, int], reach: float, strength: float, direction: float) -> None:
        """Darken the canvas beside an item."""
        margin = int(4 * reach) + 1
        blurred = ndimage.gaussian_filter(np.pad(alpha, margin), reach * 0.7)
        left = corner[0] - margin + round(reach * np.cos(direction))
        top = corner[1] - margin + round(reach * np.sin(direction))
        (height, width), x1, y1 = blurred.shape, max(left, 0), max(top, 0)
        x2, y2 = min(left + width, self._size), min(top + height, self._size)
        self.canvas[y1:y2, x1:x2] *= 1 - strength * blurred[y1 - top : y2 - top, x1 - left : x2 - left]


def _vary(rng: Generator, item: Cutout, scale: float) -> Cutout:
    """Scale, squeeze, mirror and rotate an item."""
    height, width = item.alpha.shape
    squeeze = np.exp(rng.uniform(-0.14, 0.14))
    extent = max(round(width * scale * squeeze), 4), max(round(height * scale / squeeze), 4)
    angle, mirrored = rng.uniform(0, 360), rng.random() < 0.5

    def turn(layer: Grey, outside: float) -> Grey:
        image = Image.fromarray(layer[:, ::-1].copy() if mirrored else layer).resize(extent, Image.Resampling.BICUBIC)
        return np.asarray(image.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=outside), dtype=np.float32)

    # Rotated around the mean, so that corners do not fade to black.
    mean = float(item.pixels.mean())
    alpha = turn(item.alpha, 0.0).clip(0, 1)
    return Cutout(turn(item.pixels, mean), np.where(alpha < 0.02, 0, alpha).astype(np.float32))


def _distractor(rng: Generator, size: int, pictures: list[Grey]) -> Cutout:
    """A disc or rectangle cut out of a photograph without coins."""
    picture = pictures[int(rng.integers(len(pictures)))]
    side = int(rng.uniform(0.07, 0.25) * size)
    pixels = _patch(rng, picture, side, least=40)
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    if rng.random() < 0.5:
        distance = np.hypot(x, y * rng.uniform(1, 1.5))
    else:
        distance = np.maximum(abs(x) * rng.uniform(1, 2.5), abs(y)) + 0 * y
    alpha = ((0.96 - distance) * side / 3).clip(0, 1).astype(np.float32)
    return _vary(rng, Cutout(pixels, alpha), 1.0)


def _patch(rng: Generator, picture: Grey, side: int, least: int) -> Grey:
    """A random square of an image, rotated by quarter turns, mirrored, and resized to [side, side]."""
    most = min(picture.shape)
    extent = int(rng.integers(min(least, most), most + 1))
    top, left = (int(rng.integers(length - extent + 1)) for length in picture.shape)
    square = np.rot90(picture[top : top + extent, left : left + extent], int(rng.integers(4)))
    if rng.random() < 0.5:
        square = square[:, ::-1]
    return np.asarray(Image.fromarray(np.ascontiguousarray(square)).resize((side, side), Image.Resampling.BILINEAR))


def _ground(rng: Generator, size: int, textures: list[Grey]) -> Grey:
    """[S, S] background: a real texture, or a plain one with uneven light, as under the coins of the photograph."""
    if rng.random() < 0.6:
        texture = _patch(rng, textures[int(rng.integers(len(textures)))], size, least=120)
        middle = texture.mean()
        return np.asarray((texture - middle) * rng.uniform(0.5, 1.2) + rng.uniform(45, 190), dtype=np.float32)
    level = rng.uniform(20, 110) if rng.random() < 0.7 else rng.uniform(110, 230)
    cloud = ndimage.zoom(rng.normal(0, rng.uniform(2, 14), (5, 5)), size / 5, order=3)[:size, :size]
    grain = ndimage.gaussian_filter(rng.normal(0, 1, (size, size)), rng.uniform(0.4, 1.2)) * rng.uniform(1, 10)
    return np.asarray(level + cloud + grain, dtype=np.float32)


def _develop(rng: Generator, canvas: Grey) -> NDArray[np.uint8]:
    """Light, exposure, focus, noise and tint of the whole image: [S, S] grey to [S, S, 3]."""
    axis = np.linspace(-1, 1, len(canvas), dtype=np.float32)
    slope = rng.normal(0, 0.15, 2)
    lit = canvas.clip(0, 255) * (1 + slope[0] * axis[None, :] + slope[1] * axis[:, None]).clip(0.4, 1.6)
    exposed = 255 * (lit.clip(0, 255) / 255) ** np.exp(rng.uniform(-0.3, 0.3))
    if rng.random() < 0.5:
        exposed = ndimage.gaussian_filter(exposed, rng.uniform(0.3, 0.9))
    exposed += rng.normal(0, rng.uniform(0.5, 5), lit.shape)
    tint = 1 + (rng.uniform(-0.12, 0.12, 3) if rng.random() < 0.3 else np.zeros(3))
    coloured: NDArray[np.uint8] = np.rint((exposed[..., None] * tint).clip(0, 255)).astype(np.uint8)
    return coloured
