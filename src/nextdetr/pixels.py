"""In-memory pixels, arrays and tensors, as 8-bit RGB images; does not import torch."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nextdetr.errors import DataError

if TYPE_CHECKING:
    import torch

__all__ = ["float_grey", "from_array", "from_tensor", "grey", "is_tensor", "of_16_bits"]


def is_tensor(source: Any) -> bool:
    """Whether this is a torch tensor, checked without importing torch."""
    kind = getattr(sys.modules.get("torch"), "Tensor", None)
    return kind is not None and isinstance(source, kind)


def from_tensor(tensor: torch.Tensor, bits: int) -> Image.Image:
    """Convert a tensor to an image.

    Args:
        tensor: [3, H, W] RGB, [1, H, W] or [H, W] grey, on any device; float, 0 to 1, or uint8, 0 to 255.
        bits: significant bits of 16-bit pixels.

    Raises:
        DataError: wrong shape, type or range, or ambiguous between channels first and last.
    """
    shape = tuple(tensor.shape)
    hint = ""
    if tensor.ndim == 4:
        hint = " (pass a batch as list(tensor))"
    elif tensor.ndim == 3 and shape[2] in (1, 3, 4):
        hint = " (this one looks channels-last: pass tensor.permute(2, 0, 1), or tensor.numpy())"
    if hint or not (tensor.ndim == 2 or (tensor.ndim == 3 and shape[0] in (1, 3))) or 0 in shape:
        raise DataError(
            f"an image tensor has the shape [3, H, W] (RGB), [1, H, W] or [H, W] (grey), not {list(shape)}{hint}."
        )
    values = tensor.detach().cpu()
    pixels: NDArray[np.generic] = (values.float() if values.is_floating_point() else values).numpy()
    return from_array(np.moveaxis(pixels, 0, 2) if pixels.ndim == 3 else pixels, bits)


def grey(values: NDArray[np.floating]) -> Image.Image:
    """RGB image of [H, W] floats 0 to 255, rounded."""
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")


def of_16_bits(values: NDArray[np.generic], bits: int) -> NDArray[np.floating]:
    """Scale values of this many bits to 0..255."""
    largest = 2**bits - 1
    return values.astype(np.float32).clip(0, largest) / np.float32(largest / 255)


def float_grey(values: NDArray[np.generic]) -> NDArray[np.floating]:
    """Scale a floating-point image to 0..255: fractions are scaled, Pillow's own 0 to 255 is kept."""
    floats = np.asarray(values, dtype=np.float32)
    low, high = (float(floats.min()), float(floats.max())) if floats.size else (0.0, 0.0)
    if not (low >= 0 and high <= 255):  # false for NaN, too
        raise DataError(f"a floating-point image holds values from {low:g} to {high:g}: scale it to 0..1 first.")
    return floats * 255 if high <= 1 else floats


def from_array(array: NDArray[np.generic], bits: int) -> Image.Image:
    """Convert an array to an image.

    Args:
        array: [H, W, 3] RGB, or [H, W] or [H, W, 1] grey; uint8, uint16, or float, 0 to 1.
        bits: significant bits of uint16: 2^bits - 1 and more become 255.

    Raises:
        DataError: wrong shape, type or range.
    """
    shape = tuple(array.shape)
    if array.ndim == 3 and shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and shape[2] == 3)) or 0 in shape:
        hint = ""
        if array.ndim == 3 and shape[0] in {1, 3} and 0 not in shape:
            hint = " (this one looks channels-first: transpose it with array.transpose(1, 2, 0))"
        elif array.ndim == 3 and shape[2] == 4:
            hint = " (drop the alpha channel with array[:, :, :3])"
        elif array.ndim == 4:
            hint = " (pass a batch as a list of arrays)"
        raise DataError(f"an image array has the shape [H, W, 3] (RGB) or [H, W] (grey), not {list(shape)}{hint}.")
    if array.dtype == np.uint8:
        image = Image.fromarray(np.ascontiguousarray(array))
    elif array.dtype == np.uint16:
        image = Image.fromarray(np.rint(of_16_bits(array, bits)).astype(np.uint8))
    elif np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"a floating-point image array holds fractions, 0 to 1; this one holds values from {low:g} to {high:g}: "
                "divide it by its range, or pass it as uint8."
            )
        image = Image.fromarray(np.rint(array.astype(np.float32) * 255).astype(np.uint8))
    else:
        raise DataError(f"an image array is uint8 (0..255), uint16 or float (0..1), not {array.dtype}.")
    return image if image.mode == "RGB" else image.convert("RGB")
