"""AIFI: self-attention within the coarsest map (RT-DETR, arXiv 2304.08069, section 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nextdetr.layers.fast import is_traced
from nextdetr.layers.position import sincos_position_2d

__all__ = ["AIFI"]


class AIFI(nn.Module):
    """One post-norm transformer encoder layer over the cells of a map, with GELU.

    Positions are added to queries and keys, not to values.

    Args:
        c1: channels of the map, a multiple of 4 and of ``num_heads``.
        cm: width of the feed-forward network.
        num_heads: attention heads.
        dropout: dropout of attention and feed-forward network.
    """

    def __init__(self, c1: int, cm: int = 1024, num_heads: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.ma = nn.MultiheadAttention(c1, num_heads, dropout=dropout, batch_first=True)
        self.fc1 = nn.Linear(c1, cm)
        self.fc2 = nn.Linear(cm, c1)
        self.norm1 = nn.LayerNorm(c1)
        self.norm2 = nn.LayerNorm(c1)
        self.dropout = nn.Dropout(dropout)
        self._positions: dict[tuple[int, int, torch.device], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, c1, H, W] to the same shape, in channels-last memory."""
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)  # [B, H·W, C]
        placed = tokens + self._position(height, width, x.device).to(tokens.dtype)
        tokens = self.norm1(tokens + self.dropout(self.ma(placed, placed, tokens, need_weights=False)[0]))
        inner = self.dropout(functional.gelu(self.fc1(tokens)))
        tokens = self.norm2(tokens + self.dropout(self.fc2(inner)))
        out: Tensor = tokens.transpose(1, 2).reshape(batch, channels, height, width)
        return out

    def _position(self, height: int, width: int, device: torch.device) -> Tensor:
        """Return the position code, cached outside the state dict; a tracer's symbols are not cached."""
        if is_traced():
            return sincos_position_2d(height, width, self.norm1.normalized_shape[0], device=device)
        key = (height, width, device)
        if key not in self._positions:
            if len(self._positions) >= 64:
                self._positions.clear()
            with torch.inference_mode(False), torch.no_grad():
                self._positions[key] = sincos_position_2d(height, width, self.norm1.normalized_shape[0], device=device)
        return self._positions[key]
