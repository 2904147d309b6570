"""Layers that compute only the visible patches of a masked image: the submanifold-sparse semantics of FCMAE.

"ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders", arXiv 2301.00808, section 3: outputs exist only
at visible positions, and masked ones count as zero. "SparK", arXiv 2301.03580, computes the same with dense maps multiplied
by a mask. Differences from both:

- Each image keeps the same number of patches, so the visible positions are a plain tensor [B, V, P * P, C] (V patches of P
  x P positions). Pointwise layers, norms and GRN run on it directly: no index tables, no masked position computed.
- Only the depthwise convolution looks beyond a patch. It scatters the patches onto an empty map, and gathers them again:
  with the margin that the kernel reads if patches are large relative to the kernel, so that hidden positions are not
  computed; otherwise after convolving the whole map. The map exists only during the call; the gradient keeps the patches.
- Statistics of GRN are per image, as in fine-tuning; the published sparse code computes them over the whole batch.

``StoredMap`` keeps a whole map and updates some of its patches, for images of which only a part has changed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

from nextdetr.layers.depthwise import depthwise, depthwise_weight_gradient
from nextdetr.layers.fast import may_run

__all__ = ["StoredMap", "VisiblePatches", "downsample_patches", "patches_of", "sparse_depthwise"]


@dataclass(frozen=True, slots=True)
class VisiblePatches:
    """Which patches of each image are visible; shared by all stages, at their own resolutions.

    Attributes:
        ids: [B, V] int64, ascending in each row: row-major numbers in the grid of patches.
        grid: (rows, columns) of that grid.
    """

    ids: Tensor
    grid: tuple[int, int]

    def places(self) -> tuple[Tensor, Tensor]:
        """Return row and column of each patch of the first image in the grid of patches, [V] each."""
        return torch.div(self.ids[0], self.grid[1], rounding_mode="floor"), self.ids[0] % self.grid[1]

    def rows(self, side: int) -> Tensor:
        """Return the indices of the pixel rows of the visible patches, at ``side`` positions per patch.

        The map [B, H, W, C] is viewed as [B * H * columns, side * C]: each row of a patch is contiguous.

        Returns:
            [B * V * side] int64.
        """
        batch, (grid_rows, columns) = self.ids.shape[0], self.grid
        patch_row = torch.div(self.ids, columns, rounding_mode="floor")  # [B, V]
        inside = torch.arange(side, device=self.ids.device)
        height = patch_row[..., None] * side + inside  # [B, V, side]
        image = torch.arange(batch, device=self.ids.device)[:, None, None] * (grid_rows * side)
        return ((image + height) * columns + (self.ids % columns)[..., None]).flatten()

    def scatter(self, x: Tensor, side: int, rows: Tensor | None = None) -> Tensor:
        """Scatter patches [B, V, side * side, C] onto a map of zeros [B, C, H, W] in channels-last memory."""
        batch, (grid_rows, columns) = x.shape[0], self.grid
        channels = x.shape[-1]
        rows = self.rows(side) if rows is None else rows
        empty = x.new_zeros(batch * grid_rows * side * columns, side * channels)
        full = empty.index_copy_(0, rows, x.reshape(-1, side * channels))
        return full.view(batch, grid_rows * side, columns * side, channels).permute(0, 3, 1, 2)

    def gather(self, x: Tensor, side: int, rows: Tensor | None = None) -> Tensor:
        """Gather the patches [B, V, side * side, C] from a map [B, C, H, W]."""
        batch, channels = x.shape[:2]
        rows = self.rows(side) if rows is None else rows
        flat = x.permute(0, 2, 3, 1).reshape(-1, side * channels)  # a view of channels-last memory
        return flat.index_select(0, rows).view(batch, -1, side * side, channels)

    def with_margin(self, x: Tensor, side: int, margin: int) -> Tensor:
        """Gather the patches [B, V, side * side, C] with the positions around them, zero where nothing is visible.

        Args:
            x: the patches.
            side: positions along a patch, at least ``margin``.
            margin: positions on each side.

        Returns:
            [B * V, C, side + 2 * margin, side + 2 * margin] in channels-last memory.
        """
        batch, channels = x.shape[0], x.shape[-1]
        grid_rows, columns = self.grid
        # Each row of the map ends in a patch of zeros, which is the margin on its right and on the next row's left; images
        # are stacked vertically with ``margin`` rows of zeros between them, preceded by one patch of zeros.
        image = torch.arange(batch, device=x.device)[:, None] * (grid_rows * side + margin)
        top = image + torch.div(self.ids, columns, rounding_mode="floor") * side  # the margin's first row, [B, V]
        column = (1 + self.ids % columns)[..., None]  # in patches, like the width of the map
        large, wide = side + 2 * margin, columns + 1
        rows = (top[..., None] + margin + torch.arange(side, device=x.device)) * wide + column
        flat = x.new_zeros((1 + (batch * (grid_rows * side + margin) + margin) * wide) * side, channels)
        flat.view(-1, side * channels).index_copy_(0, rows.flatten(), x.reshape(-1, side * channels))
        starts = ((top[..., None] + torch.arange(large, device=x.device)) * wide + column) * side - margin
        windows = flat.as_strided((flat.shape[0] - large + 1, large * channels), (channels, 1))
        return windows.index_select(0, starts.flatten()).view(-1, large, large, channels).permute(0, 3, 1, 2)

    def margin_pays(self, side: int, margin: int) -> bool:
        """Whether the patches with their margins have so few positions, relative to the map, that they are faster.

        With margin 3 and 19 of 49 patches visible, it is faster at 8 positions per side (a step of atto takes 5 % less) and
        equal at 4; with 34 of 49 visible it is equal at 8 too.
        """
        grid_rows, columns = self.grid
        positions = self.ids.shape[1] * (side + 2 * margin) ** 2
        return side > 2 * margin and positions <= 2 * grid_rows * columns * side**2


def sparse_depthwise(x: Tensor, weight: Tensor, bias: Tensor, visible: VisiblePatches, rows: Tensor) -> Tensor:
    """Depthwise convolution in which masked positions count as zero and have no output.

    Args:
        x: [B, V, P * P, C] visible patches.
        weight: [C, 1, K, K], K odd.
        bias: [C].
        visible: positions of the patches.
        rows: ``visible.rows(P)``, shared by the blocks of a stage.

    Returns:
        [B, V, P * P, C].
    """
    if torch.is_grad_enabled() and may_run(x):
        out: Tensor = _SparseDepthwiseFunction.apply(x, weight, bias, visible, rows)
        return out
    side = _side(x)
    full = visible.scatter(x, side, rows)
    return visible.gather(F.conv2d(full, weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[-1]), side, rows)


class _SparseDepthwiseFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, visible: VisiblePatches, rows: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, rows)
        ctx.visible = visible
        side, margin = _side(x), weight.shape[-1] // 2
        if visible.margin_pays(side, margin):
            return _of_windows(visible.with_margin(x, side, margin), weight, bias).view(x.shape)
        return visible.gather(depthwise(visible.scatter(x, side, rows), weight, bias), side, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rows = ctx.saved_tensors
        visible, side, size = ctx.visible, _side(x), weight.shape[-1]
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_x = grad_weight = None
        turned = weight.flip(2, 3)
        if visible.margin_pays(side, size // 2):
            windows = visible.with_margin(grad, side, size // 2)
            if need_x:
                grad_x = _of_windows(windows, turned, None).view(x.shape)
            if need_weight:  # of x around the gradient, or, turned, of the gradient around x
                patches = x.reshape(-1, side, side, x.shape[-1]).permute(0, 3, 1, 2)
                grad_weight = depthwise_weight_gradient(windows, patches, size).flip(2, 3)
        else:
            full = visible.scatter(grad, side, rows)
            if need_x:
                grad_x = visible.gather(depthwise(full, turned, None), side, rows)
            if need_weight:
                grad_weight = depthwise_weight_gradient(visible.scatter(x, side, rows), full, size)
        return grad_x, grad_weight, grad.sum(dim=(0, 1, 2)) if need_bias else None, None, None


def _of_windows(windows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve each window [N, C, H, W] separately; returns its inner part, [N, h, w, C]."""
    out: Tensor = F.conv2d(windows, weight, bias, groups=weight.shape[0]).permute(0, 2, 3, 1)
    return out.contiguous()


def downsample_patches(x: Tensor, weight: Tensor, bias: Tensor | None, side: int) -> Tensor:
    """Convolve each patch separately with kernel = stride, as one matrix product.

    Args:
        x: [B, V, side * side, C].
        weight: [D, C, K, K], K a divisor of ``side``.
        bias: [D].
        side: positions along a patch.

    Returns:
        [B, V, (side // K) ** 2, D].
    """
    batch, count, _, channels = x.shape
    kernel = weight.shape[-1]
    cells = side // kernel
    pieces = x.view(batch, count, cells, kernel, cells, kernel, channels).transpose(3, 4)
    flat = pieces.reshape(batch, count, cells * cells, kernel * kernel * channels)
    return F.linear(flat, weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1), bias)


def _side(x: Tensor) -> int:
    return math.isqrt(x.shape[2])


class StoredMap:
    """A map [1, C, H, W] that is stored and updated by patches, with a margin of zeros around it as padding.

    Args:
        x: the map.
        side: positions along a patch; H and W are multiples of it.
        margin: width of the margin.
    """

    def __init__(self, x: Tensor, side: int, margin: int) -> None:
        self.side, self.margin = side, margin
        self._padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, margin, margin, margin, margin))  # [1, H + 2M, W + 2M, C]

    @property
    def map(self) -> Tensor:
        """The map [1, C, H, W], a view that later calls of ``put`` change."""
        height, width = (length - 2 * self.margin for length in self._padded.shape[1:3])
        inner = self._padded[:, self.margin : self.margin + height, self.margin : self.margin + width]
        return inner.permute(0, 3, 1, 2)

    def put(self, patches: Tensor, visible: VisiblePatches) -> None:
        """Update the patches [1, V, side * side, C]."""
        patches_of(self.map, self.side)[visible.places()] = patches.view(-1, self.side, self.side, patches.shape[-1])

    def depthwise(self, weight: Tensor, bias: Tensor | None, visible: VisiblePatches) -> Tensor:
        """Convolve the map depthwise, and return the visible patches of the result, [1, V, side * side, C].

        Args:
            weight: [C, 1, K, K], K = 2 * margin + 1.
            bias: [C].
            visible: patches to return.
        """
        side, channels = self.side, self._padded.shape[-1]
        if visible.margin_pays(side, self.margin):
            x = self._windows(visible)
            out = _of_windows(x, weight, bias)
        else:
            full = F.conv2d(self._padded.permute(0, 3, 1, 2), weight, bias, groups=channels)
            out = patches_of(full, side)[visible.places()]
        return out.reshape(1, -1, side * side, channels)

    def _windows(self, visible: VisiblePatches) -> Tensor:
        """Gather the patches with their margins: [V, C, side + 2 * margin, side + 2 * margin], channels-last memory."""
        flat, large = self._padded[0], self.side + 2 * self.margin
        row, position, channel = flat.stride()
        strides = (self.side * row, self.side * position, row, position, channel)
        windows = flat.as_strided((*visible.grid, large, large, flat.shape[-1]), strides, flat.storage_offset())
        return windows[visible.places()].permute(0, 3, 1, 2)


def patches_of(x: Tensor, side: int) -> Tensor:
    """View a map [1, C, H, W] as its patches, [rows, columns, side, side, C]."""
    _, channels, height, width = x.shape
    return x[0].permute(1, 2, 0).view(height // side, side, width // side, side, channels).transpose(1, 2)
