"""Multi-scale deformable attention: each query samples a few learnt points of each feature map.

Deformable DETR, arXiv 2010.04159, section 4.1 (equation 3) and appendix A.4 (points relative to a reference box); the
number of points may differ between maps: RT-DETRv2, arXiv 2407.17140, section 3.1.

Differences: none in the result. On the CPU, the bilinear samples of all points, corners and levels are one weighted sum of
rows ("embedding bag") with a hand-written backward pass: a row of channels is contiguous, while ``grid_sample`` walks the
channels one at a time, and autograd would record about forty small steps. It takes about half the time, forward and
backward. Traced, compiled, exported and non-CPU runs use ``grid_sample``, which those tools know; tests compare the two.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from nextdetr.errors import ConfigError
from nextdetr.layers.fast import may_run

__all__ = [
    "MSDeformableAttention",
    "at_least_float32",
    "points_per_level",
    "sample_levels",
    "sample_levels_grid",
    "sample_levels_rows",
]

Shapes = Sequence[tuple[int, int]]


class MSDeformableAttention(nn.Module):
    """Deformable attention of queries over several feature maps (arXiv 2010.04159, equation 3).

    Args:
        hidden: width of queries and values; a multiple of ``heads``.
        levels: number of feature maps.
        heads: attention heads.
        points: sampling points per head on each map: one number for all, or one per map, finest first (RT-DETRv2, arXiv
            2407.17140, section 3.1). A softmax spans all of them either way.
        project: whether to apply linear layers before (``value_proj``) and after sampling (``output_proj``); D-FINE (arXiv
            2410.13842, its ablation) has neither, which is cheaper.

    Raises:
        ConfigError: ``hidden`` is not a multiple of ``heads``, or ``points`` is not one or ``levels`` numbers above 0.
    """

    steps: Tensor
    channels_first = False  # values in the layout of ``grid_sample``; exports set it on their copy of the model

    def __init__(
        self,
        hidden: int = 256,
        levels: int = 3,
        heads: int = 8,
        points: int | Sequence[int] = 4,
        *,
        project: bool = True,
    ) -> None:
        super().__init__()
        if hidden % heads:
            raise ConfigError(f"Deformable attention needs a width that its heads divide; got {hidden} and {heads}.")
        self.levels, self.heads, self.points = levels, heads, points_per_level(points, levels)
        reads = sum(self.points)
        self.sampling_offsets = nn.Linear(hidden, heads * reads * 2)
        self.attention_weights = nn.Linear(hidden, heads * reads)
        self.value_proj = nn.Linear(hidden, hidden) if project else None
        self.output_proj = nn.Linear(hidden, hidden) if project else None
        # With n points on the map, an offset of n is half the box's size.  [K, 1], K the points of all maps
        steps = torch.tensor([0.5 / number for number in self.points for _ in range(number)]).unsqueeze(1)
        self.register_buffer("steps", steps, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Head h looks in direction h around the box, point p at p+1 steps; weights are equal (appendix A.4)."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.heads, dtype=torch.float32) * (2.0 * math.pi / self.heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)  # onto the unit square  [heads, 2]
        steps = torch.cat([torch.arange(1, number + 1, dtype=torch.float32) for number in self.points])  # [K]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((directions[:, None, :] * steps[None, :, None]).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            if layer is None:
                continue
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, reference_boxes: Tensor, value: Tensor, shapes: Shapes) -> Tensor:
        """Attend from each query to the maps around its reference box.

        Args:
            query: [B, Q, D], position already added.
            reference_boxes: [B, Q, 4] cxcywh, fractions of the image, 0 to 1.
            value: [B, S, D], the flattened and concatenated maps, finest first.
            shapes: (height, width) of each map; their areas sum to S.

        Returns:
            [B, Q, D].
        """
        batch, queries, _ = query.shape
        value = self._values(value)  # [B, S, heads, d]
        places = (batch, queries, self.heads, sum(self.points))
        # Positions need more digits than half precision offers: a step of bfloat16 near 1 is 3 pixels of 640.
        offsets = at_least_float32(self.sampling_offsets(query)).view(*places, 2)
        weights = at_least_float32(self.attention_weights(query)).view(places).softmax(dim=-1)
        boxes = at_least_float32(reference_boxes)[:, :, None, None, :]
        if len(set(self.points)) == 1:
            locations = torch.addcmul(boxes[..., :2], offsets, boxes[..., 2:], value=0.5 / self.points[0])
        else:
            locations = torch.addcmul(boxes[..., :2], offsets, boxes[..., 2:] * self.steps)
        sampled = self.sample(value, shapes, locations, weights, self.points)  # [B, Q, D]
        sampled = sampled.to(query.dtype)
        return sampled if self.output_proj is None else self.output_proj(sampled)

    def _values(self, value: Tensor) -> Tensor:
        batch, cells, _ = value.shape
        if self.value_proj is None:
            return value.view(batch, cells, self.heads, -1)
        if self.channels_first:  # the product has grid_sample's layout; the map is transposed once for all layers
            turned = (self.value_proj.weight @ value.transpose(1, 2)).view(batch, self.heads, -1, cells)
            # After the reshape: NNCF takes a sum right after a product for a bias, and looks for the values on its left.
            turned = turned + self.value_proj.bias.view(self.heads, -1, 1)
            return turned.permute(0, 3, 1, 2)
        projected: Tensor = self.value_proj(value)
        return projected.view(batch, cells, self.heads, -1)

    def sample(
        self, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, points: Sequence[int] | None = None
    ) -> Tensor:
        """``sample_levels``; replaced by portable exports on their copy of the model (export/portable.py)."""
        return sample_levels(value, shapes, locations, weights, points)


def at_least_float32(x: Tensor) -> Tensor:
    """Return x, upcast to float32 from half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def points_per_level(points: int | Sequence[int], levels: int) -> tuple[int, ...]:
    """Return the number of points on each map.

    Raises:
        ConfigError: ``points`` is neither one number above 0 nor ``levels`` of them.
    """
    numbers = (points,) * levels if isinstance(points, int) else tuple(points)
    if len(numbers) != levels or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers):
        raise ConfigError(
            f"The sampling points must be one whole number above 0, or a list of {levels} of them, one per feature map; "
            f"got {points!r}."
        )
    return numbers


def sample_levels(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, points: Sequence[int] | None = None
) -> Tensor:
    """Weighted sum of bilinear samples from several maps, zero outside them; computed in float32 (float64 is kept).

    Args:
        value: [B, S, heads, d].
        shapes: (height, width) of each of the L maps.
        locations: [B, Q, heads, L, points, 2], (x, y) as fractions of the map; 0 and 1 are its outer edges. With
            ``points``: [B, Q, heads, K, 2], map after map, K being their sum.
        weights: [B, Q, heads, L, points] or [B, Q, heads, K].
        points: samples per map, if they differ.

    Returns:
        [B, Q, heads · d].
    """
    value = value.to(locations.dtype)
    weights = weights.to(locations.dtype)
    if may_run(value, any_precision=True):
        return sample_levels_rows(value, shapes, locations, weights, points)
    return sample_levels_grid(value, shapes, locations, weights, points)


def sample_levels_grid(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, points: Sequence[int] | None = None
) -> Tensor:
    """``sample_levels`` by ``grid_sample``, one call per map."""
    batch, _, heads, dim = value.shape
    locations, weights, points = _joined(locations, weights, points)
    queries = locations.shape[1]
    by_image = (2 * locations - 1).transpose(1, 2).flatten(0, 1)
    grids = torch.split(by_image, list(points), dim=2)  # [B·heads, Q, points, 2] each
    maps = value.permute(0, 2, 3, 1).flatten(0, 1)  # [B·heads, d, S]
    reads = []  # L times [B·heads, d, Q, points]
    for i, level in enumerate(torch.split(maps, [height * width for height, width in shapes], dim=-1)):
        level = level.reshape(*level.shape[:2], *shapes[i])
        reads.append(functional.grid_sample(level, grids[i], mode="bilinear", padding_mode="zeros", align_corners=False))
    by_head = weights.transpose(1, 2).flatten(0, 1).unsqueeze(1)  # [B·heads, 1, Q, K]
    summed = (torch.cat(reads, dim=-1) * by_head).sum(dim=-1)  # [B·heads, d, Q]
    return summed.view(batch, heads * dim, queries).transpose(1, 2)


def sample_levels_rows(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, points: Sequence[int] | None = None
) -> Tensor:
    """``sample_levels`` as one weighted sum of table rows; the fast form on a CPU."""
    locations, weights, points = _joined(locations, weights, points)
    sampled: Tensor = _WeightedRows.apply(value.contiguous(), tuple(shapes), locations, weights, points)
    return sampled


def _joined(locations: Tensor, weights: Tensor, points: Sequence[int] | None) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Locations [B, Q, heads, K, 2], weights [B, Q, heads, K], and how many of the K are on each map."""
    if points is not None:
        return locations, weights, tuple(points)
    return locations.flatten(3, 4), weights.flatten(3), (locations.shape[4],) * locations.shape[3]


class _WeightedRows(torch.autograd.Function):
    """Row (b, s, h) of the table is ``value[b, s, h]``; bag (b, q, h) sums 4 corners × levels × points of its rows.

    There are N = B·Q·heads bags and K samples per bag. x and y, and the lower and upper cell of each, are stacked and pass
    through every step together: on small tensors the number of steps costs more than their arithmetic.
    """

    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        shapes: tuple[tuple[int, int], ...],
        locations: Tensor,
        weights: Tensor,
        points: tuple[int, ...],
    ) -> Tensor:
        batch, cells, heads, dim = value.shape
        queries = locations.shape[1]
        table = value.view(-1, dim)
        places = locations.flatten(0, 2).permute(2, 0, 1)  # [2 (x, y), N, K]
        attention = weights.reshape(places.shape[1:])
        size, start = _level_constants(shapes, points, places.dtype, places.device)
        index, part, inside = _corners(places, size)  # each [2 (lower, upper), 2 (x, y), N, K]

        pitch = torch.stack((torch.ones_like(start), size[0, 0].int())).unsqueeze(1) * heads
        index.mul_(pitch)
        index[:, 1].add_(start * heads + _first_rows(batch, queries, heads, cells, value.device))
        rows = torch.empty(places.shape[1], 2, 2, places.shape[2], dtype=torch.int32, device=value.device)  # [N, y, x, K]
        mixed = torch.empty_like(rows, dtype=places.dtype)
        torch.add(index[:, None, 1], index[None, :, 0], out=rows.permute(1, 2, 0, 3))
        torch.mul((part[:, 1] * attention)[:, None], part[None, :, 0], out=mixed.permute(1, 2, 0, 3))
        rows, mixed = rows.flatten(1), mixed.flatten(1)  # [N, 4·K]
        ctx.save_for_backward(table, rows, mixed, attention, part, inside, size)
        ctx.shapes = (value.shape, locations.shape, weights.shape)
        return functional.embedding_bag(rows, table, per_sample_weights=mixed, mode="sum").view(batch, queries, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, rows, mixed, attention, part, inside, size = ctx.saved_tensors
        value_shape, locations_shape, weights_shape = ctx.shapes
        grad = grad.reshape(len(rows), -1).contiguous()  # [N, d]
        grad_value = _scatter_rows(grad, rows, mixed, len(table)).view(value_shape) if ctx.needs_input_grad[0] else None
        if not (ctx.needs_input_grad[2] or ctx.needs_input_grad[3]):
            return grad_value, None, None, None, None

        bags, reads = attention.shape
        corners = _row_products(grad, table, rows).view(bags, 2, 2, reads).permute(1, 2, 0, 3)  # [2 (y), 2 (x), N, K]
        by_part = torch.empty_like(
            part
        )  # gradient by the bilinear parts, before the attention weight; laid out as they are
        for axis, (lower, upper) in enumerate((corners.unbind(0), corners.unbind(1))):  # by x: sum over y, and the reverse
            other = part[:, 1 - axis]
            torch.mul(lower, other[0], out=by_part[:, axis]).addcmul_(upper, other[1])
        grad_weights = (by_part[0, 1] * part[0, 1]).addcmul_(by_part[1, 1], part[1, 1])
        by_part = torch.where(inside, by_part, 0.0)
        slope = (by_part[1] - by_part[0]).mul_(
            attention
        )  # the upper part grows with the place, the lower shrinks  [2, N, K]
        grad_locations = torch.empty(bags, reads, 2, dtype=slope.dtype, device=slope.device)
        torch.mul(slope, size, out=grad_locations.permute(2, 0, 1))
        return grad_value, None, grad_locations.view(locations_shape), grad_weights.view(weights_shape), None


def _level_constants(
    shapes: Shapes, points: Sequence[int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Size [2 (width, height), 1, K] and first cell [K] of the map of each of the K columns."""
    widths, heights, starts, cell = [], [], [], 0
    for (height, width), number in zip(shapes, points, strict=True):
        widths += [width] * number
        heights += [height] * number
        starts += [cell] * number
        cell += height * width
    size = torch.tensor((widths, heights), dtype=dtype, device=device).unsqueeze(1)
    return size, torch.tensor(starts, dtype=torch.int32, device=device)


def _first_rows(batch: int, queries: int, heads: int, cells: int, device: torch.device) -> Tensor:
    """Table row of cell 0 for the image and head of each bag, [B·Q·heads, 1]."""
    images = torch.arange(batch, dtype=torch.int32, device=device)[:, None] * (cells * heads)
    first = images + torch.arange(heads, dtype=torch.int32, device=device)  # [B, heads]
    return first[:, None, :].expand(-1, queries, -1).reshape(-1, 1)


def _corners(places: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cells below and above each coordinate.

    Args:
        places: [2, N, K] coordinates as fractions of the map.
        size: [2, 1, K] cells of the map along that coordinate.

    Returns:
        Indices of the cells (int32, clamped to the map), bilinear weights (0 if the index was clamped), and whether they
        were inside; each [2 (lower, upper), 2, N, K]. NaN and infinity count as inside, so that they reach the loss through
        the attention weights, where training reports them, instead of failing here with an index error.
    """
    scaled = torch.mul(places, size, out=places.new_empty(places.shape)).sub_(0.5)
    low = scaled.floor()
    steps = torch.arange(2, dtype=torch.int32, device=places.device).view(2, 1, 1, 1)
    cell = low.int() + steps
    index = cell.clamp(min=torch.zeros_like(steps), max=size.int() - 1)
    inside = index == cell
    part = places.new_empty(cell.shape)
    torch.sub(scaled, low, out=part[1])
    torch.sub(1, part[1], out=part[0])
    return index, torch.where(inside, part, 0.0), inside


def _scatter_rows(grad: Tensor, rows: Tensor, mixed: Tensor, length: int) -> Tensor:
    """Gradient of the table: for each row, the sum over the bags that read it, itself a sum of rows once sorted by row."""
    flat = rows.flatten()
    order = torch.sort(flat, stable=True)[1]  # a radix sort for int32 on the CPU, many times a comparison sort's speed
    counts = torch.bincount(flat, minlength=length)
    return functional.embedding_bag(
        torch.div(order, rows.shape[1], rounding_mode="trunc"),
        grad,
        counts.cumsum(0) - counts,
        per_sample_weights=mixed.flatten().index_select(0, order),
        mode="sum",
    )


def _row_products(grad: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """Dot product of each bag's gradient with each row that it read, [N · 4K]: the gradient of the weights."""
    bags, size = rows.shape
    # A sparse row cannot have more entries than the matrix has columns: maps of one or two cells are read many times.
    if rows.device.type == "cpu" and torch._C.has_mkl and size <= len(table):
        # "Dense times dense at the places of a sparse matrix" is this very sum; embedding_bag's own backward computes it
        # with one BLAS call for every few numbers, in two to four times the time.
        starts = torch.arange(0, (bags + 1) * size, size, dtype=torch.int32, device=rows.device)
        with warnings.catch_warnings():  # torch warns once that sparse matrices are in beta
            warnings.filterwarnings("ignore", message="Sparse CSR")
            places = torch.sparse_csr_tensor(
                starts,
                rows.flatten(),
                torch.zeros_like(rows, dtype=grad.dtype).flatten(),
                (bags, len(table)),
                check_invariants=False,
            )
        dots: Tensor = torch.sparse.sampled_addmm(places, grad, table.t(), beta=0.0).values()
        return dots
    starts = torch.arange(0, bags * size, size, dtype=torch.int32, device=rows.device)
    owner = torch.arange(bags, dtype=torch.int32, device=rows.device).repeat_interleave(size)
    products: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad, table, rows.flatten(), starts, owner, 0
    )
    return products
