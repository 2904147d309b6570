"""Two views of each unlabelled image: the whole image for the teacher, an augmented view for the student.

Unbiased Teacher, arXiv 2102.09480, section 3: the teacher sees an easy view, and the student must predict the same from a
hard one. The difference: the student's view also has another geometry (zoom-out and crop, as for labelled images), and
comes with its transform, so that the teacher's boxes can be mapped to it.

A batch is one list of samples: labelled images, then the student's views, which replace further labelled ones, then the
teacher's views of the same images. Indices distinguish them: with N labelled and M unlabelled images, N + k is image k for
the student, N + M + k for the teacher. All of it is a function of (seed, epoch, position), like everything that is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import RandomZoomOut, functional

from nextdetr.data.dataset import DetectionDataset, Sample, SampleKey, sample_seed
from nextdetr.data.loader import EpochSampler, Strong
from nextdetr.data.records import DetectionData
from nextdetr.data.transforms import TrainTransform
from nextdetr.data.windows import Window, happens, intersect, on_canvas, render, seeded, target_area
from nextdetr.structures import Target
from nextdetr.tensors import resize_to_tensor

__all__ = ["StudentView", "UnlabelledSampler", "WithUnlabelled"]

_ORDER = 3  # distinguishes the order of these images from other uses of (seed, epoch)
CROP_SIDES = (0.5, 1.0)  # as fractions of the image's sides
BLUR, BLUR_SIGMA = 0.3, (0.1, 1.5)  # probability; pixels of the result
ERASE, MOST_ERASED, ERASED_SIDES = 0.5, 3, (0.05, 0.2)  # probability; most rectangles; their sides, relative to the result
Matrix = NDArray[np.float64]  # [3, 3], on points (x, y, 1) in fractions


class StudentView:
    """Augment an image with unknown boxes; every draw is a function of the ``seed`` given to the call.

    Args:
        transform: augmentation of the labelled images, whose probabilities, colours, flips and rotations are used.
    """

    def __init__(self, transform: TrainTransform) -> None:
        self.transform, self.config = transform, transform.config
        self._zoom_out = RandomZoomOut(side_range=self.config.zoom_range)

    def __call__(self, image: Image.Image, *, size: int, seed: int, strong: bool = True) -> tuple[Tensor, Tensor]:
        """Return the view and its transform.

        Args:
            image: RGB.
            size: side of the result in pixels (S).
            seed: 0 to 2^64 - 1.
            strong: whether to zoom out, crop, distort, blur and erase; flips and rotations always happen.

        Returns:
            [3, S, S] float32, 0 to 1, and [2, 3] float32, see ``Target.view``.
        """
        full = Window(0, 0, *image.size)
        with seeded(seed):
            window = self._draw_window(full) if strong else full
            seen = intersect(window, full)
            area = target_area(window, seen, size)
            picture = render(image, seen, area, size)
            if strong:
                picture = self.transform.distort(picture)
            pixels = resize_to_tensor(picture, size)
            if strong:
                pixels = _erased(_blurred(pixels))
            # Flips and rotations are recovered from where they move three corners.
            corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
            pixels, turned = self.transform.turn(pixels, (corners * size).repeat(1, 2), size)
        return pixels, torch.from_numpy((_through(turned[:, :2] / size) @ _to_area(full, seen, area, size))[:2]).float()

    def _draw_window(self, full: Window) -> Window:
        none, window = torch.zeros(0, 4), full
        if happens(self.config.zoom_out):
            left, top, right, bottom = self._zoom_out.make_params([on_canvas(none, full)])["padding"]
            window = Window(-left, -top, full.right + right, full.bottom + bottom)
        if not happens(self.config.iou_crop):
            return window
        width, height = window.right - window.left, window.bottom - window.top
        low, high = CROP_SIDES
        draws = torch.rand(4).tolist()
        wide = max(1, round(width * (low + (high - low) * draws[0])))
        high_ = max(1, round(height * (low + (high - low) * draws[1])))
        left, top = window.left + int((width - wide) * draws[2]), window.top + int((height - high_) * draws[3])
        crop = Window(left, top, left + wide, top + high_)
        inside = crop.left < full.right and crop.right > 0 and crop.top < full.bottom and crop.bottom > 0
        return crop if inside else window  # a crop outside the image teaches nothing


class WithUnlabelled(Dataset[Sample]):
    """Labelled samples, and two views of unlabelled images; see the top of this file for the indices.

    Args:
        labelled: the labelled images.
        unlabelled: the unlabelled images.
        view: augmentation of the student's view.
        cache_bytes, shrink_to: as in ``DetectionDataset``.
    """

    def __init__(
        self,
        labelled: DetectionDataset,
        unlabelled: DetectionData,
        view: StudentView,
        *,
        cache_bytes: int = 0,
        shrink_to: int | None = None,
    ) -> None:
        self.labelled, self.view = labelled, view
        self.images = DetectionDataset(unlabelled, None, labelled.seed, cache_bytes=cache_bytes, shrink_to=shrink_to)

    def __len__(self) -> int:
        return len(self.labelled) + 2 * len(self.images)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Return the sample of ``key``.

        Raises:
            DataError: the image file cannot be read; the message names it.
        """
        number = key.index - len(self.labelled)
        if number < 0:
            return self.labelled[key]
        teacher, index = divmod(number, len(self.images))
        image, none = self.images.read(index), (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
        if teacher:
            return resize_to_tensor(image, key.size), Target(*none), key.index
        pixels, view = self.view(image, size=key.size, seed=sample_seed(self.labelled.seed, key), strong=key.strong)
        return pixels, Target(*none, view), key.index


class UnlabelledSampler(EpochSampler):
    """Batches of labelled images, in which views of unlabelled images replace some once these join.

    An epoch has as many batches with them as without, so it then shows only part of the labelled images, a different part
    each time: a step costs the same except for the teacher. The unlabelled images have their own order: whole passes, each
    shuffled, cut into ``views`` per batch and rank.

    Args:
        length, batch_size, options: as in ``EpochSampler``.
        unlabelled: number of unlabelled images, at least 1.
        views: unlabelled images per batch and rank, fewer than ``batch_size``.

    Attributes:
        joined: whether unlabelled images are in the batch that begins at an image of the current epoch; called when the
            batch is assembled, like ``strong``.
    """

    def __init__(self, length: int, batch_size: int, *, unlabelled: int, views: int, **options: Any) -> None:
        super().__init__(length, batch_size, **options)
        self.unlabelled, self.views = unlabelled, views
        self.joined: Callable[[int], bool] = lambda place: True
        self._passes: dict[int, NDArray[np.int64]] = {}

    @property
    def most_samples(self) -> int:
        """Maximum samples in a batch of one rank."""
        return self.batch_size + self.views

    def epoch(self, epoch: int, *, start: int = 0, strong: Strong = True) -> Iterator[list[SampleKey]]:
        """Yield this rank's batches of an epoch; arguments as in ``EpochSampler.epoch``."""
        for number, keys in enumerate(super().epoch(epoch, start=start, strong=strong)):
            begin = start + number * self.places
            if not self.joined(begin):
                yield keys
                continue
            images = self._images(epoch * len(self) + begin // self.places)
            size, on = keys[0].size, keys[0].strong
            student = [SampleKey(pass_, self.length + index, size, on) for pass_, index in images]
            teacher = [SampleKey(pass_, self.length + self.unlabelled + index, size, False) for pass_, index in images]
            yield self._thinned(keys) + student + teacher

    def _thinned(self, keys: list[SampleKey]) -> list[SampleKey]:
        """Drop ``views`` keys, evenly spaced, so that N ranks together drop what one with their batches does."""
        left, size = self.batch_size - self.views, self.batch_size
        return [key for place, key in enumerate(keys) if (place + 1) * left // size > place * left // size]

    def _images(self, batch: int) -> list[tuple[int, int]]:
        """(pass, image) of each unlabelled image in the batch of this number, counted over all epochs."""
        first = (batch * self.world + self.rank) * self.views
        places = [divmod(place, self.unlabelled) for place in range(first, first + self.views)]
        return [(pass_, int(self._order_of(pass_)[place])) for pass_, place in places]

    def _order_of(self, pass_: int) -> NDArray[np.int64]:
        if pass_ not in self._passes:
            kept = sorted(self._passes)[-1:]
            self._passes = {number: self._passes[number] for number in kept}
            self._passes[pass_] = np.random.default_rng((self.seed, pass_, _ORDER)).permutation(self.unlabelled)
        return self._passes[pass_]


def _blurred(pixels: Tensor) -> Tensor:
    if not happens(BLUR):
        return pixels
    low, high = BLUR_SIGMA
    sigma = low + (high - low) * float(torch.rand(()))
    blurred: Tensor = functional.gaussian_blur(pixels, [7, 7], [sigma, sigma])
    return blurred


def _erased(pixels: Tensor) -> Tensor:
    """Fill rectangles with the image's mean colour (cutout, arXiv 1708.04552)."""
    if not happens(ERASE):
        return pixels
    pixels, size = pixels.clone(), pixels.shape[1]
    mean = pixels.mean(dim=(1, 2))[:, None, None]
    low, high = ERASED_SIDES
    for width, height, x, y in torch.rand(int(torch.randint(1, MOST_ERASED + 1, ())), 4).tolist():
        wide, tall = (max(1, round(size * (low + (high - low) * share))) for share in (width, height))
        left, top = int((size - wide) * x), int((size - tall) * y)
        pixels[:, top : top + tall, left : left + wide] = mean
    return pixels


def _to_area(full: Window, seen: Window, area: tuple[int, int, int, int], size: int) -> Matrix:
    """Map from fractions of the image to fractions of the result that shows ``seen`` in ``area``."""
    matrix = np.eye(3)
    for axis in range(2):
        scale = (area[axis + 2] - area[axis]) / (seen[axis + 2] - seen[axis])
        matrix[axis, axis] = full[axis + 2] * scale / size
        matrix[axis, 2] = (area[axis] - seen[axis] * scale) / size
    return matrix


def _through(corners: Tensor) -> Matrix:
    """The affine map that takes (0, 0), (1, 0) and (0, 1) to three points [3, 2]."""
    origin, right, down = corners.double().numpy()
    return np.stack((np.append(right - origin, 0), np.append(down - origin, 0), np.append(origin, 1)), axis=1)
