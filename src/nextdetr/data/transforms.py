"""Training augmentation: the recipe of RT-DETR (arXiv 2304.08069, section 5; its public configuration) on torchvision v2.

The recipe is photometric distortion, zoom-out, IoU crop (all three from SSD, arXiv 1512.02325, section 2.2), flip and a
square resize. torchvision draws every parameter. Differences, and reasons:

- Zoom-out and crop both choose a window of the image plane, so they are drawn on the boxes alone, and the window is resized
  once: no canvas of up to sixteen times the image is ever filled. The distortion comes after the resize, on fewer pixels. A
  sample of 640x480 pixels at 320 costs about a quarter of the same recipe done step by step.
- The forty trials of the IoU crop are drawn and judged at once instead of in a Python loop.
- Zoom-out fills with the image's own mean colour, not black: black frames do not occur in real images.
- Images without boxes are not cropped (torchvision would search in vain).
- Quarter turns and vertical flips are for images without an up direction (microscopy, aerial); off by default.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from nextdetr.data.windows import (
    BoxArray,
    LabelArray,
    Window,
    as_boxes,
    happens,
    intersect,
    make_target,
    on_canvas,
    place_boxes,
    render,
    seeded,
    target_area,
)  # fmt: skip
from nextdetr.structures import Target
from nextdetr.tensors import resize_to_tensor

__all__ = ["AugmentConfig", "TrainTransform", "multi_scale_sizes", "plain_transform", "train_transform"]


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Probabilities, 0 to 1, and ranges of the augmentation.

    Attributes:
        photometric: probability of each distortion: brightness, contrast, saturation, hue, channel permutation.
        permute_channels: whether channel permutation is among them; without it, colours that distinguish classes survive.
        zoom_out: probability of placing the image on a larger canvas.
        zoom_range: range of the side of that canvas, relative to the image.
        iou_crop: probability of cropping around at least one box.
        flip: probability of mirroring left to right.
        flip_vertical: probability of mirroring top to bottom.
        rotate90: probability of one, two or three quarter turns.
    """

    photometric: float = 0.5
    permute_channels: bool = True
    zoom_out: float = 0.5
    zoom_range: tuple[float, float] = (1.0, 4.0)
    iou_crop: float = 0.8
    flip: float = 0.5
    flip_vertical: float = 0.0
    rotate90: float = 0.0


def multi_scale_sizes(base_size: int, low: float = 0.75, high: float = 1.25, step: int = 32) -> tuple[int, ...]:
    """Return the multiples of ``step`` from ``low`` to ``high`` times ``base_size``, and ``base_size`` itself."""
    first, last = -int(-base_size * low // step), int(base_size * high // step)
    return tuple(sorted({base_size, *(step * count for count in range(max(first, 1), last + 1))}))


def plain_transform(image: Image.Image, boxes: BoxArray, labels: LabelArray, size: int) -> tuple[Tensor, Target]:
    """Resize without augmentation, as validation and prediction do.

    Args:
        image: RGB.
        boxes: [N, 4] xyxy in pixels of ``image``.
        labels: [N] class indices.
        size: side of the result in pixels (S).

    Returns:
        [3, S, S] float32, 0 to 1, and the target; boxes with both sides below one pixel of the result are left out.
    """
    full = Window(0, 0, *image.size)
    placed, kept = place_boxes(as_boxes(boxes), full, full, (0, 0, size, size))
    return resize_to_tensor(image, size), make_target(placed[kept], torch.as_tensor(labels)[kept], size)


class TrainTransform:
    """Augment one sample; every draw is a function of the ``seed`` given to the call.

    Args:
        config: probabilities and ranges.
        flip_horizontal: False never mirrors left to right, whatever ``config`` says.
        flip_vertical: mirror half of the images top to bottom, whatever ``config`` says.
        rotate90: rotate by quarter turns so that all four directions are equally frequent, whatever ``config`` says.
    """

    def __init__(
        self,
        config: AugmentConfig | None = None,
        *,
        flip_horizontal: bool = True,
        flip_vertical: bool = False,
        rotate90: bool = False,
    ) -> None:
        config = config or AugmentConfig()
        if not flip_horizontal:
            config = replace(config, flip=0.0)
        if flip_vertical:
            config = replace(config, flip_vertical=0.5)
        if rotate90:
            config = replace(config, rotate90=0.75)
        self.config = config
        self.distort = _Distort(p=self.config.photometric, permute=self.config.permute_channels)
        self._zoom_out = v2.RandomZoomOut(side_range=self.config.zoom_range)
        self._crop = FastIoUCrop()

    def __call__(
        self, image: Image.Image, boxes: BoxArray, labels: LabelArray, *, size: int, seed: int, strong: bool = True
    ) -> tuple[Tensor, Target]:
        """Return the augmented image and its target.

        Args:
            image: RGB.
            boxes: [N, 4] xyxy in pixels of ``image``; N may be 0.
            labels: [N] class indices.
            size: side of the result in pixels (S).
            seed: 0 to 2^64 - 1. torch's global generator is restored on return.
            strong: whether to distort, zoom out and crop; flips and rotations always happen.

        Returns:
            [3, S, S] float32, 0 to 1, and the target, without boxes with both sides below one pixel of the result or whose
            centre was cropped away. Without strong augmentation and flips, both equal those of ``plain_transform``.
        """
        xyxy, classes = as_boxes(boxes), torch.as_tensor(labels)
        with seeded(seed):
            picture = image
            full = Window(0, 0, *image.size)
            window, within = self._draw_window(xyxy, full) if strong else (full, None)
            seen = intersect(window, full)
            area = target_area(window, seen, size)
            if strong:
                picture = self.distort(render(image, seen, area, size))
            placed, kept = place_boxes(xyxy, full, seen, area)
            if within is not None:
                kept &= within
            pixels, placed = self.turn(resize_to_tensor(picture, size), placed[kept], size)
        return pixels, make_target(placed, classes[kept], size)

    def _draw_window(self, boxes: Tensor, full: Window) -> tuple[Window, Tensor | None]:
        """Window after zoom-out and crop, and which boxes [N] have their centres in it (None: all)."""
        window = full
        if happens(self.config.zoom_out):
            left, top, right, bottom = self._zoom_out.make_params([on_canvas(boxes, full)])["padding"]
            window = Window(-left, -top, full.right + right, full.bottom + bottom)
        if not happens(self.config.iou_crop):
            return window, None
        crop = self._crop.make_params([on_canvas(boxes, window)])
        if not crop:
            return window, None
        left, top = window.left + crop["left"], window.top + crop["top"]
        return Window(left, top, left + crop["width"], top + crop["height"]), crop["is_within_crop_area"]

    def turn(self, pixels: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Flip and rotate [3, S, S] pixels and [N, 4] xyxy boxes in pixels."""
        canvas: Tensor = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(size, size))
        if happens(self.config.flip):
            pixels, canvas = functional.horizontal_flip(pixels), functional.horizontal_flip(canvas)
        if happens(self.config.flip_vertical):
            pixels, canvas = functional.vertical_flip(pixels), functional.vertical_flip(canvas)
        turned = canvas.as_subclass(Tensor)
        if happens(self.config.rotate90):
            quarters = int(torch.randint(1, 4, ()))
            pixels = torch.rot90(pixels, quarters, (1, 2))  # counterclockwise
            for _ in range(quarters):
                x1, y1, x2, y2 = turned.unbind(-1)
                turned = torch.stack((y1, size - x2, y2, size - x1), dim=-1)
        return pixels.contiguous(), turned


def train_transform(**options: Any) -> TrainTransform:
    """Build a ``TrainTransform`` from the fields of ``AugmentConfig`` as keywords."""
    return TrainTransform(AugmentConfig(**options))


class FastIoUCrop(v2.RandomIoUCrop):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's ``RandomIoUCrop``, with all trials of a draw judged at once; an image without boxes is not cropped.

    The distribution is the same: of independent trials, the first that satisfies the conditions is used.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw a crop.

        Args:
            flat_inputs: holds one ``tv_tensors.BoundingBoxes`` in XYXY format.

        Returns:
            top, left, height, width in pixels and ``is_within_crop_area`` [N] bool; empty to leave the image uncropped.
        """
        boxes = next(value for value in flat_inputs if isinstance(value, tv_tensors.BoundingBoxes))
        height, width = boxes.canvas_size
        xyxy = boxes.as_subclass(Tensor).numpy().astype(np.float64)
        while len(xyxy):
            least_overlap = self.options[int(torch.randint(len(self.options), ()))]
            if least_overlap >= 1.0:
                break
            crops = self._draw(width, height)  # [T, 4]
            inside = _centres_inside(xyxy, crops)  # [T, N]
            good = ((_iou(crops, xyxy) >= least_overlap) & inside).any(axis=1)
            if good.any():
                first = int(good.argmax())
                left, top, right, bottom = (int(value) for value in crops[first])
                within = torch.from_numpy(inside[first].copy())
                return {
                    "top": top,
                    "left": left,
                    "height": bottom - top,
                    "width": right - left,
                    "is_within_crop_area": within,
                }
        return {}

    def _draw(self, width: int, height: int) -> NDArray[np.float64]:
        """Crops [T, 4] xyxy in whole pixels, without those of a bad shape."""
        draws = torch.rand(self.trials, 4).numpy().astype(np.float64)
        extent = np.array([width, height])
        sides = np.floor(extent * (self.min_scale + (self.max_scale - self.min_scale) * draws[:, :2]))  # [T, 2]
        corner = np.floor((extent - sides) * draws[:, 2:])
        aspect = sides[:, 0] / sides[:, 1].clip(min=1)
        shapely = (aspect >= self.min_aspect_ratio) & (aspect <= self.max_aspect_ratio) & (sides >= 1).all(axis=1)
        crops: NDArray[np.float64] = np.concatenate((corner, corner + sides), axis=1)[shapely]
        return crops


class _Distort(v2.RandomPhotometricDistort):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's photometric distortion with optional channel permutation."""

    def __init__(self, p: float, permute: bool) -> None:
        super().__init__(p=p)
        self.permute = permute

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        params: dict[str, Any] = super().make_params(flat_inputs)
        if not self.permute:
            params["channel_permutation"] = None
        return params


def _centres_inside(boxes: NDArray[np.float64], crops: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the centre of box n lies inside crop t, [T, N]."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2  # [N, 2]
    inside = (crops[:, None, :2] < centre) & (centre < crops[:, None, 2:])  # [T, N, 2]
    return np.logical_and(inside[..., 0], inside[..., 1])


def _iou(crops: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of each crop with each box, [T, N]; 0 where the union is empty."""
    inner = np.minimum(crops[:, None, 2:], boxes[:, 2:]) - np.maximum(crops[:, None, :2], boxes[:, :2])
    intersection = inner.clip(min=0).prod(axis=-1)
    union = (
        (crops[:, 2:] - crops[:, :2]).prod(axis=-1)[:, None] + (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1) - intersection
    )
    iou: NDArray[np.float64] = intersection / np.maximum(union, np.finfo(np.float64).tiny)
    return iou
