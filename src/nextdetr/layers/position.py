"""Two-dimensional sine-cosine positions: Attention Is All You Need (arXiv 1706.03762, section 3.5), once per axis."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["sincos_position_2d"]


def sincos_position_2d(
    height: int, width: int, channels: int, temperature: float = 10000.0, device: torch.device | None = None
) -> Tensor:
    """Return the code of each cell of a map, row by row: sine and cosine of y, then of x.

    Args:
        height: rows of the map.
        width: columns of the map.
        channels: length of a code, a multiple of 4.
        temperature: ratio of the longest to the shortest wavelength.
        device: device of the result.

    Returns:
        [1, height · width, channels] float32, in the order of RT-DETR's published weights.
    """
    if channels % 4:
        raise ValueError(f"a position needs a multiple of 4 channels, not {channels}")
    quarter = channels // 4
    omega = 1.0 / temperature ** (torch.arange(quarter, dtype=torch.float32, device=device) / quarter)
    x = torch.arange(width, dtype=torch.float32, device=device)[:, None] * omega  # [W, C/4]
    y = torch.arange(height, dtype=torch.float32, device=device)[:, None] * omega  # [H, C/4]
    x = x.expand(height, width, quarter)
    y = y[:, None].expand(height, width, quarter)
    return torch.cat((y.sin(), y.cos(), x.sin(), x.cos()), dim=-1).reshape(1, height * width, channels)
