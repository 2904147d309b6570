"""Checkpoints of ConvNeXt V2's FCMAE pre-training (arXiv 2301.00808) with sparse convolutions.

Their kernels are stored as (positions, in, out).
"""

from __future__ import annotations

import math
import re

from torch import Tensor

from nextdetr.errors import WeightsError
from nextdetr.weights.layouts.base import State
from nextdetr.weights.layouts.convnext import CC_BY_NC, convnext, shaped
from nextdetr.weights.layouts.convnext_original import BLOCK, PRETRAINING_ONLY, STEM

__all__ = ["LAYOUTS", "from_sparse"]


def from_sparse(state: State) -> dict[str, Tensor]:
    """Convert an FCMAE checkpoint with sparse convolutions to our names and shapes, without decoder and mask token.

    Args:
        state: name -> tensor. Kernels are [positions, in, out], or [positions, C] if depthwise, with position x * side + y;
            biases and GRN's tensors are [1, C].

    Raises:
        WeightsError: a kernel is not square.
    """
    dense = {}
    for name, tensor in state.items():
        if name.startswith(PRETRAINING_ONLY):
            continue
        name = re.sub(r"\.(ln|linear)\.(weight|bias)$", r".\2", name.removeprefix("encoder."))
        if name.endswith(".kernel"):
            name, tensor = name.removesuffix("kernel") + "weight", _dense_kernel(name, tensor)
        elif name.endswith(".bias"):
            tensor = tensor.flatten()
        dense[name] = shaped(name, tensor)
    return dense


def _dense_kernel(name: str, kernel: Tensor) -> Tensor:
    positions = kernel.shape[0] if kernel.ndim in (2, 3) else 0
    side = math.isqrt(positions)
    if side < 1 or side * side != positions:
        raise WeightsError(f"the sparse kernel {name} of shape {list(kernel.shape)} is not a square convolution's.")
    if kernel.ndim == 2:  # depthwise: [positions, C]
        kernel = kernel.unsqueeze(1)
    return kernel.permute(2, 1, 0).reshape(kernel.shape[2], kernel.shape[1], side, side).transpose(3, 2)


LAYOUTS = (convnext("convnextv2-fcmae-sparse", STEM, BLOCK, from_sparse, licence=CC_BY_NC, sparse=True),)
