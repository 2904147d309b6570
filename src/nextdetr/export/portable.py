"""The same results without GridSample and TopK, for accelerators that lack them.

Bilinear samples (Deformable DETR, arXiv 2010.04159, section 4.1) become a gather of rows and a weighted sum. The tokens
selected by RT-DETR's query selection (arXiv 2304.08069, section 4.3) are found by bisecting the scores until a threshold
separates them from the rest: ONNX has no sort but TopK, and comparing all pairs of tokens would be 70 million comparisons
at 640 pixels. Queries are then in token order, which the decoder does not depend on; the final top-k, over queries and
classes, is left to the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nextdetr.layers.deformable import MSDeformableAttention, Shapes, points_per_level
from nextdetr.models.decoder import RTDETRDecoder
from nextdetr.models.dfine import QualityHead

__all__ = ["gather_levels", "largest_by_halving", "largest_by_maxima", "make_portable"]

HALVINGS = 40  # of the scores' range: the remainder is below a float32 step of any logit


def make_portable(model: nn.Module) -> None:
    """Replace everything that exports to GridSample and TopK, in place; the batch size is then 1."""
    for module in model.modules():
        if isinstance(module, MSDeformableAttention):
            setattr(module, "sample", gather_levels)  # noqa: B010 - a method of this copy only
        elif isinstance(module, QualityHead):
            setattr(module, "largest", largest_by_maxima)  # noqa: B010
        elif isinstance(module, RTDETRDecoder):
            setattr(module, "find_largest", largest_by_halving)  # noqa: B010
            setattr(module, "take_rows", _rows_of_one)  # noqa: B010


def gather_levels(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, points: Sequence[int] | None = None
) -> Tensor:
    """``sample_levels`` with one gather: four rows per sample, weighted and summed.

    Args:
        value: [B, S, heads, d].
        shapes: (height, width) of each map, finest first; their areas sum to S.
        locations: [B, Q, heads, K, 2], (x, y) as fractions of the map.
        weights: [B, Q, heads, K].
        points: samples per map; None for equal numbers.

    Returns:
        [B, Q, heads · d] in the locations' precision.
    """
    batch, cells, heads, dim = value.shape
    numbers = points_per_level(locations.shape[3] // len(shapes) if points is None else points, len(shapes))
    extents, starts, first = [], [], 0
    for (height, width), number in zip(shapes, numbers, strict=True):
        extents += [(width, height)] * number
        starts += [first] * number
        first += height * width
    size = locations.new_tensor(extents)  # [K, 2]
    scaled = locations * size - 0.5
    low = scaled.floor()
    upper_part = scaled - low
    cell = torch.stack((low, low + 1))  # [2 (lower, upper), B, Q, heads, K, 2]
    index = torch.minimum(cell.clamp(min=0), size - 1)
    part = torch.stack((1 - upper_part, upper_part)) * (index == cell).to(scaled.dtype)  # nothing is outside the map

    # Row numbers in float: they are integers far below 2^24.
    heads_first = torch.arange(heads, device=value.device, dtype=scaled.dtype)[:, None]  # [heads, 1]
    images_first = torch.arange(batch, device=value.device, dtype=scaled.dtype)[:, None, None, None] * (cells * heads)
    in_map = index[:, None, ..., 1] * size[:, 0] + index[None, ..., 0]  # [2 (y), 2 (x), B, Q, heads, K]
    rows = (in_map + locations.new_tensor(starts)) * heads + heads_first + images_first
    mixed = part[:, None, ..., 1] * part[None, ..., 0] * weights.to(scaled.dtype)
    table = value.to(scaled.dtype).reshape(-1, dim)
    reads = table.index_select(0, rows.flatten().long()).view(*rows.shape, dim)  # [2, 2, B, Q, heads, K, d]
    summed: Tensor = (reads * mixed.unsqueeze(-1)).sum(dim=(0, 1, 5)).flatten(2)
    return summed


def largest_by_halving(scores: Tensor, count: int) -> Tensor:
    """Indices of the largest, ascending; on a tie the first.

    Args:
        scores: [B, S], finite.
        count: how many, from 1 to S.

    Returns:
        [B, count] int64.
    """
    scores = scores.float()  # positions are counted in this type, and float16 integers are exact only to 2048
    low, high = scores.amin(dim=1, keepdim=True) - 1, scores.amax(dim=1, keepdim=True)
    for _ in range(HALVINGS):  # at least `count` lie above `low`, fewer above `high`
        middle = 0.5 * (low + high)
        enough = _count(scores > middle) >= count
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    above = scores > high
    equal = (scores > low) & ~above  # within rounding
    order = equal.to(scores.dtype).cumsum(dim=1)
    chosen = above | (equal & (order <= count - _count(above)))
    place = torch.where(chosen, chosen.to(scores.dtype).cumsum(dim=1), torch.zeros_like(scores))  # 1 to count, or 0
    wanted = torch.arange(1, count + 1, device=scores.device, dtype=scores.dtype)
    tokens = torch.arange(scores.shape[1], device=scores.device, dtype=scores.dtype)
    matches = (place[:, None, :] == wanted[:, None]).to(scores.dtype)  # [B, count, S]: a single 1 in each row
    return (matches @ tokens).long()


def largest_by_maxima(values: Tensor, count: int) -> Tensor:
    """The ``count`` largest along the last axis, none of them negative, in descending order: repeated maximum."""
    places = torch.arange(values.shape[-1], device=values.device, dtype=values.dtype)
    found = []
    for _ in range(count):
        most = values.amax(dim=-1, keepdim=True)
        # The first position of the largest, not argmax, which OpenVINO converts to TopK.
        first = torch.where(values == most, places, values.shape[-1] + torch.zeros_like(values)).amin(dim=-1, keepdim=True)
        found.append(most)
        values = torch.where(places == first, -torch.ones_like(values), values)
    return torch.cat(found, dim=-1)


def _count(mask: Tensor) -> Tensor:
    """Number of true values in each row, [B, 1]; in float, which every accelerator can sum."""
    return mask.to(torch.float32).sum(dim=1, keepdim=True)


def _rows_of_one(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` [1, Q] of [1, S, D]."""
    return tokens.index_select(1, index[0])
