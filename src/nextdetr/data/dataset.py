"""Samples by key: records of a data set, read, augmented, and ready to be collated.

A sample is a function of the data, the seed and the key only, so that loaders, processes and resumed runs agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from nextdetr.data.cache import ImageCache, shrink
from nextdetr.data.mix import MixConfig, Mixer, Source
from nextdetr.data.records import DetectionData
from nextdetr.data.transforms import TrainTransform, plain_transform
from nextdetr.data.windows import as_boxes
from nextdetr.preprocess import load_image
from nextdetr.structures import Target

__all__ = ["DetectionDataset", "Sample", "SampleKey", "sample_seed"]


@dataclass(frozen=True, slots=True)
class SampleKey:
    """Key of a sample.

    Attributes:
        epoch: number of the pass over the data.
        index: position in ``DetectionData.records``.
        size: side of the square input in pixels.
        strong: whether the strong part of the augmentation is on.
        copy: how often the image was already shown in this epoch; above 0 only if a batch had to be filled.
    """

    epoch: int
    index: int
    size: int
    strong: bool = True
    copy: int = 0


# [3, S, S] float32 RGB, 0 to 1; what it shows, crowds left out; its position in ``DetectionData.records``.
Sample: TypeAlias = tuple[Tensor, Target, int]


def sample_seed(seed: int, key: SampleKey) -> int:
    """Mix the run's seed with (epoch, index, copy) into 64 bits; neighbouring keys give unrelated seeds."""
    mixed = np.random.SeedSequence((seed, key.epoch, key.index, key.copy)).generate_state(1, np.uint64)
    return int(mixed[0])


class DetectionDataset(Dataset[Sample]):
    """The images of one split.

    Args:
        data: result of a reader.
        transform: augmentation; None only resizes, as in validation.
        seed: seed of the augmentation, 0 or above.
        mix: how often strong samples combine several images; needs a ``transform``.
        cache_bytes: memory for decoded images; the cache is used only if all of them fit (half a cache would slow down part
            of the images and fill the memory anyway).
        shrink_to: shorter side, in pixels, to which larger images are shrunk right after decoding, cached or not; None
            keeps their size.
    """

    def __init__(
        self,
        data: DetectionData,
        transform: TrainTransform | None = None,
        seed: int = 0,
        *,
        mix: MixConfig | None = None,
        cache_bytes: int = 0,
        shrink_to: int | None = None,
    ) -> None:
        self.data = data
        self.transform = transform
        self.seed = seed
        self.shrink_to = shrink_to
        self.cache = ImageCache.for_records(data.records, cache_bytes, shrink_to)
        self.mixer: Mixer | None = None
        if mix is not None and mix.any and transform is not None:
            labels = [np.asarray(record.labels)[~np.asarray(record.crowd, dtype=bool)] for record in data.records]
            self.mixer = Mixer(mix, transform, self.source, labels)

    def __len__(self) -> int:
        return len(self.data.records)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Return the sample of ``key``.

        Raises:
            DataError: the image file cannot be read; the message names it.
        """
        seed = sample_seed(self.seed, key)
        if self.mixer is not None and key.strong:
            pixels, target = self.mixer(key.index, size=key.size, seed=seed)
            return pixels, target, key.index
        image, boxes, labels, _ = self.source(key.index)
        if self.transform is None:
            pixels, target = plain_transform(image, boxes, labels, key.size)
        else:
            pixels, target = self.transform(image, boxes, labels, size=key.size, seed=seed, strong=key.strong)
        return pixels, target, key.index

    def source(self, index: int) -> Source:
        """Return the image of a record with its boxes in pixels, crowds separate.

        Raises:
            DataError: the image file cannot be read; the message names it.
        """
        record, image = self.data.records[index], self.read(index)
        crowd = np.asarray(record.crowd, dtype=bool)
        boxes = as_boxes(record.boxes)
        if self.shrink_to is not None and image.size != (record.width, record.height):
            scale = torch.tensor([image.width / record.width, image.height / record.height])
            boxes = boxes * scale.repeat(2)
        return Source(image, boxes[~crowd], torch.as_tensor(record.labels)[~crowd], boxes[crowd])

    def read(self, index: int) -> Image.Image:
        """Return the decoded RGB image of a record, shrunk if necessary, from the cache if it is there.

        Raises:
            DataError: the image file cannot be read; the message names it.
        """
        cached = self.cache.get(index) if self.cache else None
        if cached is not None:
            return Image.fromarray(cached)
        image = shrink(load_image(self.data.records[index].path, self.data.reading), self.shrink_to)
        if self.cache:
            self.cache.put(index, np.asarray(image))
        return image
