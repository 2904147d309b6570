"""Unlabelled images for pre-training: folders with their subfolders, or the training split of a data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nextdetr.data.check import inspect_images
from nextdetr.data.dataset import DetectionDataset, Sample, SampleKey, sample_seed
from nextdetr.data.listing import describe_others, list_images
from nextdetr.data.recognise import yaml_beside
from nextdetr.data.records import DetectionData, ImageRecord, Problem
from nextdetr.data.sources import is_data_set, is_unfinished, load_data
from nextdetr.errors import DataError
from nextdetr.pictures import NAMED_SUFFIXES
from nextdetr.structures import Target
from nextdetr.tensors import resize_to_tensor

__all__ = ["UnlabelledDataset", "find_unlabelled", "random_crop"]

_RATIO = math.log(4 / 3)  # crops are between 3:4 and 4:3, as in Inception (arXiv 1409.4842, section 6)


def find_unlabelled(sources: Sequence[str | Path], purpose: str = "to pre-train on") -> DetectionData:
    """List unlabelled images to learn from, each once.

    A data set (a YAML, or a folder recognised as one) gives only the images of its split ``train``, so that nothing is
    learnt from images used for scores. Any other folder gives all images in it and its subfolders except hidden ones,
    unless a dataset YAML beside it has its name; so does a data set that is still being annotated (labelme, CVAT, image
    folders, CSV) and has no other split. An image file gives itself.

    Args:
        sources: folders, data sets and image files.
        purpose: their use, for messages.

    Returns:
        Records without boxes; unreadable files are in ``problems``, and recognised data sets in ``recognised``.

    Raises:
        DataError: a source does not exist, holds no image, or none of its images can be read; or a folder is a data set
            whose ``data.yaml`` has an error, or is described by a YAML beside it, which must be given instead.
    """
    if not sources:
        raise DataError(f"there is nothing {purpose}: give a folder of images.")
    records: list[ImageRecord] = []
    problems: list[Problem] = []
    lines: list[str] = []
    for source in sources:
        found = _find(Path(source).expanduser(), purpose)
        lines += [found.recognised] if found.recognised else []
        records += found.records
        problems += found.problems
    unique = {record.path.resolve(): record for record in records}
    name = Path(sources[0]).resolve().stem
    return DetectionData(
        name, "train", [], [], [_bare(record) for record in unique.values()], problems, recognised="; ".join(lines)
    )


class UnlabelledDataset(DetectionDataset):
    """Random crops of images.

    Args:
        data: result of ``find_unlabelled``.
        seed: seed of crops and flips, 0 or above.
        crop_min: smallest fraction of the area of a crop, 0 to 1; the largest is 1.
        flip: probability of mirroring left to right.
        cache_bytes: memory for decoded images, used if all of them fit.
        shrink_to: shorter side, in pixels, to which larger images are shrunk as soon as they are decoded.
    """

    def __init__(
        self,
        data: DetectionData,
        seed: int = 0,
        *,
        crop_min: float = 0.2,
        flip: float = 0.5,
        cache_bytes: int = 0,
        shrink_to: int | None = None,
    ) -> None:
        super().__init__(data, None, seed, cache_bytes=cache_bytes, shrink_to=shrink_to)
        self.crop_min, self.flip = crop_min, flip

    def __getitem__(self, key: SampleKey) -> Sample:
        """Return the crop of ``key`` with an empty target; without ``strong`` the whole image.

        Raises:
            DataError: the image file cannot be read; the message names it.
        """
        image = self.read(key.index)
        if key.strong:
            generator = np.random.default_rng(sample_seed(self.seed, key))
            pixels = random_crop(image, key.size, generator, crop_min=self.crop_min, flip=self.flip)
        else:
            pixels = resize_to_tensor(image, key.size)
        return pixels, Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)), key.index


def random_crop(
    image: Image.Image, size: int, generator: np.random.Generator, *, crop_min: float = 0.2, flip: float = 0.5
) -> Tensor:
    """Crop a random area and aspect ratio, and resize it to a square (Pillow's bicubic filter, as in the paper).

    Args:
        image: RGB.
        size: side of the result in pixels (S).
        generator: source of randomness.
        crop_min: smallest fraction of the area, 0 to 1.
        flip: probability of mirroring left to right.

    Returns:
        [3, S, S] float32 RGB, 0 to 1.
    """
    box = _crop_box(*image.size, generator, crop_min)
    cropped = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    if generator.random() < flip:
        cropped = cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return resize_to_tensor(cropped, size)


def _crop_box(width: int, height: int, generator: np.random.Generator, crop_min: float) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in whole pixels; after ten misses the largest central crop of an allowed shape."""
    for _ in range(10):
        area = width * height * generator.uniform(crop_min, 1.0)
        ratio = math.exp(generator.uniform(-_RATIO, _RATIO))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(generator.integers(width - wide + 1)), int(generator.integers(height - high + 1))
            return left, top, left + wide, top + high
    wide, high = min(width, max(1, round(height * 4 / 3))), min(height, max(1, round(width * 4 / 3)))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def _find(path: Path, purpose: str) -> DetectionData:
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder {purpose}.")
    if path.is_file() and path.suffix.lower() in NAMED_SUFFIXES:
        return _read_files(path, [path])
    if path.is_file() or (is_data_set(path) and not is_unfinished(path)):
        return load_data(
            path, "train", advice=lambda there: "To learn from other images, name the folder that they are in."
        )
    beside = yaml_beside(path)
    if beside.is_file() and is_data_set(beside):
        raise DataError(
            f"{path}: {beside} describes this folder as a data set; name that file, so that only its training images are "
            "learnt from, or a folder inside this one to take all images there."
        )
    try:
        listing = list_images(path)
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read: {error.strerror or error}.") from error
    if not listing.files:
        raise DataError(f"{path}: there is no image in this folder or below it{describe_others(listing.problems)}.")
    return _read_files(path, listing.files, listing.problems)


def _read_files(source: Path, paths: list[Path], problems: Sequence[Problem] = ()) -> DetectionData:
    records, problems = [], list(problems)
    for path, report in zip(paths, inspect_images(paths), strict=True):
        if report.width < 1:
            problems.append(Problem(str(path), "", report.message, report.kind))
            continue
        records.append(_record(path, report.width, report.height))
    if not records:
        raise DataError(
            f"{source}: none of its {len(paths)} images can be read ({problems[0].file}: {problems[0].message})."
        )
    return DetectionData(source.name, "train", [], [], records, problems)


def _bare(record: ImageRecord) -> ImageRecord:
    """Remove the boxes: pre-training does not use them."""
    return _record(record.path, record.width, record.height)


def _record(path: Path, width: int, height: int) -> ImageRecord:
    none: NDArray[np.float32] = np.zeros(0, dtype=np.float32)
    return ImageRecord(
        path, str(path), width, height, none.reshape(0, 4), none.astype(np.int64), none.astype(np.bool_), none
    )
