"""Composition of batches.

The order of an epoch, the size of each batch and the augmentation of each sample are functions of seed, epoch and position
only; a key says it all. So any number of workers gives the same batches, a run resumed in mid-epoch gets exactly the
remaining batches, and ranks agree without communication.
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

_ORDER, _SIZE = 1, 2  # distinguish the two uses of one (seed, epoch)


class EpochSampler:
    """Batches of sample keys, epoch by epoch.

    With R ranks, R batches are consecutive slices of one common order, so that each rank gets as many batches as the others
    and none of their images. The order is padded to whole batches with its own beginning, repeatedly if there are fewer
    images than a batch holds; a repeated image has another ``copy`` number and thus different augmentation.

    Args:
        length: number of images, at least 1.
        batch_size: images per batch and rank.
        seed: 0 or above.
        base_size: side of the square input in pixels.
        multi_scale: sizes to draw from, one per batch, the same on all ranks; None always uses ``base_size``.
        rank: rank of this process, 0 to ``world`` - 1.
        world: number of processes.
        drop_last: leave out the incomplete batch instead of filling it.
        shuffle: use a new order in each epoch.
        weights: how often each image is drawn relative to the others, above 0; an epoch keeps ``length`` images. The count
            of an image per epoch is its share, rounded up or down.

    Attributes:
        places: images per batch over all ranks.
        end: position at which an epoch ends; without ``drop_last`` the number of images.

    Raises:
        DataError: there are no images.
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
        """Batches per epoch, the same on every rank."""
        return (self.end + self.places - 1) // self.places

    @property
    def most_samples(self) -> int:
        """Maximum samples in a batch of one rank."""
        return self.batch_size

    @property
    def largest_size(self) -> int:
        """Maximum input size of a batch, in pixels."""
        return max((self.base_size, *self.multi_scale))

    def size(self, epoch: int, batch: int, strong: bool = True) -> int:
        """Input size of a batch in pixels; always ``base_size`` without strong augmentation."""
        if not (strong and self.multi_scale):
            return self.base_size
        return int(
            self.multi_scale[np.random.default_rng((self.seed, epoch, _SIZE, batch)).integers(len(self.multi_scale))]
        )

    def epoch(self, epoch: int, *, start: int = 0, strong: Strong = True) -> Iterator[list[SampleKey]]:
        """Yield this rank's batches of an epoch.

        Args:
            epoch: number of the epoch, 0 or above.
            start: number of images, over all ranks, to skip because an interrupted run has used them. It need not be a
                multiple of this run's batches, whose size may have changed.
            strong: whether strong augmentation, and with it multi-scale, is on; or a function of the first image of a
                batch, called when the batch is assembled.
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
        """Images of an epoch, and how often each occurred before in it."""
        order = np.arange(self.length)
        copies = np.zeros_like(order)
        random = np.random.default_rng((self.seed, epoch, _ORDER))
        if self.shuffle:
            random.shuffle(order)
        if self.weights is None:
            return order, copies
        # Systematic sampling: as many equally spaced points as images, on a line where each image has its weight as length.
        ends = np.cumsum(self.weights[order])
        points = (random.random() + np.arange(self.length)) * ends[-1] / self.length
        order = order[np.searchsorted(ends, points, side="right").clip(max=self.length - 1)]
        copies[1:] = order[1:] == order[:-1]  # the points of an image are adjacent
        for i in np.flatnonzero(copies):
            copies[i] += copies[i - 1]
        mixed = random.permutation(self.length)
        return order[mixed], copies[mixed]


class TrainLoader:
    """Batches of a sampler; see ``build_loader``."""

    def __init__(self, stream: BatchStream, sampler: EpochSampler) -> None:
        self._stream = stream
        self.sampler = sampler

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.sampler)

    def epoch(self, epoch: int, start: int = 0, strong: Strong = True) -> Iterator[Batch]:
        """Yield the batches of an epoch from image ``start``; arguments as in ``EpochSampler.epoch``.

        Raises:
            DataError: an image cannot be read; the message names it.
        """
        return self._stream.run(self.sampler.epoch(epoch, start=start, strong=strong))

    def close(self) -> None:
        """Stop the worker processes."""
        self._stream.close()


class EvalLoader:
    """Every image once, in order, with a possibly shorter last batch; see ``build_eval_loader``."""

    def __init__(self, stream: BatchStream, batches: list[list[SampleKey]]) -> None:
        self._stream = stream
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return self._stream.run(self._batches)

    def close(self) -> None:
        """Stop the worker processes."""
        self._stream.close()


def build_loader(dataset: Dataset[Sample], sampler: EpochSampler, workers: int = 1, prefetch: int = 2) -> TrainLoader:
    """Build the loader of a training run.

    Args:
        dataset: samples with augmentation.
        sampler: composition of the batches.
        workers: worker processes; 0 for none.
        prefetch: batches prepared ahead by each worker.
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
    """Build the loader of a validation run: no shuffling, no repetition, every ``world``-th image from ``rank``.

    Args:
        dataset: samples without augmentation (``transform`` None).
        size: side of the square input in pixels.
        batch_size: maximum images per batch.
        workers: worker processes; 0 for none.
        prefetch: batches prepared ahead by each worker.
        rank: rank of this process.
        world: number of processes; their numbers of batches may differ.
    """
    keys = [SampleKey(0, index, size, strong=False) for index in range(rank, len(dataset), world)]
    batches = [keys[first : first + batch_size] for first in range(0, len(keys), batch_size)]
    workers = affordable_workers(workers, prefetch, batch_size, size)
    return EvalLoader(BatchStream(dataset, workers, prefetch), batches)
