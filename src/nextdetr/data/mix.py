"""Samples made of several images: mosaic, mixup and copy-paste, the dense one-to-one batches of DEIM.

DEIM (arXiv 2412.04234, section 3.1): a detector with one-to-one matching learns from as many queries as there are boxes, so
images with more boxes teach more in the same time. Mosaic: YOLOv4, arXiv 2004.10934, section 3.4. Mixup: arXiv 1710.09412,
for detection with the union of the boxes as in arXiv 1902.04103. Pasting: arXiv 1708.01642.

Differences, and reasons:

- DEIM builds a mosaic of twice the size, rotates and scales it, and crops a part. Here the part is chosen first, and each
  of the four images is resized once, to its visible part: a mosaic costs about as much as a plain sample.
- The other images come from the data set, not from the batch, and every draw is a function of the sample's seed, so that
  batches do not depend on workers, ranks or interruptions.
- Boxes are pasted with some of their surroundings, faded out at the edges, and only where they cover at most a tenth of any
  existing box (half a box with a full label teaches nothing). Rare classes are pasted more often, by the inverse square
  root of their count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from nextdetr.boxes import cxcywh_to_xyxy
from nextdetr.data.transforms import TrainTransform
from nextdetr.data.windows import Window, as_boxes, make_target, place_boxes, seeded
from nextdetr.structures import Target
from nextdetr.tensors import resize_to_tensor

__all__ = ["MixConfig", "Mixer", "Source"]

_MARGIN = 0.15  # of a pasted box's sides, on each side; faded out
_TRIES = 10  # places tried for a pasted box
_COVERED = 0.1  # maximum fraction of a box that a paste may hide
_LARGEST = 0.6  # of the result's side; larger boxes are not pasted
_SMALLEST = 3.0  # pixels of the result; smaller boxes are not pasted


class Source(NamedTuple):
    """An image to build samples from; crowds are separate since they are not targets, but must not be pasted either.

    Attributes:
        image: RGB.
        boxes: [N, 4] xyxy in pixels of ``image``.
        labels: [N] class indices.
        crowds: [K, 4] xyxy.
    """

    image: Image.Image
    boxes: Tensor
    labels: Tensor
    crowds: Tensor


@dataclass(frozen=True, slots=True)
class MixConfig:
    """How often samples combine several images.

    Attributes:
        mosaic: probability of four images in a two by two grid instead of one.
        mosaic_scale: range of the size of the grid's images, relative to a plain sample.
        mixup: probability of blending with the plain sample of another image.
        mixup_share: range of the weight of the first image.
        copy_paste: probability of pasting boxes of other images.
        most_pasted: maximum boxes pasted into a sample.
        paste_scale: range of the size of a paste, relative to the original.
    """

    mosaic: float = 0.0
    mosaic_scale: tuple[float, float] = (0.5, 1.0)
    mixup: float = 0.0
    mixup_share: tuple[float, float] = (0.45, 0.55)
    copy_paste: float = 0.0
    most_pasted: int = 4
    paste_scale: tuple[float, float] = (0.7, 1.4)

    @property
    def any(self) -> bool:
        """Whether any of it can happen."""
        return max(self.mosaic, self.mixup, self.copy_paste) > 0


class Mixer:
    """Make a training sample of one or several images; a function of the data and the seed only.

    Args:
        config: probabilities and ranges.
        transform: augmentation of a single image.
        read: returns the image at an index.
        labels: class indices of the boxes that may be pasted, [N] for each image.
    """

    def __init__(
        self,
        config: MixConfig,
        transform: TrainTransform,
        read: Callable[[int], Source],
        labels: list[NDArray[np.int64]],
    ) -> None:
        self.config, self.transform, self.read = config, transform, read
        self.images = len(labels)
        counts = [len(row) for row in labels]
        self._pool = np.stack((np.repeat(np.arange(self.images), counts), np.concatenate([np.arange(n) for n in counts])))
        classes = np.concatenate(labels) if labels else np.empty(0, np.int64)
        frequency = np.bincount(classes)[classes]
        self._chances = np.cumsum(frequency**-0.5) if len(classes) else np.empty(0)

    def __call__(self, index: int, *, size: int, seed: int) -> tuple[Tensor, Target]:
        """Return the strongly augmented sample of an image.

        Args:
            index: index of the first image.
            size: side of the result in pixels (S).
            seed: seed of all draws, 0 to 2^64 - 1.

        Returns:
            [3, S, S] float32, 0 to 1, and the target.
        """
        draw, config = np.random.default_rng((seed, 1)), self.config
        mosaic, mixup, paste = draw.random(3) < (config.mosaic, config.mixup, config.copy_paste)
        if mosaic:
            partners = [index, *draw.integers(self.images, size=3).tolist()]
            pixels, target = self._mosaic(partners, size, draw, seed)
        else:
            pixels, target = self._plain(index, size, seed)
        if paste and len(self._chances):
            pixels, target = self._paste(pixels, target, size, draw)
        if mixup:
            share = float(draw.uniform(*config.mixup_share))
            other, more = self._plain(int(draw.integers(self.images)), size, int(draw.integers(2**63)))
            pixels = pixels.mul(share).add_(other, alpha=1 - share)
            target = Target(torch.cat((target.boxes, more.boxes)), torch.cat((target.labels, more.labels)))
        return pixels, target

    def _plain(self, index: int, size: int, seed: int) -> tuple[Tensor, Target]:
        image, boxes, labels, _ = self.read(index)
        return self.transform(image, boxes, labels, size=size, seed=seed, strong=True)

    def _mosaic(self, indices: list[int], size: int, draw: np.random.Generator, seed: int) -> tuple[Tensor, Target]:
        """Arrange four images around a point, each as a square of side 1, and show a window of that plane."""
        side = 1 / float(draw.uniform(*self.config.mosaic_scale))  # of the window, in squares
        # The point stays away from the window's edge, and the window within the four squares.
        low, high = np.maximum(0.25 * side, side - 1), np.minimum(0.75 * side, 1)
        before = draw.uniform(low, high, size=2)  # squares seen left of and above the point
        cross = [min(max(round(value / side * size), 1), size - 1) for value in before.tolist()]
        canvas = Image.new("RGB", (size, size))
        placed, classes = [], []
        for position, index in enumerate(indices):
            image, boxes, labels, _ = self.read(index)
            seen, area = [0, 0, 0, 0], [0, 0, 0, 0]
            for axis, extent in enumerate(image.size):
                part = float(before[axis] if position >> axis & 1 == 0 else side - before[axis])  # of the picture
                pixels = min(max(round(part * extent), 1), extent)
                first = position >> axis & 1 == 0  # left or top: its far end touches the point
                seen[axis], seen[axis + 2] = (extent - pixels, extent) if first else (0, pixels)
                area[axis], area[axis + 2] = (0, cross[axis]) if first else (cross[axis], size)
            window, square = Window(*seen), (area[0], area[1], area[2], area[3])
            tile = image.resize((square[2] - square[0], square[3] - square[1]), Image.Resampling.BILINEAR, box=window)
            canvas.paste(tile, square[:2])
            xyxy = as_boxes(boxes)
            moved, kept = place_boxes(xyxy, Window(0, 0, *image.size), window, square)
            kept &= _centred(xyxy, window)
            placed.append(moved[kept])
            classes.append(torch.as_tensor(labels)[kept])
        with seeded(seed):
            pixels_, turned = self.transform.turn(
                resize_to_tensor(self.transform.distort(canvas), size), torch.cat(placed), size
            )
        return pixels_, make_target(turned, torch.cat(classes), size)

    def _paste(self, pixels: Tensor, target: Target, size: int, draw: np.random.Generator) -> tuple[Tensor, Target]:
        """Paste boxes of other images into free places."""
        boxes, labels = cxcywh_to_xyxy(target.boxes) * size, target.labels
        pixels = pixels.clone()
        for _ in range(int(draw.integers(1, self.config.most_pasted + 1))):
            row = int(np.searchsorted(self._chances, draw.random() * self._chances[-1], side="right"))
            image_index, box_index = self._pool[:, min(row, len(self._chances) - 1)].tolist()
            scale, seed, mirror = (
                float(draw.uniform(*self.config.paste_scale)),
                int(draw.integers(2**63)),
                draw.random() < 0.5,
            )
            places = draw.random((_TRIES, 2))
            patch = self._patch(self.read(image_index), box_index, size, scale)
            if patch is None:
                continue
            picture, inner, classes = patch
            with seeded(seed):
                piece = _to_tensor(self.transform.distort(picture))
            height, width = piece.shape[1:]
            if mirror and self.transform.config.flip > 0:
                piece, inner = functional.horizontal_flip(piece), _mirrored(inner, width)
            corners = torch.from_numpy(np.floor(places * (size - np.array([width, height])))).float()  # [T, xy]
            covered = _overlap(torch.cat((corners, corners + torch.tensor([width, height])), 1), boxes)  # [T, N]
            free = (covered <= _COVERED * (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)).all(dim=1)
            if not bool(free.any()):
                continue
            x, y = (int(value) for value in corners[int(free.int().argmax())])
            part = pixels[:, y : y + height, x : x + width]
            part.copy_(torch.lerp(part, piece, _fade(height, width)))
            boxes = torch.cat((boxes, inner + torch.tensor([x, y, x, y])))
            labels = torch.cat((labels, classes))
        return pixels, make_target(boxes, labels, size)

    def _patch(self, source: Source, index: int, size: int, scale: float) -> tuple[Image.Image, Tensor, Tensor] | None:
        """Cut out a box with its surroundings, at its size in a plain sample times ``scale``.

        Returns:
            The crop, the boxes [N, 4] xyxy in its pixels with the wanted one first, and their labels; None if the box is
            too small or too large, or overlaps a crowd.
        """
        image, boxes, labels, crowds = source
        box = boxes[index]
        sides = (box[2:] - box[:2]) * torch.tensor([size / image.width, size / image.height]) * scale
        if bool((sides < _SMALLEST).any()) or bool((sides > _LARGEST * size).any()):
            return None
        margin = (box[2:] - box[:2]) * _MARGIN
        around = torch.cat((box[:2] - margin, box[2:] + margin)).tolist()
        window = Window(
            max(0, round(around[0])), max(0, round(around[1])),
            min(image.width, max(round(around[2]), round(around[0]) + 1)),
            min(image.height, max(round(around[3]), round(around[1]) + 1)),
        )  # fmt: skip
        if window.right <= window.left or window.bottom <= window.top:
            return None
        if bool((_overlap(torch.tensor([window], dtype=torch.float32), crowds) > 0).any()):
            return None
        width = max(1, round((window.right - window.left) * size / image.width * scale))
        height = max(1, round((window.bottom - window.top) * size / image.height * scale))
        if max(width, height) >= size:
            return None
        moved, kept = place_boxes(boxes, Window(0, 0, *image.size), window, (0, 0, width, height))
        kept &= _centred(boxes, Window(*(int(v) for v in box.round())))  # neighbours that mostly lie in it are included
        kept[index] = False
        picture = image.resize((width, height), Image.Resampling.BILINEAR, box=window)
        order = torch.cat((torch.tensor([index]), kept.nonzero().flatten()))
        return picture, moved[order], labels[order]


def _to_tensor(image: Image.Image) -> Tensor:
    """[3, H, W] float32, 0 to 1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).to(torch.float32).div_(255)


def _centred(boxes: Tensor, window: Window) -> Tensor:
    """Whether the centres of xyxy boxes [N, 4] lie in the window, [N] bool."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    low, high = torch.tensor(window[:2]), torch.tensor(window[2:])
    return ((centres > low) & (centres < high)).all(dim=1)


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack((width - x2, y1, width - x1, y2), dim=1)


def _overlap(first: Tensor, second: Tensor) -> Tensor:
    """Intersection areas of xyxy boxes [T, 4] and [N, 4], [T, N]."""
    low, high = torch.maximum(first[:, None, :2], second[:, :2]), torch.minimum(first[:, None, 2:], second[:, 2:])
    return (high - low).clamp(min=0).prod(dim=-1)


def _fade(height: int, width: int) -> Tensor:
    """Weight of a paste [H, W]: rises from its edge to 1 at the box."""

    def ramp(length: int) -> Tensor:
        position = (torch.arange(length) + 0.5) / length
        return (torch.minimum(position, 1 - position) * (1 + 2 * _MARGIN) / _MARGIN).clamp(max=1)

    return torch.minimum(ramp(height)[:, None], ramp(width)[None])
