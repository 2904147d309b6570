"""Wide 3 × 3 convolutions of an exported graph by Winograd's minimal filtering, for runtimes on processors.

"Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), F(4 × 4, 3 × 3), as in ``layers/winograd.py``, here
in operators that every runtime computes well: one Gather of whole rows of channels takes the tiles apart, two products with
constants go to the 36 points and back, and a batch of 36 products in between mixes the channels with a quarter of the
multiplications. ONNX Runtime and OpenVINO sum 3 × 3 convolutions directly, at the processor's own rate of products, so that
nothing but fewer multiplications makes them faster.

The file holds the 3 × 3 kernel, not its 36 points, which are four times as large; the runtime's own folding of constants
moves it there when it opens the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nextdetr.layers.winograd import POINTS, STEP, TILE, Conv3x3, squared_matrices, tile_counts

__all__ = ["WinogradConv", "map_sizes", "use_winograd"]

LEAST_CHANNELS = 192  # below which the direct sum is as fast (benchmarks/winograd.py)


class WinogradConv(nn.Module):
    """What ``Conv3x3`` computes, for one image of one size.

    Args:
        conv: the convolution, with a bias.
        height: of the map.
        width: of the map.
    """

    kernel: Tensor
    bias: Tensor
    cells: Tensor
    to_points: Tensor
    from_points: Tensor
    of_kernel: Tensor

    def __init__(self, conv: Conv3x3, height: int, width: int) -> None:
        super().__init__()
        assert conv.bias is not None
        self.height, self.width = height, width
        self.rows, self.columns = tile_counts(height, width)
        weight = conv.weight.detach()
        self.register_buffer("kernel", weight.flatten(2).permute(2, 1, 0).reshape(9, -1).contiguous())  # [9, C * O]
        self.register_buffer("bias", conv.bias.detach().clone())
        self.channels = (weight.shape[1], weight.shape[0])
        for name, matrix in zip(("to_points", "of_kernel", "from_points"), squared_matrices(weight), strict=True):
            self.register_buffer(name, matrix.clone())
        # Cell of the padded map that is at each place of each tile, [36 * T]: places first, as the products want them.
        place = torch.arange(TILE)
        down = place[:, None] + STEP * torch.arange(self.rows)  # [6, rows]
        across = place[:, None] + STEP * torch.arange(self.columns)  # [6, columns]
        cells = down[:, None, :, None] * (STEP * self.columns + 2) + across[None, :, None, :]
        self.register_buffer("cells", cells.flatten())

    def forward(self, x: Tensor) -> Tensor:
        """Map [1, C, H, W] to [1, O, H, W]."""
        inside, outside = self.channels
        bottom, right = STEP * self.rows + 1 - self.height, STEP * self.columns + 1 - self.width
        padded = functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, right, 1, bottom))
        tiles = padded.reshape(-1, inside).index_select(0, self.cells)  # [36 * T, C]
        points = (self.to_points @ tiles.view(POINTS, -1)).view(POINTS, -1, inside)
        kernel = (self.of_kernel @ self.kernel).view(POINTS, inside, outside)
        sums = torch.bmm(points, kernel)  # [36, T, O]
        found = (self.from_points @ sums.view(POINTS, -1)).view(STEP, STEP, self.rows, self.columns, outside)
        found = found.permute(2, 0, 3, 1, 4).reshape(1, STEP * self.rows, STEP * self.columns, outside)
        return (found[:, : self.height, : self.width] + self.bias).permute(0, 3, 1, 2)


@contextmanager
def map_sizes(model: nn.Module) -> Iterator[dict[str, tuple[int, int]]]:
    """Note height and width of what each ``Conv3x3`` gets while ``model`` runs, by the module's name."""
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
    """Replace the wide convolutions of a folded model, in place; it takes one image of that size from then on.

    Args:
        model: folded.
        sizes: of the maps, as ``map_sizes`` noted them.

    Returns:
        How many were replaced.
    """
    replaced = 0
    for name, (height, width) in sizes.items():
        conv = model.get_submodule(name)
        if isinstance(conv, Conv3x3) and conv.bias is not None and min(conv.weight.shape[:2]) >= LEAST_CHANNELS:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, WinogradConv(conv, height, width))
            replaced += 1
    return replaced
