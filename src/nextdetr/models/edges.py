"""Boxes as distributions over their edges: D-FINE, arXiv 2410.13842, section 4.1 ("fine-grained distribution refinement").

Each of the four edges (left, top, right, bottom) has a distribution over N + 1 bins; bin n stands for the offset W(n), in
units of the anchor box's size divided by ``scale`` (the paper's c, called reg_scale in its code). Bins are dense around 0,
for fine adjustments, and sparse towards the ends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextdetr.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from nextdetr.errors import ConfigError

__all__ = ["boxes_to_offsets", "expected_offsets", "offsets_of_bins", "offsets_to_boxes", "rebin", "split_over_bins"]

REACH = 0.5  # the paper's a: the inner bins reach up to half a box, the outermost to a whole one
_TINY = 1e-16  # keeps the offsets from an anchor without width finite


def offsets_of_bins(bins: int = 32, scale: float = 4.0) -> Tensor:
    """Return W(n), [bins + 1] float32, ascending, odd around the middle (section 4.1, as in the authors' code).

    Args:
        bins: N, an even number, at least 4.
        scale: c, above 0; larger values make the bins more uniform.

    Raises:
        ConfigError: the values are invalid.
    """
    if bins < 4 or bins % 2:
        raise ConfigError(f"The edges' distributions need an even number of bins, 4 or more; got {bins}.")
    if not scale > 0:
        raise ConfigError(f"The scale of the edges' offsets must be above 0; got {scale}.")
    reach = REACH * scale
    # In plain Python: a model on the meta device has no tensors to compute with.
    right = [(reach + 1) ** (2 * i / (bins - 2)) - 1 for i in range(1, bins // 2)] + [2 * reach]
    return torch.tensor([-offset for offset in reversed(right)] + [0.0, *right], dtype=torch.float32)


def expected_offsets(logits: Tensor, offsets: Tensor) -> Tensor:
    """Expectation of W(n) under the distributions with these logits.

    Args:
        logits: [..., 4, N+1].
        offsets: [N+1], W(n).

    Returns:
        [..., 4].
    """
    return logits.softmax(dim=-1) @ offsets


def offsets_to_boxes(anchors: Tensor, offsets: Tensor, scale: float) -> Tensor:
    """Move every edge of the anchors outwards by its offset times size / scale.

    Args:
        anchors: [..., 4] cxcywh.
        offsets: [..., 4] of left, top, right and bottom edge.
        scale: c.

    Returns:
        [..., 4] cxcywh, not clamped.
    """
    centre, unit = anchors[..., :2], anchors[..., 2:] / scale
    reach = offsets + 0.5 * scale
    return xyxy_to_cxcywh(torch.cat((centre - reach[..., :2] * unit, centre + reach[..., 2:] * unit), dim=-1))


def boxes_to_offsets(anchors: Tensor, boxes: Tensor, scale: float) -> Tensor:
    """Inverse of ``offsets_to_boxes``: offsets [..., 4] for ``boxes``; both boxes are [..., 4] cxcywh."""
    centre, unit = anchors[..., :2], anchors[..., 2:] / scale + _TINY
    corners = cxcywh_to_xyxy(boxes)
    return torch.cat(((centre - corners[..., :2]) / unit, (corners[..., 2:] - centre) / unit), dim=-1) - 0.5 * scale


def split_over_bins(values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Express values as weights of two neighbouring bins whose weighted mean is the value.

    Args:
        values: [...], clipped to the range of the bins.
        offsets: [N+1], W(n), ascending.

    Returns:
        The lower bin's index [...], 0 to N-1, and the weight of the upper one [...], 0 to 1.
    """
    values = values.clamp(offsets[0], offsets[-1])
    lower = torch.searchsorted(offsets, values.contiguous(), right=True).sub_(1).clamp_(0, len(offsets) - 2)
    start = offsets[lower]
    return lower, (values - start) / (offsets[lower + 1] - start)


def rebin(
    probabilities: Tensor,
    anchors: Tensor,
    offsets: Tensor,
    scale: float,
    new_anchors: Tensor,
    new_offsets: Tensor,
    new_scale: float,
) -> Tensor:
    """Express distributions over the edges in the bins of another anchor.

    The probability of a bin is split between the two new bins around the position of its edge, so that the mean is
    preserved within the range of the new bins.

    Args:
        probabilities: [..., 4, N+1] of left, top, right and bottom edge.
        anchors: [..., 4] cxcywh of these distributions.
        offsets: [N+1], W(n).
        scale: c.
        new_anchors: [..., 4] cxcywh.
        new_offsets: [M+1].
        new_scale: their c.

    Returns:
        [..., 4, M+1].
    """
    unit, new_unit = anchors[..., 2:] / scale, new_anchors[..., 2:] / new_scale + _TINY
    shift = new_anchors[..., :2] - anchors[..., :2]  # from a centre further right, the left edge is further away
    away = torch.cat((shift, -shift), dim=-1)[..., None]  # [..., 4, 1]
    distance = (offsets + 0.5 * scale) * torch.cat((unit, unit), dim=-1)[..., None]  # [..., 4, N+1]
    values = (distance + away) / torch.cat((new_unit, new_unit), dim=-1)[..., None] - 0.5 * new_scale
    lower, share = split_over_bins(values, new_offsets)
    moved = probabilities.new_zeros(*probabilities.shape[:-1], len(new_offsets))
    return moved.scatter_add(-1, lower, probabilities * (1 - share)).scatter_add(-1, lower + 1, probabilities * share)
