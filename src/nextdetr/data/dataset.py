"""Samples by key: a record of the data set, read, augmented, and ready to be collated.

A sample is a function of the data, of the data set's seed and of the key alone, so that loaders, processes and resumed runs
agree on it.
"""

from __future__ import annotations

import mmap
import multiprocessing
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from nextdetr.data.records import DetectionData, ImageRecord
from nextdetr.data.transforms import TrainTransform, plain_transform
from nextdetr.preprocess import load_image
from nextdetr.structures import Target

__all__ = ["DetectionDataset", "ImageCache", "Sample", "SampleKey", "sample_seed"]


@dataclass(frozen=True, slots=True)
class SampleKey:
    """Which sample, drawn how.

    Attributes:
        epoch: number of the pass over the data.
        index: position in ``DetectionData.records``.
        size: side of the square input in pixels.
        strong: whether the strong part of the augmentation is on.
        copy: how often the image was shown in this epoch before; above 0 only where a batch had to be filled.
    """

    epoch: int
    index: int
    size: int
    strong: bool = True
    copy: int = 0


# [3, S, S] float32 RGB, 0 to 1; what it shows, crowds left out; its position in ``DetectionData.records``.
Sample: TypeAlias = tuple[Tensor, Target, int]


def sample_seed(seed: int, key: SampleKey) -> int:
    """Mix the run's seed with (epoch, index, copy) to 64 bits; neighbouring keys give unrelated seeds."""
    mixed = np.random.SeedSequence((seed, key.epoch, key.index, key.copy)).generate_state(1, np.uint64)
    return int(mixed[0])


class DetectionDataset(Dataset[Sample]):
    """The images of one split.

    Args:
        data: what a reader returned.
        transform: augmentation; None resizes only, as for validation.
        seed: seed of the augmentation, 0 or above.
        cache_bytes: memory for decoded images; the cache is used if all of them fit, and not at all otherwise (half a
            cache would slow a part of the images and fill the memory all the same).
    """

    def __init__(
        self, data: DetectionData, transform: TrainTransform | None = None, seed: int = 0, *, cache_bytes: int = 0
    ) -> None:
        self.data = data
        self.transform = transform
        self.seed = seed
        self.cache = ImageCache.for_records(data.records, cache_bytes)

    def __len__(self) -> int:
        return len(self.data.records)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Return the sample of ``key``.

        Raises:
            DataError: the image file cannot be read; the message names it.
        """
        record = self.data.records[key.index]
        ordinary = ~np.asarray(record.crowd, dtype=bool)
        boxes, labels = np.asarray(record.boxes)[ordinary], np.asarray(record.labels)[ordinary]
        image = self.read(key.index)
        if self.transform is None:
            pixels, target = plain_transform(image, boxes, labels, key.size)
        else:
            seed = sample_seed(self.seed, key)
            pixels, target = self.transform(image, boxes, labels, size=key.size, seed=seed, strong=key.strong)
        return pixels, target, key.index

    def read(self, index: int) -> Image.Image:
        """Return the decoded RGB image of a record, from the cache where it is there.

        Raises:
            DataError: the image file cannot be read; the message names it.
        """
        cached = self.cache.get(index) if self.cache else None
        if cached is not None:
            return Image.fromarray(cached)
        image = load_image(self.data.records[index].path)
        if self.cache:
            self.cache.put(index, np.asarray(image))
        return image


class ImageCache:
    """Decoded images in memory that forked loader processes share: whoever decodes an image first keeps it for all.

    Anonymous shared memory needs no room in ``/dev/shm``, and pages take memory only once they are written. Where processes
    are spawned instead of forked (Windows, macOS), each gets an empty cache of its own.

    Args:
        sizes: (width, height) of each image.
    """

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self._sizes = sizes
        lengths = np.array([width * height * 3 for width, height in sizes], dtype=np.int64)
        self._offsets = len(sizes) + np.concatenate(([0], np.cumsum(lengths)))  # a flag per image comes first
        self._memory = np.frombuffer(mmap.mmap(-1, max(int(self._offsets[-1]), 1)), dtype=np.uint8)
        # The lock also orders memory: on ARM a flag could become visible before the pixels that it announces.
        self._lock = multiprocessing.Lock()

    @classmethod
    def for_records(cls, records: list[ImageRecord], budget: int) -> ImageCache | None:
        """Return a cache for all images, or None when they need more than ``budget`` bytes or there are none."""
        sizes = [(record.width, record.height) for record in records]
        needed = sum(3 * width * height + 1 for width, height in sizes)
        return cls(sizes) if sizes and needed <= budget else None

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageCache, (self._sizes,)

    def get(self, index: int) -> NDArray[np.uint8] | None:
        """Return image ``index`` as [H, W, 3], a view not to be written to, or None when nobody has put it there yet."""
        with self._lock:
            present = bool(self._memory[index])
        return self._view(index) if present else None

    def put(self, index: int, pixels: NDArray[np.uint8]) -> None:
        """Keep [H, W, 3] ``pixels``; an image of another size than announced is not kept."""
        view = self._view(index)
        if pixels.shape != view.shape:
            return
        view[...] = pixels
        with self._lock:
            self._memory[index] = 1

    def _view(self, index: int) -> NDArray[np.uint8]:
        width, height = self._sizes[index]
        return self._memory[self._offsets[index] : self._offsets[index + 1]].reshape(height, width, 3)
