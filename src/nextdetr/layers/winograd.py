"""3 × 3 convolutions with Winograd's minimal filtering, as plain matrix products.

"Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), F(4 × 4, 3 × 3): a tile of 6 × 6 pixels gives 4 × 4
results with 36 multiplications per pair of channels, instead of 144. The tiles of the whole map are transformed to the 36
points and back with one matrix product each, with the Kronecker product of the paper's B and A with themselves; at each
point a matrix product mixes the channels. So only a fast matrix product is needed, which every CPU library has. The
gradients are convolutions too: that of the input is computed by the same function with the mirrored kernel, that of the
kernel is a product at each point.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from nextdetr.layers.fast import may_run

__all__ = [
    "POINTS",
    "Conv3x3",
    "direct_sums",
    "flat_kernel",
    "from_points",
    "squared_matrices",
    "tile_cells",
    "to_points",
    "winograd_conv",
    "winograd_kernel",
]

LEAST_CHANNELS, LEAST_PIXELS = 256, 1600  # below these, direct convolution is as fast (benchmarks/winograd.py)
TILE, STEP, POINTS = 6, 4, 36
# The paper's matrices (section 4.3) for the points 0, 1, -1, 2, -2 and infinity.
B_T = (
    (4.0, 0.0, -5.0, 0.0, 1.0, 0.0), (0.0, -4.0, -4.0, 1.0, 1.0, 0.0), (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0), (0.0, 2.0, -1.0, -2.0, 1.0, 0.0), (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
)  # fmt: skip
G = (
    (1 / 4, 0.0, 0.0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6), (0.0, 0.0, 1.0),
)  # fmt: skip
A_T = (
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0), (0.0, 1.0, -1.0, 2.0, -2.0, 0.0), (0.0, 1.0, 1.0, 4.0, 4.0, 0.0),
    (0.0, 1.0, -1.0, 8.0, -8.0, 1.0),
)  # fmt: skip


def _squared(matrix: tuple[tuple[float, ...], ...], like: Tensor) -> Tensor:
    """Matrix for rows and columns at once."""
    return _kronecker(matrix, like.dtype, like.device)


@lru_cache(maxsize=32)
def _kronecker(matrix: tuple[tuple[float, ...], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # cached, and perhaps used in training later
        side = torch.tensor(matrix, dtype=torch.float64)
        return torch.kron(side, side).to(device, dtype)


def squared_matrices(like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The matrices that take tiles to the points [36, 36], a kernel there [36, 9], and sums back to the map [16, 36]."""
    return _squared(B_T, like), _squared(G, like), _squared(A_T, like)


def tile_counts(height: int, width: int) -> tuple[int, int]:
    """Number of tiles of a map, vertically and horizontally."""
    return -(-height // STEP), -(-width // STEP)


def flat_kernel(weight: Tensor) -> Tensor:
    """Return a kernel [O, C, 3, 3] with positions first, [9, C * O]."""
    return weight.flatten(2).permute(2, 1, 0).reshape(9, -1)


def winograd_kernel(weight: Tensor) -> Tensor:
    """Return a kernel [O, C, 3, 3] at the 36 points, [36, C, O]."""
    return (_squared(G, weight) @ flat_kernel(weight)).view(POINTS, weight.shape[1], weight.shape[0])


@lru_cache(maxsize=64)
def tile_cells(batch: int, height: int, width: int) -> Tensor:
    """Cell of the padded maps, [B · rows · columns], at each position of each tile: [36 · T] int64, positions first."""
    rows, columns = tile_counts(height, width)
    down, across = STEP * rows + 2, STEP * columns + 2
    with torch.inference_mode(False):
        image = torch.arange(batch)[:, None, None] * down
        place, row, column = torch.arange(TILE), STEP * torch.arange(rows), STEP * torch.arange(columns)
        down_there = image + row[:, None]  # [B, rows, 1]
        lines = place[:, None, None, None, None] + down_there  # [6, 1, B, rows, 1]
        found = lines * across + place[:, None, None, None] + column  # [6, 6, B, rows, columns]
    return found.flatten()


def to_points(x: Tensor, matrix: Tensor | None = None, cells: Tensor | None = None) -> Tensor:
    """Return the tiles of a map [B, C, H, W], padded by one pixel, at the 36 points: [36, T, C].

    A graph to export passes its constants, the first of ``squared_matrices`` and ``tile_cells``.
    """
    batch, channels, height, width = x.shape
    rows, columns = tile_counts(height, width)
    x = x.permute(0, 2, 3, 1)
    x = functional.pad(x, (0, 0, 1, STEP * columns + 1 - width, 1, STEP * rows + 1 - height))
    cells = tile_cells(batch, height, width).to(x.device) if cells is None else cells
    tiles = x.reshape(-1, channels).index_select(0, cells)  # whole rows of channels
    matrix = _squared(B_T, x) if matrix is None else matrix
    return (matrix @ tiles.view(POINTS, -1)).view(POINTS, -1, channels)


def from_points(sums: Tensor, shape: torch.Size, matrix: Tensor | None = None) -> Tensor:
    """Return the map [B, O, H, W] of products at the points [36, T, O]; ``shape`` is [B, C, H, W].

    A graph to export passes its constant, the last of ``squared_matrices``.
    """
    batch, _, height, width = shape
    rows, columns = tile_counts(height, width)
    matrix = _squared(A_T, sums) if matrix is None else matrix
    found = (matrix @ sums.view(POINTS, -1)).view(STEP, STEP, batch, rows, columns, -1)
    found = found.permute(2, 3, 0, 4, 1, 5).reshape(batch, STEP * rows, STEP * columns, -1)
    return found[:, :height, :width].permute(0, 3, 1, 2)


def _gradient_at_points(gradient: Tensor) -> Tensor:
    """The transpose of ``from_points``: [B, O, H, W] to [36, T, O]."""
    batch, channels, height, width = gradient.shape
    rows, columns = tile_counts(height, width)
    x = functional.pad(gradient.permute(0, 2, 3, 1), (0, 0, 0, STEP * columns - width, 0, STEP * rows - height))
    x = x.reshape(batch, rows, STEP, columns, STEP, channels).permute(2, 4, 0, 1, 3, 5).reshape(STEP * STEP, -1)
    return (_squared(A_T, x).T @ x).view(POINTS, -1, channels)


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        points = to_points(x)
        ctx.save_for_backward(points, weight)
        ctx.shape = x.shape
        return from_points(torch.bmm(points, winograd_kernel(weight)), x.shape)

    @staticmethod
    @once_differentiable  # the saved values are detached from the input, so a second gradient would be incomplete
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        points, weight = ctx.saved_tensors
        (gradient,) = gradients
        to_input = to_weight = None
        if ctx.needs_input_grad[0]:
            mirrored = weight.flip(2, 3).transpose(0, 1)
            to_input = from_points(torch.bmm(to_points(gradient), winograd_kernel(mirrored)), ctx.shape)
        if ctx.needs_input_grad[1]:
            products = torch.bmm(points.transpose(1, 2), _gradient_at_points(gradient))  # [36, C, O]
            flat = _squared(G, weight).T @ products.view(POINTS, -1)
            to_weight = flat.view(3, 3, weight.shape[1], weight.shape[0]).permute(3, 2, 0, 1)
        return to_input, to_weight


def winograd_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve with padding 1 and stride 1, as ``functional.conv2d`` does, with gradients.

    Args:
        x: [B, C, H, W].
        weight: [O, C, 3, 3].
        bias: [O], if any.

    Returns:
        [B, O, H, W], in channels-last memory.
    """
    out: Tensor = _Winograd.apply(x, weight)
    return out if bias is None else out + bias[:, None, None]


_DIRECT: ContextVar[bool] = ContextVar("direct", default=False)


@contextmanager
def direct_sums() -> Iterator[None]:
    """Use direct convolution in every ``Conv3x3`` inside the block, for example to count operations."""
    token = _DIRECT.set(True)
    try:
        yield
    finally:
        _DIRECT.reset(token)


class Conv3x3(nn.Conv2d):
    """``nn.Conv2d`` with kernel 3, stride 1 and padding 1, using Winograd's filtering where that is faster.

    That is on a CPU, in float32, with many channels and pixels. Graphs to export have the plain convolution, which their
    runtimes can fuse and quantise.

    Args:
        c1: input channels.
        c2: output channels.
        bias: whether to add a bias.
    """

    def __init__(self, c1: int, c2: int, *, bias: bool = True) -> None:
        super().__init__(c1, c2, 3, padding=1, bias=bias)
        self._kept: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, c1, H, W] to [B, c2, H, W]."""
        if not self._pays(x):
            return super().forward(x)
        if torch.is_grad_enabled():
            return winograd_conv(x, self.weight, self.bias)
        out = from_points(torch.bmm(to_points(x), self._at_points()), x.shape)
        return out if self.bias is None else out.add_(self.bias[:, None, None])

    def _pays(self, x: Tensor) -> bool:
        return (
            may_run(x)
            and min(self.in_channels, self.out_channels) >= LEAST_CHANNELS
            and x.shape[0] * x.shape[2] * x.shape[3] > LEAST_PIXELS * (1 + torch.is_grad_enabled()) - 1
            and self.weight.dtype == torch.float32
            and not _DIRECT.get()
        )

    def _at_points(self) -> Tensor:
        """The transformed kernel, cached as long as the weight's values do not change.

        The values themselves are compared: neither their memory address nor torch's version counter detects a cast and
        back, or writes through ``.data``. Comparing takes a fiftieth of the time of the transform.
        """
        kept = self._kept  # read once: another thread may replace it
        if kept is None or not torch.equal(kept[0], self.weight):
            kept = (self.weight.detach().clone(), winograd_kernel(self.weight.detach()))
            self._kept = kept
        return kept[1]

    def __getstate__(self) -> dict[str, Any]:
        """State for copies and pickles, without the cached kernel."""
        return {**self.__dict__, "_kept": None}
