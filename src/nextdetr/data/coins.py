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
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from nextdetr.data.coin_scenes import Cutout, Grey, Material, compose
from nextdetr.errors import DataError, missing_extra
from nextdetr.files import remove_leftovers, temporary_name

__all__ = ["COINS", "cut_coins", "holds_coins", "make_coins", "photograph", "split_coins"]

COINS = 24
_TRAIN_COINS = 16
_VERSION = 3  # increased whenever the same arguments give different images
_TEXTURES = ("brick.png", "grass.png", "gravel.png")
_DISTRACTORS = (*_TEXTURES, "camera.png", "text.png", "coffee.png", "chelsea.png", "rocket.jpg", "clock_motion.png")
_SPLITS = ("train", "val", "test")


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
    remove_leftovers(output.parent)
    temporary = output.parent / temporary_name(output)
    temporary.mkdir()
    try:
        for number, (split, count) in enumerate(zip(_SPLITS, (train, val, test), strict=True)):
            _write_split(temporary, split, count, image_size, (seed, number), materials[min(number, 1)], recipe)
        temporary.rename(output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return output


def holds_coins(folder: Path, *, image_size: int, seed: int) -> bool:
    """Whether a folder holds coin images of this size and seed."""
    wanted = {"version": _VERSION, "image_size": image_size, "seed": seed}
    recipe = _recipe_of(folder)
    return isinstance(recipe, dict) and all(recipe.get(name) == value for name, value in wanted.items())


def _recipe_of(folder: Path) -> Any:
    """Return the arguments that a folder of coin images was made with, or None."""
    try:
        return json.loads((folder / "annotations" / "instances_train.json").read_text(encoding="utf-8"))["info"]["recipe"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_split(
    folder: Path, split: str, count: int, size: int, seed: tuple[int, int], material: Material, recipe: dict[str, int]
) -> None:
    """Write the images and the annotation file of one split."""
    pictures = folder / "images" / split
    pictures.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        pixels, boxes, areas = compose(np.random.default_rng((*seed, index)), size, material)
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


def _materials(seed: int) -> tuple[Material, Material]:
    """Ingredients of the training and of the validation images, with nothing in common."""
    coins = cut_coins()
    pictures = {name: _read(name) for name in _DISTRACTORS}

    def material(numbers: list[int], part: int) -> Material:
        halves = {name: np.array_split(picture, 2, axis=1)[part] for name, picture in pictures.items()}
        return Material([coins[n] for n in numbers], [halves[n] for n in _TEXTURES], [halves[n] for n in _DISTRACTORS])

    for_training, for_validation = split_coins(seed)
    return material(for_training, 0), material(for_validation, 1)
