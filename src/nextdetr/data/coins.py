"""Data of the quickstart: real coins, cut out of one photograph and pasted onto real textures.

Everything comes from the photographs in the scikit-image wheel; nothing is downloaded. ``coins.png`` shows 24 Greek coins
from Pompeii (Brooklyn Museum, no known copyright restrictions); the other images are CC0 or in the public domain. Two
thirds of the coins and the left halves of the other photographs make the training images, the other coins and the right
halves the validation and test images. So scores are for coins and backgrounds not seen in training, and test scores are
also for images that chose no checkpoint. The original photograph, in contrast, contains all coins; it tests the step from
composites to a photograph.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from nextdetr.errors import DataError, missing_extra

__all__ = ["COINS", "Cutout", "cut_coins", "make_coins", "photograph", "split_coins"]

Grey = NDArray[np.float32]

COINS = 24
_TRAIN_COINS = 16
_VERSION = 3  # increased whenever the same arguments give different images
_TEXTURES = ("brick.png", "grass.png", "gravel.png")
_DISTRACTORS = (*_TEXTURES, "camera.png", "text.png", "coffee.png", "chelsea.png", "rocket.jpg", "clock_motion.png")
_MOST = 25  # coins per image
_SPLITS = ("train", "val", "test")


class Cutout(NamedTuple):
    """An object cut out of a photograph.

    Attributes:
        pixels: [h, w] float32, 0 to 255; outside the outline the nearest pixels inside, so that no halo remains.
        alpha: [h, w] float32 coverage, 0 to 1, with a soft edge.
    """

    pixels: Grey
    alpha: Grey


class _Material(NamedTuple):
    """Ingredients of the images of one split."""

    coins: list[Cutout]
    textures: list[Grey]
    distractors: list[Grey]


def photograph() -> tuple[Image.Image, NDArray[np.float32]]:
    """Return the original photograph of the coins as RGB (384×303), and the boxes of its 24 coins.

    Boxes are [24, 4] float32 xyxy in pixels, row by row from the top.

    Raises:
        ConfigError: scikit-image is not installed.
        DataError: its photographs are missing or have changed.
    """
    grey = _read("coins.png")
    boxes = [(x.start, y.start, x.stop, y.stop) for _, (y, x) in _find_coins(grey)]
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB"), np.array(boxes, dtype=np.float32)


def cut_coins() -> list[Cutout]:
    """Cut the 24 coins out of the photograph, in the order of ``photograph``'s boxes.

    Raises:
        ConfigError, DataError: see ``photograph``.
    """
    grey = _read("coins.png")
    cutouts = []
    for mask, (rows, columns) in _find_coins(grey):
        window = tuple(slice(max(side.start - 3, 0), side.stop + 3) for side in (rows, columns))
        inside, pixels = mask[window], grey[window]
        # The edge is smooth and slightly inset, because the outermost pixels are half background.
        steps = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
        distance = ndimage.gaussian_filter(steps, 1.2)
        nearest = ndimage.distance_transform_edt(~(distance > 1), return_distances=False, return_indices=True)
        cutouts.append(Cutout(pixels[tuple(nearest)], ((distance + 0.25) / 1.5).clip(0, 1).astype(np.float32)))
    return cutouts


def split_coins(seed: int) -> tuple[list[int], list[int]]:
    """Return which coins (positions in ``cut_coins``) are for training and which for validation, drawn from ``seed``."""
    order = np.random.default_rng((seed, len(_SPLITS))).permutation(COINS)
    return sorted(order[:_TRAIN_COINS].tolist()), sorted(order[_TRAIN_COINS:].tolist())


def make_coins(
    output: Path, *, train: int = 320, val: int = 60, test: int = 80, image_size: int = 320, seed: int = 0
) -> Path:
    """Write a labelled set of coin images as a COCO folder that ``load_data`` reads.

    Image k of a split depends only on the seed, the split, k and the size, not on the number of images. The folder appears
    when it is complete; if it already holds this set, it is kept.

    Args:
        output: folder to create.
        train: number of training images.
        val: number of validation images.
        test: number of test images, with the coins and backgrounds of the validation images.
        image_size: side of the square images in pixels.
        seed: 0 or above.

    Returns:
        ``output``.

    Raises:
        ConfigError: scikit-image is not installed.
        DataError: ``output`` exists with other content, or the photographs are missing.
    """
    output = Path(output)
    recipe = {"version": _VERSION, "train": train, "val": val, "test": test, "image_size": image_size, "seed": seed}
    if output.exists():
        if _recipe_of(output) == recipe:
            return output
        raise DataError(f"{output} exists and does not hold the coin images asked for: remove it or choose another folder.")
    materials = _materials(seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        for number, (split, count) in enumerate(zip(_SPLITS, (train, val, test), strict=True)):
            _write_split(temporary, split, count, image_size, (seed, number), materials[min(number, 1)], recipe)
        temporary.chmod(0o755)
        temporary.rename(output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return output


def _recipe_of(folder: Path) -> Any:
    """Return the arguments that a folder of coin images was made with, or None."""
    try:
        return json.loads((folder / "annotations" / "instances_train.json").read_text(encoding="utf-8"))["info"]["recipe"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_split(
    folder: Path, split: str, count: int, size: int, seed: tuple[int, int], material: _Material, recipe: dict[str, int]
) -> None:
    """Write the images and the annotation file of one split."""
    pictures = folder / "images" / split
    pictures.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        pixels, boxes, areas = _compose(np.random.default_rng((*seed, index)), size, material)
        name = f"{split}_{index:05d}.jpg"
        Image.fromarray(pixels).save(pictures / name, quality=92, subsampling=0)
        images.append({"id": index + 1, "file_name": name, "width": size, "height": size})
        for (x1, y1, x2, y2), area in zip(boxes, areas, strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            number = len(annotations) + 1
            annotations.append(
                {"id": number, "image_id": index + 1, "category_id": 1, "bbox": box, "area": area, "iscrowd": 0}
            )
    content = {
        "info": {"description": "Coins of scikit-image's photograph, composed by NextDETR", "recipe": recipe},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "coin"}],
    }
    path = folder / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _read(name: str) -> Grey:
    """Read one of scikit-image's photographs from its package folder as [H, W] grey, 0 to 255."""
    try:
        import skimage
    except ImportError as error:
        raise missing_extra("scikit-image", "quickstart", "the quickstart's photographs") from error
    path = Path(skimage.__file__).parent / "data" / name
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L"), dtype=np.float32)
    except OSError as error:
        raise DataError(
            f"{path}: the photograph that scikit-image brings cannot be read; reinstall scikit-image."
        ) from error


def _find_coins(grey: Grey) -> list[tuple[NDArray[np.bool_], tuple[slice, ...]]]:
    """Return the mask of each coin and its (rows, columns), row by row from the top.

    The background at the top is as bright as some coins further down, hence a threshold relative to the local background: a
    low percentile of the surroundings, smoothed.
    """
    smooth = ndimage.gaussian_filter(grey, 0.7)
    coarse = ndimage.median_filter(ndimage.percentile_filter(smooth[::3, ::3], 20, size=35), 9)
    ground = np.kron(coarse, np.ones((3, 3)))[: grey.shape[0], : grey.shape[1]]
    raised = ndimage.binary_fill_holes(smooth - ndimage.gaussian_filter(ground, 3) > 32)
    labels, _ = ndimage.label(ndimage.binary_opening(raised, iterations=3))
    spans = enumerate(ndimage.find_objects(labels), start=1)
    found = [(labels == number, span) for number, span in spans if (labels[span] == number).sum() > 500]
    if len(found) != COINS:
        raise DataError(
            f"scikit-image's coins.png shows {len(found)} coins instead of {COINS}: another version of the picture?"
        )
    found.sort(key=lambda item: item[1][0].start + item[1][0].stop)
    return [
        coin for first in range(0, COINS, 6) for coin in sorted(found[first : first + 6], key=lambda item: item[1][1].start)
    ]


def _materials(seed: int) -> tuple[_Material, _Material]:
    """Ingredients of the training and of the validation images, with nothing in common."""
    coins = cut_coins()
    pictures = {name: _read(name) for name in _DISTRACTORS}

    def material(numbers: list[int], part: int) -> _Material:
        halves = {name: np.array_split(picture, 2, axis=1)[part] for name, picture in pictures.items()}
        return _Material([coins[n] for n in numbers], [halves[n] for n in _TEXTURES], [halves[n] for n in _DISTRACTORS])

    for_training, for_validation = split_coins(seed)
    return material(for_training, 0), material(for_validation, 1)


def _compose(rng: Generator, size: int, material: _Material) -> tuple[NDArray[np.uint8], list[list[float]], list[float]]:
    """Draw one image.

    Returns:
        [S, S, 3] uint8; the boxes of the visible parts of its coins, xyxy in whole pixels; their visible areas in pixels.
    """
    least_visible = float(rng.choice((0.97, 0.75, 0.45), p=(0.5, 0.3, 0.2)))
    scene = _Scene(_ground(rng, size, material.textures), least_visible)
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


class _Scene:
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
