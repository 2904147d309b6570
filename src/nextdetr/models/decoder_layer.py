"""One layer of RT-DETR's decoder: self-attention, deformable cross-attention, feed-forward network.

Deformable DETR, arXiv 2010.04159, section 4; Attention Is All You Need, arXiv 1706.03762, section 3.1, for the order of
addition and normalisation. Parameter names are those of the official RT-DETR.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nextdetr.layers.deformable import MSDeformableAttention, Shapes

__all__ = ["SelfAttention", "TransformerDecoderLayer"]


class SelfAttention(nn.Module):
    """Multi-head self-attention with positions added to queries and keys only; names as in ``MultiheadAttention``.

    Args:
        hidden: width, a multiple of ``heads``.
        heads: attention heads.
        dropout: dropout of the attention weights.
    """

    def __init__(self, hidden: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden))
        self.out_proj = nn.Linear(hidden, hidden)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """Attend among queries.

        Args:
            x: [B, Q, D].
            position: [B, Q, D].
            mask: [Q, Q] bool, True where the row's query may attend to the column's; None for everywhere.

        Returns:
            [B, Q, D].
        """
        double = 2 * x.shape[-1]
        query_key = functional.linear(x + position, self.in_proj_weight[:double], self.in_proj_bias[:double])
        value = functional.linear(x, self.in_proj_weight[double:], self.in_proj_bias[double:])
        query, key = query_key.chunk(2, dim=-1)
        attended = functional.scaled_dot_product_attention(
            self._split(query),
            self._split(key),
            self._split(value),
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """[B, Q, D] to [B, heads, Q, d]."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class TransformerDecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention and feed-forward network, each added and then normalised.

    Args:
        hidden: width.
        heads: attention heads of both attentions.
        ffn: width inside the feed-forward network.
        levels: number of feature maps.
        points: sampling points per head on each map, one number or one per map.
        dropout: dropout of the attention weights, and before each addition.
        activation: activation of the feed-forward network.
    """

    projected = True  # whether the cross-attention projects values and output
    norm: Callable[[int], nn.Module] = nn.LayerNorm

    def __init__(
        self,
        hidden: int,
        heads: int,
        ffn: int,
        levels: int,
        points: int | Sequence[int],
        dropout: float,
        activation: nn.Module,
    ) -> None:
        super().__init__()
        self.self_attn = SelfAttention(hidden, heads, dropout)
        self.norm1 = type(self).norm(hidden)
        self.cross_attn = MSDeformableAttention(hidden, levels, heads, points, project=self.projected)
        self._make_join(hidden)
        self._make_feed_forward(hidden, ffn, activation)
        self.norm3 = type(self).norm(hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, position: Tensor, boxes: Tensor, memory: Tensor, shapes: Shapes, mask: Tensor | None
    ) -> Tensor:
        """Update the queries.

        Args:
            x: [B, Q, D] queries.
            position: [B, Q, D] their position embeddings.
            boxes: [B, Q, 4] their boxes, cxcywh in fractions of the image, 0 to 1.
            memory: [B, S, D] feature maps, flattened and concatenated.
            shapes: (height, width) of each map.
            mask: mask of the self-attention.

        Returns:
            [B, Q, D].
        """
        x = self.norm1(x + self.dropout(self.self_attn(x, position, mask)))
        x = self._join(x, self.dropout(self.cross_attn(x + position, boxes, memory, shapes)))
        out: Tensor = self.norm3(x + self.dropout(self._feed_forward(x)))
        return out

    def _make_feed_forward(self, hidden: int, ffn: int, activation: nn.Module) -> None:
        self.linear1 = nn.Linear(hidden, ffn)
        self.activation = activation
        self.linear2 = nn.Linear(ffn, hidden)

    def _feed_forward(self, x: Tensor) -> Tensor:
        """Map [B, Q, D] to the same shape."""
        out: Tensor = self.linear2(self.dropout(self.activation(self.linear1(x))))
        return out

    def _make_join(self, hidden: int) -> None:
        self.norm2 = type(self).norm(hidden)

    def _join(self, before: Tensor, attended: Tensor) -> Tensor:
        """Combine the queries with the output of the cross-attention, both [B, Q, D]."""
        joined: Tensor = self.norm2(before + attended)
        return joined
