"""Which samples make up which batch.

The order of an epoch, the size of each batch and the augmentation of each sample are functions of the seed, the epoch and
the position alone. A key says all. Hence any number of workers gives the same batches, a run resumed in mid-epoch gets
exactly the batches that were left, and ranks agree without speaking to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from nextdetr.data.dataset import DetectionDataset, Sample, SampleKey
from nextdetr.data.workers import BatchStream, affordable_workers
from nextdetr.errors import ConfigError, DataError
from nextdetr.structures import Batch

__all__ = ["EpochSampler", "EvalLoader", "TrainLoader", "build_eval_loader", "build_loader"]

Strong: TypeAlias = "bool | Callable[[int], bool]"

_ORDER, _SIZE = 1, 2  # tell apart the two uses of one (seed, epoch)


class EpochSampler:
    """Batches of sample keys, epoch by epoch.

    With R ranks, R batches are consecutive slices of one order that all ranks share, so that each gets as many batches as
    the others and none of the others' images. The order is filled up to whole batches with its own beginning, again and
    again if there are fewer images than a batch has places; a repeated image has another ``copy`` number and thus another
    augmentation.

    Args:
        length: number of images, at least 1.
        batch_size: images in a batch of one rank.
        seed: 0 or above.
        base_size: side of the square input in pixels.
        multi_scale: sizes to draw from, one for each batch, the same on all ranks; None keeps to ``base_size``.
        rank: this process, 0 to ``world`` - 1.
        world: number of processes.
        drop_last: leave out the incomplete batch instead of filling it.
        shuffle: draw a new order in each epoch.
        weights: how often each image is drawn beside the others, above 0; an epoch stays ``length`` images long. An image
            comes its share of times in each epoch, rounded up or down.

    Attributes:
        places: images of one batch of all ranks.
        end: image at which an epoch ends; without ``drop_last`` the number of images.

    Raises:
        DataError: there is no image.
        ConfigError: ``drop_last`` would leave no batch.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int = 0,
        base_size: int,
        multi_scale: Sequence[int] | None = None,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
        shuffle: bool = True,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        if length < 1:
            raise DataError("there is no image to train on: every image of the split is missing, unreadable or left out.")
        if batch_size < 1 or not 0 <= rank < world:
            raise ValueError(f"batch_size {batch_size}, rank {rank}, world {world}")
        places = batch_size * world
        if drop_last and length < places:
            raise ConfigError(f"{length} images are fewer than a batch of {places}: make the batch smaller.")
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.base_size, self.multi_scale = base_size, tuple(multi_scale or ())
        self.rank, self.world, self.shuffle, self.weights = rank, world, shuffle, weights
        self.places = places
        self.end = length // places * places if drop_last else length

    def __len__(self) -> int:
        """Batches an epoch, the same on every rank."""
        return (self.end + self.places - 1) // self.places

    @property
    def most_samples(self) -> int:
        """Most samples that a batch of one rank may have."""
        return self.batch_size

    @property
    def largest_size(self) -> int:
        """Largest side that a batch may have, in pixels."""
        return max((self.base_size, *self.multi_scale))

    def size(self, epoch: int, batch: int, strong: bool = True) -> int:
        """Side of the input of a batch in pixels; without the strong part of the augmentation always ``base_size``."""
        if not (strong and self.multi_scale):
            return self.base_size
        return int(
            self.multi_scale[np.random.default_rng((self.seed, epoch, _SIZE, batch)).integers(len(self.multi_scale))]
        )

    def epoch(self, epoch: int, *, start: int = 0, strong: Strong = True) -> Iterator[list[SampleKey]]:
        """Yield this rank's batches of an epoch.

        Args:
            epoch: number of the epoch, 0 or above.
            start: number of images, of all ranks, to leave out because an interrupted run has had them. It need not be a
                multiple of this run's batches, which may be others than those of the run so far.
            strong: whether the strong part of the augmentation, and with it multi-scale, is on; or a function that says so
                for the batch that begins at an image, asked when the batch is made up.
        """
        order, copies = self._order(epoch)
        again = int(copies.max()) + 1
        for begin in range(start, self.end, self.places):
            on = strong(begin) if callable(strong) else strong
            size = self.size(epoch, begin // self.places, on)
            first = begin + self.rank * self.batch_size
            yield [
                SampleKey(epoch, int(order[i]), size, on, copy=int(copies[i]) + again * wraps)
                for wraps, i in (divmod(place, self.length) for place in range(first, first + self.batch_size))
            ]

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Images of an epoch, and how often each has come before in it."""
        order = np.arange(self.length)
        copies = np.zeros_like(order)
        random = np.random.default_rng((self.seed, epoch, _ORDER))
        if self.shuffle:
            random.shuffle(order)
        if self.weights is None:
            return order, copies
        # Systematic sampling: as many equally spaced points as images on a line where each image has its weight's length.
        ends = np.cumsum(self.weights[order])
        points = (random.random() + np.arange(self.length)) * ends[-1] / self.length
        order = order[np.searchsorted(ends, points, side="right").clip(max=self.length - 1)]
        copies[1:] = order[1:] == order[:-1]  # an image's points are neighbours
        for i in np.flatnonzero(copies):
            copies[i] += copies[i - 1]
        mixed = random.permutation(self.length)
        return order[mixed], copies[mixed]


class TrainLoader:
    """A sampler's batches; see ``build_loader``."""

    def __init__(self, stream: BatchStream, sampler: EpochSampler) -> None:
        self._stream = stream
        self.sampler = sampler

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.sampler)

    def epoch(self, epoch: int, start: int = 0, strong: Strong = True) -> Iterator[Batch]:
        """Yield the batches of an epoch from image ``start`` on; arguments as in ``EpochSampler.epoch``.

        Raises:
            DataError: an image cannot be read; the message names it.
        """
        return self._stream.run(self.sampler.epoch(epoch, start=start, strong=strong))

    def close(self) -> None:
        """End the worker processes."""
        self._stream.close()


class EvalLoader:
    """Every image once, in order, the last batch as short as it is; see ``build_eval_loader``."""

    def __init__(self, stream: BatchStream, batches: list[list[SampleKey]]) -> None:
        self._stream = stream
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return self._stream.run(self._batches)

    def close(self) -> None:
        """End the worker processes."""
        self._stream.close()


def build_loader(dataset: Dataset[Sample], sampler: EpochSampler, workers: int = 1, prefetch: int = 2) -> TrainLoader:
    """Return the loader of a training run.

    Args:
        dataset: samples with augmentation.
        sampler: which of them make up which batch.
        workers: processes that prepare batches; 0 for none.
        prefetch: batches that each of them prepares ahead.
    """
    workers = affordable_workers(workers, prefetch, sampler.most_samples, sampler.largest_size)
    return TrainLoader(BatchStream(dataset, workers, prefetch), sampler)


def build_eval_loader(
    dataset: DetectionDataset,
    size: int,
    batch_size: int = 8,
    *,
    workers: int = 0,
    prefetch: int = 2,
    rank: int = 0,
    world: int = 1,
) -> EvalLoader:
    """Return the loader of a validation run: no shuffling, no repetition, every ``world``-th image from ``rank`` on.

    Args:
        dataset: samples without augmentation (``transform`` None).
        size: side of the square input in pixels.
        batch_size: most images in a batch.
        workers: processes that prepare batches; 0 for none.
        prefetch: batches that each of them prepares ahead.
        rank: this process.
        world: number of processes; they may get different numbers of batches.
    """
    keys = [SampleKey(0, index, size, strong=False) for index in range(rank, len(dataset), world)]
    batches = [keys[first : first + batch_size] for first in range(0, len(keys), batch_size)]
    workers = affordable_workers(workers, prefetch, batch_size, size)
    return EvalLoader(BatchStream(dataset, workers, prefetch), batches)
