"""Deformable attention with one GridSample per layer instead of one per level, for graphs of a fixed size.

The levels are stacked on one canvas, with a row of zeros after each and zeros to the right of narrower ones. Positions are
moved to the canvas and clamped to one cell around their level, where they read zero, as outside a map. The results are
those of ``layers/deformable.py`` up to rounding; three calls of GridSample and their Concat, which OpenVINO and ONNX
Runtime compute slowly, become one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from nextdetr.layers.deformable import Shapes

__all__ = ["sample_canvas"]


def sample_canvas(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, points: Sequence[int] | None = None
) -> Tensor:
    """``sample_levels`` for known shapes.

    Args:
        value: [B, S, heads, d].
        shapes: (height, width) of each map.
        locations: [B, Q, heads, K, 2], (x, y) as fractions of the map, map after map.
        weights: [B, Q, heads, K].
        points: how many of the K samples are on each map.

    Returns:
        [B, Q, heads · d].
    """
    assert points is not None
    batch, queries, heads = locations.shape[:3]
    canvas = _canvas(value.to(locations.dtype), shapes)  # [B·heads, d, H, W]
    scale, shift, low, high = _placement(shapes, points, canvas.shape[2:], locations)
    grid = torch.minimum(torch.maximum(locations * scale + shift, low), high)  # NaN stays NaN
    grid = grid.transpose(1, 2).flatten(0, 1)  # [B·heads, Q, K, 2]
    reads = functional.grid_sample(canvas, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    by_head = weights.to(locations.dtype).transpose(1, 2).flatten(0, 1).unsqueeze(1)  # [B·heads, 1, Q, K]
    summed = (reads * by_head).sum(dim=-1)  # [B·heads, d, Q]
    return summed.view(batch, heads, -1, queries).flatten(1, 2).transpose(1, 2)


def _canvas(value: Tensor, shapes: Shapes) -> Tensor:
    """Arrange the maps on one map [B·heads, d, H, W]."""
    batch, _, heads, dim = value.shape
    width = max(columns for _, columns in shapes)
    maps = value.permute(0, 2, 3, 1).flatten(1, 2)  # [B, D, S]
    levels = torch.split(maps, [rows * columns for rows, columns in shapes], dim=2)
    laid = [
        functional.pad(level.reshape(batch, -1, rows, columns), (0, width - columns, 0, 1))
        for level, (rows, columns) in zip(levels, shapes, strict=True)
    ]
    return torch.cat(laid, dim=2).reshape(batch * heads, dim, -1, width)


def _placement(shapes: Shapes, points: Sequence[int], canvas: Sequence[int], like: Tensor) -> tuple[Tensor, ...]:
    """Factor, shift, least and largest position [K, 2] in GridSample's coordinates, -1 to 1, for each sample."""
    scale, shift, low, high = [], [], [], []
    height, width = canvas
    top = 0
    for (rows, columns), number in zip(shapes, points, strict=True):
        # Cell c of the canvas is at (2 c + 1) / size - 1; cell -1 and the one after the last read zero.
        scale += [(2 * columns / width, 2 * rows / height)] * number
        shift += [(-1.0, 2 * top / height - 1)] * number
        low += [(-1 / width - 1, (2 * top - 1) / height - 1)] * number
        high += [((2 * columns + 1) / width - 1, (2 * (top + rows) + 1) / height - 1)] * number
        top += rows + 1
    return tuple(torch.tensor(numbers, dtype=like.dtype, device=like.device) for numbers in (scale, shift, low, high))
