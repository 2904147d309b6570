"""Float16 where it is safe: weights, convolutions and matrix products; float32 for what overflows or loses precision.

A sum of squares over a map exceeds float16's 65,504 in ordinary networks (GRN, LayerNorm), a softmax loses its tail, and a
step of float16 near 1 is a third of a pixel of 640. GRN's statistics, sampling positions, their softmax and all box
arithmetic are upcast by the model's own layers (``layers/norm.py``, ``layers/deformable.py``, ``models/decoder.py``); this
file upcasts the rest.
"""

from __future__ import annotations

import math
from typing import TypeVar

from torch import Tensor, nn
from torch.nn import functional

from nextdetr.layers.attention import AIFI
from nextdetr.models.decoder_layer import SelfAttention
from nextdetr.models.dfine import DFINEDecoder
from nextdetr.models.edges import offsets_of_bins

__all__ = ["halve"]

M = TypeVar("M", bound=nn.Module)


class Float32LayerNorm(nn.Module):
    """A LayerNorm computed in float32; the result has the input's precision."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm.float()
        self.normalized_shape = norm.normalized_shape

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [..., C]."""
        out: Tensor = self.norm(x.float())
        return out.to(x.dtype)


class HalfAttention(nn.Module):
    """Multi-head attention in half precision with softmax in float32; called like ``SelfAttention`` and torch's."""

    def __init__(self, source: SelfAttention | nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = source.heads if isinstance(source, SelfAttention) else source.num_heads
        self.in_proj_weight, self.in_proj_bias = source.in_proj_weight, source.in_proj_bias
        self.out_proj = source.out_proj

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend: three times [B, T, D] to [B, T, D]."""
        parts = zip((query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        q, k, v = (self._split(functional.linear(x, weight, bias)) for x, weight, bias in parts)
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)  # [B, heads, T, T]
        weights = scores.float().softmax(dim=-1).to(v.dtype)
        out: Tensor = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class HalfSelfAttention(HalfAttention):
    """Replaces ``SelfAttention``."""

    def forward(self, x: Tensor, position: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend among queries [B, Q, D]; there is no mask in evaluation."""
        placed = x + position
        return self.attend(placed, placed, x)


class HalfMultiheadAttention(HalfAttention):
    """Replaces ``nn.MultiheadAttention``, batch first."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False) -> tuple[Tensor, None]:
        """Attend among tokens [B, T, D]."""
        return self.attend(query, key, value), None


def halve(model: M) -> M:
    """Convert ``model`` to float16 in place, except LayerNorms, softmax and the edges' offsets, and return it."""
    model.half()
    for module in model.modules():
        if isinstance(module, DFINEDecoder):
            module.edge_offsets = offsets_of_bins(module.bins, module.scale).to(module.edge_offsets.device)
    _raise_children(model)
    return model


def _raise_children(parent: nn.Module) -> None:
    for name, child in list(parent.named_children()):
        if isinstance(child, nn.LayerNorm):
            parent.register_module(name, Float32LayerNorm(child))
        elif isinstance(child, SelfAttention):
            parent.register_module(name, HalfSelfAttention(child))
        elif isinstance(child, nn.MultiheadAttention) and isinstance(parent, AIFI):
            parent.register_module(name, HalfMultiheadAttention(child))
        else:
            _raise_children(child)
