"""Wide 3 × 3 convolutions of an exported graph with Winograd's minimal filtering, for CPU runtimes.

"Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), F(4 × 4, 3 × 3), as in ``layers/winograd.py``, here
with operators that every runtime computes well: one Gather of whole rows of channels extracts the tiles, two products with
constants transform to the 36 points and back, and a batch of 36 products in between mixes the channels with a quarter of
the multiplications. ONNX Runtime and OpenVINO compute 3 × 3 convolutions directly, at the CPU's full throughput, so only
fewer multiplications make them faster.

An ONNX file holds the 3 × 3 kernel, not its 36 points, which are four times as large; the runtime's constant folding
transforms it when it opens the file. OpenVINO's conversion does so immediately.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nextdetr.layers.winograd import POINTS, Conv3x3, flat_kernel, from_points, squared_matrices, tile_cells, to_points

__all__ = ["WinogradConv", "map_sizes", "use_winograd"]

LEAST_CHANNELS, LEAST_PIXELS = 256, 400  # below these, direct convolution is as fast (benchmarks/winograd.py)


class WinogradConv(nn.Module):
    """Replaces ``Conv3x3`` for one image of one size.

    Args:
        conv: the convolution, with a bias.
        height: height of the map.
        width: width of the map.
    """

    kernel: Tensor
    bias: Tensor
    cells: Tensor
    forth: Tensor
    of_kernel: Tensor
    back: Tensor

    def __init__(self, conv: Conv3x3, height: int, width: int) -> None:
        super().__init__()
        assert conv.bias is not None
        weight = conv.weight.detach()
        self.shape = torch.Size((1, weight.shape[1], height, width))
        self.register_buffer("kernel", flat_kernel(weight).contiguous())  # [9, C * O]
        self.register_buffer("bias", conv.bias.detach().clone())
        self.register_buffer("cells", tile_cells(1, height, width).clone())
        for name, matrix in zip(("forth", "of_kernel", "back"), squared_matrices(weight), strict=True):
            self.register_buffer(name, matrix.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Map [1, C, H, W] to [1, O, H, W]."""
        kernel = (self.of_kernel @ self.kernel).view(POINTS, self.shape[1], -1)
        sums = torch.bmm(to_points(x, self.forth, self.cells), kernel)  # [36, T, O]
        return from_points(sums, self.shape, self.back) + self.bias[:, None, None]


@contextmanager
def map_sizes(model: nn.Module) -> Iterator[dict[str, tuple[int, int]]]:
    """Record height and width of the input of each ``Conv3x3`` while ``model`` runs, by the module's name."""
    sizes: dict[str, tuple[int, int]] = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            sizes[name] = (given[0].shape[2], given[0].shape[3])

        return hook

    handles = [
        module.register_forward_pre_hook(note(name))
        for name, module in model.named_modules()
        if isinstance(module, Conv3x3)
    ]
    try:
        yield sizes
    finally:
        for handle in handles:
            handle.remove()


def use_winograd(model: nn.Module, sizes: dict[str, tuple[int, int]]) -> int:
    """Replace the wide convolutions of a folded model, in place; it then only accepts one image of that size.

    Args:
        model: the folded model.
        sizes: sizes of the maps from ``map_sizes``.

    Returns:
        Number of replaced convolutions.
    """
    replaced = 0
    for name, (height, width) in sizes.items():
        conv = model.get_submodule(name)
        if not isinstance(conv, Conv3x3) or conv.bias is None:
            continue
        if min(conv.in_channels, conv.out_channels) >= LEAST_CHANNELS and height * width >= LEAST_PIXELS:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, WinogradConv(conv, height, width))
            replaced += 1
    return replaced
