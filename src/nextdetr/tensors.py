"""PyTorch counterparts of images and detections that are NumPy elsewhere, and the choice of a device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from nextdetr.errors import ConfigError
from nextdetr.postprocess import Outputs
from nextdetr.preprocess import as_rgb, is_large, resize_to_planes
from nextdetr.structures import DetectorOutput

__all__ = ["as_outputs", "choose_device", "resize_to_tensor"]

_FAST = ("AVX2", "AVX512")  # processors for which torch has a fast kernel that resizes 8-bit pixels with channels last


def resize_to_tensor(image: Image.Image | NDArray[np.generic], size: int) -> Tensor:
    """Resize to a square and scale to fractions, as ``preprocess.resize_to_planes`` does.

    On x86, torch resizes large images in a third of Pillow's time. It has the same filter with coefficients of fewer bits,
    so that a few values in a thousand are one grey level (1/255) away from Pillow's.

    Args:
        image: RGB PIL image, or anything else that ``as_image`` takes.
        size: side of the result in pixels (S).

    Returns:
        [3, S, S] float32 RGB, 0 to 1, contiguous.
    """
    image = as_rgb(image)
    if not is_large(image, size) or torch.backends.cpu.get_cpu_capability() not in _FAST:
        # Not in two halves in a data loader's worker, which has only one thread.
        return torch.from_numpy(resize_to_planes(image, size, threads=torch.get_num_threads()))
    array = np.asarray(_Writable(np.asarray(image)))
    pixels = torch.from_numpy(array).permute(2, 0, 1)[None]  # [1, 3, H, W], channels last in memory
    resized = functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)[0]
    return torch.empty((3, size, size)).copy_(resized).div_(255)


class _Writable:
    """The memory of a read-only array, which torch takes without a warning; it is only read, and a copy costs too much."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self.owner = array
        pointer, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (pointer, False)}


def as_outputs(output: DetectorOutput | Outputs) -> Outputs:
    """Return a model's outputs as arrays on the CPU, in float32 whatever the model's precision."""
    if isinstance(output, Outputs):
        return output
    logits, boxes = (part.detach().float().cpu().numpy() for part in (output.logits, output.boxes))
    return Outputs(logits, boxes)


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """Return the device to run on: the given one, a number being a GPU's, or the best (CUDA, Apple's MPS, then the CPU).

    Raises:
        ConfigError: there is no such device on this machine.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if str(name).isdecimal():
        name = f"cuda:{name}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch without CUDA raises an AssertionError
        raise ConfigError(f"the device {name} cannot be used on this machine: use cpu, or leave the device out.") from error
    return device
