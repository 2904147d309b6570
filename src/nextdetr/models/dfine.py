"""D-FINE's decoder: layers that refine distributions over the edges of a box instead of the box.

D-FINE, arXiv 2410.13842, section 4.1; the gate of the layers and the attention without projections are two of the steps
from RT-DETR to it (its ablation). Query selection, denoising and the rest are from ``RTDETRDecoder``. Names of parts are
ours, sizes the authors'.

Differences: boxes are clipped to 0 to 1 in the decoder, as all our boxes (the authors clip them in the loss); in evaluation
the class and quality heads run on the last layer only; no wider training-only layers follow the evaluated one; torch's
initialisation in the feed-forward networks, and negative denoising sides clamped, not mirrored. Following the authors in
the last two did not raise AP on BCCD (three seeds, docs/experiments.md), so ``xavier`` and ``mirror`` are off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nextdetr.boxes import inverse_sigmoid
from nextdetr.errors import ConfigError
from nextdetr.layers.deformable import Shapes, at_least_float32
from nextdetr.layers.mlp import ACTIVATIONS, MLP
from nextdetr.models.decoder import Decoded, RTDETRDecoder
from nextdetr.models.decoder_layer import TransformerDecoderLayer
from nextdetr.models.edges import expected_offsets, offsets_of_bins, offsets_to_boxes
from nextdetr.structures import EdgeOutput

__all__ = ["DFINEDecoder", "DFINEDecoderLayer", "Gate", "QualityHead"]

POSITION_LIMIT = 10.0  # the authors clip the position embeddings to it
TOP_BINS = 4  # bins whose probabilities the quality head uses
QUALITY_WIDTH = 64


class Gate(nn.Module):
    """Gate two streams against each other, channel by channel, add and normalise: replaces a residual connection.

    Args:
        hidden: width of both.
        norm: builds the norm from the width.
    """

    def __init__(self, hidden: int, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * hidden, 2 * hidden)
        self.norm = norm(hidden)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Mix two [..., D]."""
        keep, take = self.gate(torch.cat((before, after), dim=-1)).sigmoid().chunk(2, dim=-1)
        mixed: Tensor = self.norm(keep * before + take * after)
        return mixed


def largest(values: Tensor, count: int) -> Tensor:
    """The ``count`` largest along the last axis, in descending order."""
    return values.topk(count, dim=-1).values


class QualityHead(nn.Module):
    """Location quality estimator: a sharp distribution raises the class logits (GFLv2, arXiv 2011.12885, section 3.2).

    Args:
        act: see ``MLP``.
    """

    largest = staticmethod(largest)  # replaced by portable exports on their copy (export/portable.py)

    def __init__(self, act: str = "relu") -> None:
        super().__init__()
        self.reg_conf = MLP(4 * (TOP_BINS + 1), QUALITY_WIDTH, 1, 2, act)
        self.reg_conf.zero_last()

    def forward(self, bins: Tensor) -> Tensor:
        """Additive term for every class logit, [B, Q, 1], from the edges' logits [B, Q, 4, N+1]."""
        top = self.largest(bins.softmax(dim=-1), TOP_BINS)
        statistics = torch.cat((top, top.mean(dim=-1, keepdim=True)), dim=-1).flatten(2)
        return at_least_float32(self.reg_conf(statistics.to(next(self.reg_conf.parameters()).dtype)))


class DFINEDecoderLayer(TransformerDecoderLayer):
    """Self-attention, gated deformable cross-attention without projections, feed-forward network."""

    projected = False

    def reset_feed_forward(self) -> None:
        """Initialise the feed-forward network as in the authors' code, with Xavier's uniform distribution.

        torch's default for linear layers, which we use otherwise, is a tenth narrower for the first matrix and less than
        half as wide for the second, if the inner width is four times the outer.
        """
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def _make_join(self, hidden: int) -> None:
        self.gateway = Gate(hidden)

    def _join(self, before: Tensor, attended: Tensor) -> Tensor:
        mixed: Tensor = self.gateway(before, attended)
        return mixed


class DFINEDecoder(RTDETRDecoder):
    """Feature maps in, class logits and boxes out; each layer adds to the logits of the edges' distributions.

    The first layer also predicts a plain box, the anchor, relative to which all layers predict the edges.

    Args:
        nc: number of classes, C.
        ch: channels of the feature maps, finest first.
        hd: hidden width, D.
        nq: queries, Q.
        ndp: sampling points per head and map, one number or a list.
        nh: attention heads.
        ndl: decoder layers, L.
        d_ffn: width inside the feed-forward networks.
        dropout: dropout of the decoder layers.
        bins: N, the number of bins of an edge's distribution minus one; an even number, at least 4 (the authors' reg_max).
        scale: c of the offsets (the authors' reg_scale).
        dense: train an additional head over all tokens.
        mirror: mirror negative denoising queries as the authors' code does, see ``contrastive_denoising``.
        xavier: initialise the feed-forward networks of the layers as the authors' code does.
        project: project the maps to the hidden width, see ``RTDETRDecoder``.
        act: of feed-forward networks and heads, "relu" or "silu" (DEIM, arXiv 2412.04234).
        nd: positive denoising queries per image; 0 trains without them.
        eps: epsilon of the projections' BatchNorm.
        layer: builds a decoder layer, see ``RTDETRDecoder``.

    Raises:
        ConfigError: the settings contradict each other.
    """

    edge_offsets: Tensor
    follows_boxes = True  # whether each layer uses the position embeddings of the boxes refined by the previous one

    def __init__(
        self,
        nc: int,
        ch: Sequence[int],
        hd: int = 256,
        nq: int = 300,
        ndp: int | Sequence[int] = 4,
        nh: int = 8,
        ndl: int = 6,
        d_ffn: int = 1024,
        dropout: float = 0.0,
        *,
        bins: int = 32,
        scale: float = 4.0,
        dense: bool = False,
        mirror: bool = False,
        xavier: bool = False,
        project: bool = True,
        act: str = "relu",
        nd: int = 100,
        eps: float = 1e-3,
        layer: Callable[..., nn.Module] = DFINEDecoderLayer,
    ) -> None:
        offsets = offsets_of_bins(bins, scale)
        if act not in ACTIVATIONS:
            raise ConfigError(f"a decoder's act is one of {', '.join(ACTIVATIONS)}, not {act!r}.")
        super().__init__(
            nc, ch, hd, nq, ndp, nh, ndl, d_ffn, dropout, nn.SiLU() if act == "silu" else True, nd=nd, dense=dense,
            mirror=mirror, eps=eps, layer=layer, box_outputs=4 * (bins + 1), project=project, mlp_act=act,
        )  # fmt: skip
        self.bins, self.scale = bins, float(scale)
        self.pre_bbox_head = MLP(hd, hd, 4, 3, act)
        self.lqe = nn.ModuleList(QualityHead(act) for _ in range(ndl))
        self.register_buffer("edge_offsets", offsets, persistent=False)  # given by the model file
        self.pre_bbox_head.zero_last()
        if xavier:
            for made in self.decoder.layers:
                assert isinstance(made, DFINEDecoderLayer)
                made.reset_feed_forward()

    def _decode(
        self, content: Tensor, boxes: Tensor, memory: Tensor, shapes: Shapes, mask: Tensor | None, every_layer: bool
    ) -> Decoded:
        """Run the layers; return logits, boxes and distributions of every layer, or only of the evaluated one."""
        last = len(self.decoder.layers) - 1 if every_layer else self.eval_layer
        offsets = at_least_float32(self.edge_offsets)
        reference, previous = boxes, content
        bins = anchors = first_boxes = first_logits = content  # the first layer sets them
        logits, layer_boxes, layer_bins = [], [], []
        position = content  # the first layer sets it
        for i, layer in enumerate(self.decoder.layers[: last + 1]):
            if i == 0 or self.follows_boxes:
                position = self.query_pos_head(reference.to(content.dtype)).clamp(-POSITION_LIMIT, POSITION_LIMIT)
            content = layer(content, position, reference, memory, shapes, mask)
            if i == 0:
                step = at_least_float32(self.pre_bbox_head(content))
                first_boxes = (step + inverse_sigmoid(reference)).sigmoid()
                anchors = first_boxes.detach()
            change = self.dec_bbox_head[i](content if i == 0 else content + previous)
            change = at_least_float32(change).view(*change.shape[:2], 4, -1)  # [B, T, 4, N+1]
            bins = change if i == 0 else bins + change
            refined = offsets_to_boxes(anchors, expected_offsets(bins, offsets), self.scale)
            if every_layer or i == last:
                scores = at_least_float32(self.dec_score_head[i](content))
                first_logits = scores if i == 0 else first_logits
                logits.append(scores + self.lqe[i](bins))
                layer_boxes.append(refined.clamp(0.0, 1.0))
                layer_bins.append(bins)
            reference, previous = refined.detach(), content.detach()
        if not every_layer:
            return Decoded(logits, layer_boxes)
        edges = EdgeOutput(torch.stack(layer_bins), anchors, offsets, self.scale, first_logits, first_boxes)
        return Decoded(logits, layer_boxes, edges)
