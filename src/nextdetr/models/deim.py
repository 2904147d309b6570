"""DEIMv2's decoder: D-FINE's with RMSNorm and SwiGLU; in small sizes without gate and with one box head for all layers.

DEIMv2, arXiv 2509.20787, section 3.2. As in the authors' code (Apache-2.0), tokens are ranked and used as they leave the
encoder, without RT-DETR's output layer, and every layer uses the position embeddings of the initial boxes. transformers
5.24 has the output layer, recomputes the position embeddings for each layer, and uses ReLU in the box heads where the
authors use SiLU: the same weights give different boxes there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from nextdetr.layers.mlp import MLP
from nextdetr.models.decoder_layer import TransformerDecoderLayer
from nextdetr.models.dfine import DFINEDecoder, Gate

__all__ = ["DEIMDecoder", "DEIMDecoderLayer", "SwiGLU"]

_rms_norm = partial(nn.RMSNorm, eps=1e-6)


class SwiGLU(nn.Module):
    """A gated feed-forward network (GLU variants, arXiv 2002.05202, equation 6), with biases.

    Args:
        hidden: width of input and output.
        inner: width inside.
    """

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(hidden, 2 * inner)
        self.w3 = nn.Linear(inner, hidden)
        for linear in (self.w12, self.w3):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., hidden] to the same shape."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        out: Tensor = self.w3(functional.silu(gate) * value)
        return out


class DEIMDecoderLayer(TransformerDecoderLayer):
    """Self-attention, deformable cross-attention without projections, SwiGLU; RMSNorm after each.

    Args:
        arguments: as for ``TransformerDecoderLayer``; the feed-forward network has half of ``ffn`` as its inner width.
        gate: combine queries and cross-attention output with a gate; otherwise by addition and RMSNorm.
    """

    projected = False
    norm = staticmethod(_rms_norm)

    def __init__(self, *arguments: object, gate: bool = True) -> None:
        self._gated = gate  # a plain attribute, which may be set before nn.Module's __init__
        super().__init__(*arguments)  # type: ignore[arg-type]

    def _make_join(self, hidden: int) -> None:
        if self._gated:
            self.gateway = Gate(hidden, _rms_norm)
        else:
            super()._make_join(hidden)

    def _join(self, before: Tensor, attended: Tensor) -> Tensor:
        mixed: Tensor = self.gateway(before, attended) if self._gated else super()._join(before, attended)
        return mixed

    def _make_feed_forward(self, hidden: int, ffn: int, activation: nn.Module) -> None:
        self.swish_ffn = SwiGLU(hidden, ffn // 2)

    def _feed_forward(self, x: Tensor) -> Tensor:
        forwarded: Tensor = self.swish_ffn(x)
        return forwarded


class DEIMDecoder(DFINEDecoder):
    """Feature maps in, class logits and boxes out; the arguments are those of ``DFINEDecoder``.

    Args:
        nc: number of classes, C.
        ch: channels of the feature maps, finest first.
        hd: hidden width, D.
        nq: queries, Q.
        ndp: sampling points per head and map, one number or a list.
        nh: attention heads.
        ndl: decoder layers, L.
        d_ffn: twice the width inside the feed-forward networks.
        dropout: dropout of the decoder layers.
        bins: N, the number of bins of an edge's distribution minus one.
        scale: c of the offsets.
        dense: train an additional head over all tokens.
        project: project the maps to the hidden width, see ``RTDETRDecoder``.
        gate: see ``DEIMDecoderLayer``.
        share: one box head for all layers.
        nd: positive denoising queries per image; 0 trains without them.
        eps: epsilon of the projections' BatchNorm.

    Raises:
        ConfigError: the settings contradict each other.
    """

    follows_boxes = False

    def __init__(
        self,
        nc: int,
        ch: Sequence[int],
        hd: int = 256,
        nq: int = 300,
        ndp: int | Sequence[int] = 4,
        nh: int = 8,
        ndl: int = 6,
        d_ffn: int = 2048,
        dropout: float = 0.0,
        *,
        bins: int = 32,
        scale: float = 4.0,
        dense: bool = False,
        project: bool = True,
        gate: bool = True,
        share: bool = False,
        nd: int = 100,
        eps: float = 1e-3,
    ) -> None:
        super().__init__(
            nc, ch, hd, nq, ndp, nh, ndl, d_ffn, dropout, bins=bins, scale=scale, dense=dense, project=project,
            act="silu", nd=nd, eps=eps, layer=partial(DEIMDecoderLayer, gate=gate),
        )  # fmt: skip
        if share:
            self.dec_bbox_head = nn.ModuleList([self.dec_bbox_head[0]] * ndl)

    def _make_output(self, hidden: int) -> nn.Module:
        return nn.Identity()

    def _make_position_head(self, hidden: int, act: str) -> MLP:
        return MLP(4, hidden, hidden, 3, act)

    def _encode(self, memory: Tensor, valid: Tensor | None) -> Tensor:
        """Return the tokens, with invalid ones set to zero; the decoder layers read them directly."""
        return memory if valid is None else memory.masked_fill(~valid, 0.0)
