"""RT-DETR's decoder: query selection, decoder layers with deformable attention, and heads that refine boxes layer by layer.

RT-DETR, arXiv 2304.08069, section 4; the layers are from Deformable DETR (arXiv 2010.04159, section 4), the denoising
queries and the gradient of the refinement from DINO (arXiv 2203.03605, sections 3.3 and 3.5).

Differences, none of them visible in the outputs:

- Tokens are ranked without gradient and in full precision; the encoder's heads then run on the selected ones only. The
  losses reach no other token in RT-DETR either, so the gradients are the same for a seventh of the work at 320 pixels (300
  of 2,100 tokens).
- Evaluation runs only the class head of the last layer.
- A selected token outside the valid anchors has the box logit 10,000 rather than infinity: its sigmoid is also exactly 1
  and its gradient 0, and no operation turns it into NaN, in half precision or in an exported file.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nextdetr.boxes import inverse_sigmoid
from nextdetr.errors import ConfigError
from nextdetr.layers.deformable import Shapes, at_least_float32
from nextdetr.layers.fast import is_traced
from nextdetr.layers.mlp import MLP
from nextdetr.layers.norm import BatchNorm2d
from nextdetr.models.anchors import anchors_and_validity, make_anchors
from nextdetr.models.answers import answer_points
from nextdetr.models.decoder_layer import TransformerDecoderLayer
from nextdetr.models.denoising import DenoisingQueries, contrastive_denoising, denoising_mask
from nextdetr.models.dense import DenseHead
from nextdetr.structures import DenoisingOutput, DetectorOutput, EdgeOutput, Target, TrainingOutput

__all__ = ["Decoded", "RTDETRDecoder", "TransformerDecoder", "anchors_and_validity", "make_anchors"]

PRIOR_PROBABILITY = 0.01  # of each class at each query before training (RetinaNet, arXiv 1708.02002, section 4.1)
MAX_CACHED_ANCHORS = 64


@dataclass(slots=True)
class Decoded:
    """Outputs of the layers: one tensor per requested layer.

    Attributes:
        logits: [B, T, C] each.
        boxes: [B, T, 4] each, cxcywh, 0 to 1.
        edges: distributions of a D-FINE decoder in training.
    """

    logits: list[Tensor]
    boxes: list[Tensor]
    edges: EdgeOutput | None = None


class TransformerDecoder(nn.Module):
    """The decoder layers; the heads that refine boxes between them belong to ``RTDETRDecoder``."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


def find_largest(scores: Tensor, count: int) -> Tensor:
    """Indices [B, count] of the largest of [B, S], in descending order."""
    return scores.topk(count, dim=1).indices


def take_rows(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` [B, Q] of [B, S, D]."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


class RTDETRDecoder(nn.Module):
    """Feature maps in, class logits and boxes out. The order of arguments is that of model files (REFERENCE, section 1).

    Args:
        nc: number of classes, C.
        ch: channels of the feature maps, finest first.
        hd: hidden width, D.
        nq: queries, Q.
        ndp: sampling points per head and map; a list has one number per map, finest first (RT-DETRv2, arXiv 2407.17140).
        nh: attention heads.
        ndl: decoder layers, L.
        d_ffn: width inside the feed-forward networks.
        dropout: dropout of the decoder layers.
        act: activation of the feed-forward networks; True is ReLU.
        eval_idx: layer whose outputs are used in evaluation; later layers are not run then.
        nd: positive denoising queries per image; 0 trains without them.
        label_noise_ratio: see ``contrastive_denoising``.
        box_noise_scale: see ``contrastive_denoising``.
        learnt_init_query: learn the content of the queries instead of taking it from the selected tokens.
        eps: epsilon of the projections' BatchNorm.
        momentum: momentum of the projections' BatchNorm.
        dense: train an additional head over all tokens (RT-DETRv3, arXiv 2409.08475); see ``DenseHead``. It never runs
            without targets.
        mirror: see ``contrastive_denoising``.
        layer: builds a decoder layer from width, heads, feed-forward width, number of maps, points, dropout and activation.
        box_outputs: number of outputs of a layer's box head.
        project: project the maps to the hidden width with a 1x1 convolution and BatchNorm; else they must have it.
        mlp_act: activation of the box heads and the query position, see ``MLP``.

    Raises:
        ConfigError: the settings contradict each other.
    """

    # A portable export replaces these on its own copy of the model (export/portable.py).
    find_largest = staticmethod(find_largest)
    take_rows = staticmethod(take_rows)

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
        act: bool | nn.Module = True,
        eval_idx: int = -1,
        nd: int = 100,
        label_noise_ratio: float = 0.5,
        box_noise_scale: float = 1.0,
        learnt_init_query: bool = False,
        *,
        eps: float = 1e-3,
        momentum: float = 0.03,
        dense: bool = False,
        mirror: bool = False,
        layer: Callable[..., nn.Module] = TransformerDecoderLayer,
        box_outputs: int = 4,
        project: bool = True,
        mlp_act: str = "relu",
    ) -> None:
        super().__init__()
        _check(nc, ch, hd, nq, nh, ndl, eval_idx)
        if not project and set(ch) != {hd}:
            raise ConfigError(f"RTDETRDecoder without projection needs maps of its hidden width {hd}; got {list(ch)}.")
        self.num_classes, self.channels, self.hidden, self.num_queries = nc, list(ch), hd, nq
        self.eval_layer = eval_idx % ndl
        self.num_denoising, self.label_noise, self.box_noise = nd, label_noise_ratio, box_noise_scale
        self.mirror = mirror
        self._anchors: dict[tuple[Shapes, torch.device], tuple[Tensor, Tensor | None]] = {}

        self.input_proj = nn.ModuleList(
            _projection(channels, hd, eps, momentum) if project else nn.Identity() for channels in ch
        )
        self.enc_output = self._make_output(hd)
        self.enc_score_head = nn.Linear(hd, nc)
        self.enc_bbox_head = MLP(hd, hd, 4, 3, mlp_act)
        self.query_pos_head = self._make_position_head(hd, mlp_act)
        activation = act if isinstance(act, nn.Module) else nn.ReLU() if act else nn.Identity()
        self.decoder = TransformerDecoder(
            [layer(hd, nh, d_ffn, len(self.channels), ndp, dropout, activation) for _ in range(ndl)]
        )
        self.dec_score_head = nn.ModuleList(nn.Linear(hd, nc) for _ in range(ndl))
        self.dec_bbox_head = nn.ModuleList(MLP(hd, hd, box_outputs, 3, mlp_act) for _ in range(ndl))
        self.denoising_class_embed = nn.Embedding(nc, hd) if nd > 0 else None
        self.query_embed = nn.Embedding(nq, hd) if learnt_init_query else None
        self.dense_head = DenseHead(hd, nc, PRIOR_PROBABILITY) if dense else None
        self.reset_parameters()

    def _make_output(self, hidden: int) -> nn.Module:
        return nn.Sequential(nn.Linear(hidden, hidden), nn.LayerNorm(hidden))

    def _make_position_head(self, hidden: int, act: str) -> MLP:
        return MLP(4, 2 * hidden, hidden, 2, act)

    def reset_parameters(self) -> None:
        """Initialise as in RT-DETR: no class likely, every box its anchor, projections Xavier; the rest as in torch."""
        for head in (self.enc_score_head, *self.dec_score_head):
            nn.init.constant_(head.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))
        for mlp in (self.enc_bbox_head, *self.dec_bbox_head):
            nn.init.zeros_(mlp.layers[-1].weight)
            nn.init.zeros_(mlp.layers[-1].bias)
        projections = [projection.conv for projection in self.input_proj if isinstance(projection, nn.Sequential)]
        output = [part for part in self.enc_output.modules() if isinstance(part, nn.Linear)]
        for layer in (*projections, *output, *self.query_pos_head.layers):
            nn.init.xavier_uniform_(layer.weight)
        if self.query_embed is not None:
            nn.init.xavier_uniform_(self.query_embed.weight)

    def class_parameters(self) -> list[str]:
        """Names of the tensors whose first dimension is the class: score heads, denoising embedding, dense head."""
        heads = ["enc_score_head", *(f"dec_score_head.{i}" for i in range(len(self.dec_score_head)))]
        names = [f"{head}.{kind}" for head in heads for kind in ("weight", "bias")]
        if self.denoising_class_embed is not None:
            names.append("denoising_class_embed.weight")
        if self.dense_head is not None:
            names += [f"dense_head.{name}" for name in self.dense_head.class_parameters()]
        return names

    def level_parameters(self) -> dict[str, int | None]:
        """Names of the tensors of one pyramid level, with its number; None for those of all levels in order."""
        levels: dict[str, int | None] = {}
        for name in self.state_dict():
            if name.startswith("input_proj."):
                levels[name] = int(name.split(".")[1])
            elif ".cross_attn.sampling_offsets." in name or ".cross_attn.attention_weights." in name:
                levels[name] = None
        return levels

    def forward(
        self,
        features: Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        *,
        queries: int | None = None,
        points: Tensor | None = None,
    ) -> DetectorOutput:
        """Detect.

        Args:
            features: one [B, channels, height, width] per level, finest first.
            targets: one per image; in training mode they give the denoising queries and enable the outputs to supervise.
            queries: number of queries instead of ``nq``; more than there are tokens means all of them.
            points: [B, K, 4] cxcywh, 0 to 1: in training mode, places at which to predict too; see ``Answers``.

        Returns:
            Logits [B, Q, C] and boxes [B, Q, 4] (cxcywh, fractions of the image) of the evaluated layer, in float32 or
            higher; ``training`` is set in training mode with targets.

        Raises:
            ConfigError: ``queries`` is below 1.
        """
        memory, shapes = self._flatten(features)  # [B, S, D]
        supervised = self.training and targets is not None
        content, box_logits = self._select(memory, shapes, self._count(queries, memory.shape[1]), supervised)
        proposals = (at_least_float32(self.enc_score_head(content)), box_logits.sigmoid()) if supervised else None

        denoising = self._denoise(targets) if supervised and targets is not None else None
        content, boxes, mask = self._queries(content, box_logits, denoising)
        decoded = self._decode(content, boxes, memory, shapes, mask, every_layer=supervised)
        if proposals is None:
            return DetectorOutput(decoded.logits[-1], decoded.boxes[-1])
        training = _training_output(decoded, *proposals, denoising)
        training.dense = None if self.dense_head is None else self.dense_head(memory, shapes)
        training.answers = None if points is None else answer_points(self, memory, shapes, points)
        return DetectorOutput(training.layer_logits[self.eval_layer], training.layer_boxes[self.eval_layer], training)

    def _flatten(self, features: Sequence[Tensor]) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
        """Project every map to D channels, flatten and concatenate them."""
        maps = [project(feature) for project, feature in zip(self.input_proj, features, strict=True)]
        shapes = tuple((level.shape[2], level.shape[3]) for level in maps)
        return torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1), shapes

    def _count(self, queries: int | None, tokens: int) -> int:
        """Return the number of queries to use."""
        wanted = self.num_queries if queries is None else queries
        if wanted < 1:
            raise ConfigError(f"A detector needs at least 1 query; got {wanted}.")
        return min(wanted, tokens) if self.query_embed is None else min(wanted, tokens, self.num_queries)

    def _select(
        self, memory: Tensor, shapes: tuple[tuple[int, int], ...], count: int, supervised: bool
    ) -> tuple[Tensor, Tensor]:
        """Features [B, Q, D] and box logits [B, Q, 4] of the ``count`` tokens with the highest class scores."""
        anchors, valid = self._anchors_for(shapes, memory.device)
        if supervised:
            # Autocast is off here: ranking needs full precision, and older releases of torch cache the copies of weights
            # that autocast makes without gradient, and would reuse them in the pass below, which then had no gradient
            # either.
            with torch.no_grad(), torch.autocast(memory.device.type, enabled=False):
                index = self._rank(self._encode(memory.to(self.enc_score_head.weight.dtype), valid), count)
            taken = self.take_rows(memory, index)
            content = self.enc_output(taken if valid is None else taken.masked_fill(~valid[index], 0.0))
        else:
            encoded = self._encode(memory, valid)
            index = self._rank(encoded, count)
            content = self.take_rows(encoded, index)
        chosen = anchors.index_select(0, index.flatten()).view(*index.shape, 4)
        return content, at_least_float32(self.enc_bbox_head(content)) + chosen

    def _encode(self, memory: Tensor, valid: Tensor | None) -> Tensor:
        """Run the encoder's output layer on all tokens, with invalid ones set to zero."""
        if valid is None:
            every: Tensor = self.enc_output(memory)
            return every
        if torch.is_grad_enabled() or is_traced():
            masked: Tensor = self.enc_output(memory.masked_fill(~valid, 0.0))
            return masked
        encoded: Tensor = self.enc_output(memory)  # avoids a copy of the tokens, few of which are invalid
        encoded[:, ~valid[:, 0]] = self.enc_output(memory.new_zeros(1, memory.shape[-1]))
        return encoded

    def _rank(self, encoded: Tensor, count: int) -> Tensor:
        """Indices [B, count] of the tokens with the highest class score."""
        scores: Tensor = self.enc_score_head(encoded)  # [B, S, C]
        return self.find_largest(scores.amax(dim=-1), count)

    def _anchors_for(self, shapes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Return ``make_anchors``, cached outside the state dict; a tracer's symbols are not cached."""
        if is_traced():
            return make_anchors(shapes, device)
        key = (shapes, device)
        if key not in self._anchors:
            if len(self._anchors) >= MAX_CACHED_ANCHORS:
                self._anchors.clear()
            # Created outside inference mode, whose tensors a later training step could not use.
            with torch.inference_mode(False), torch.no_grad():
                self._anchors[key] = make_anchors(shapes, device)
        return self._anchors[key]

    def _denoise(self, targets: Sequence[Target]) -> DenoisingQueries | None:
        if self.denoising_class_embed is None:
            return None
        return contrastive_denoising(
            targets,
            self.num_classes,
            self.denoising_class_embed,
            num_denoising=self.num_denoising,
            label_noise=self.label_noise,
            box_noise=self.box_noise,
            mirror=self.mirror,
        )

    def _queries(
        self, content: Tensor, box_logits: Tensor, denoising: DenoisingQueries | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Concatenate denoising and matching queries, detached from the encoder: content [B, T, D], boxes, mask."""
        batch, count = box_logits.shape[:2]
        content = content.detach() if self.query_embed is None else self.query_embed.weight[:count].expand(batch, -1, -1)
        boxes = box_logits.detach().sigmoid()
        if denoising is not None:
            mask = denoising_mask(denoising.content.shape[1], denoising.group_size, count, content.device)
            content = torch.cat((denoising.content.to(content.dtype), content), dim=1)
            return content, torch.cat((denoising.box_logits.sigmoid(), boxes), dim=1), mask
        if self.training and self.denoising_class_embed is not None:
            # A batch without targets has no denoising queries. The sum over no rows is 0, but gives the embedding a zero
            # gradient: with DDP, a parameter without gradient would make the other processes wait forever.
            content = content + self.denoising_class_embed.weight[:0].sum().to(content.dtype)
        return content, boxes, None

    def _decode(
        self, content: Tensor, boxes: Tensor, memory: Tensor, shapes: Shapes, mask: Tensor | None, every_layer: bool
    ) -> Decoded:
        """Run the layers; return logits and boxes of every layer, or only of the evaluated one."""
        last = len(self.decoder.layers) - 1 if every_layer else self.eval_layer
        reference, previous = boxes, boxes  # same values; `previous` carries the gradient of the previous layer
        layer_logits, layer_boxes = [], []
        for i, layer in enumerate(self.decoder.layers[: last + 1]):
            position = self.query_pos_head(reference.to(content.dtype))
            content = layer(content, position, reference, memory, shapes, mask)
            step = at_least_float32(self.dec_bbox_head[i](content))
            refined = (step + inverse_sigmoid(reference)).sigmoid()
            if every_layer or i == last:
                layer_logits.append(at_least_float32(self.dec_score_head[i](content)))
                # "Look forward twice": a layer's box loss also trains the previous layer's box head (DINO, section 3.5).
                layer_boxes.append((step + inverse_sigmoid(previous)).sigmoid() if every_layer else refined)
            reference, previous = refined.detach(), refined
        return Decoded(layer_logits, layer_boxes)


def _training_output(
    decoded: Decoded, encoder_logits: Tensor, encoder_boxes: Tensor, denoising: DenoisingQueries | None
) -> TrainingOutput:
    """Separate the denoising queries from the matching queries, which follow them."""
    logits, boxes, edges = torch.stack(decoded.logits), torch.stack(decoded.boxes), decoded.edges  # [L, B, T, ...]
    if denoising is None:
        return TrainingOutput(logits, boxes, encoder_logits, encoder_boxes, None, edges)
    extra = denoising.content.shape[1]
    noisy = DenoisingOutput(logits[:, :, :extra], boxes[:, :, :extra], denoising.plan)
    output = TrainingOutput(logits[:, :, extra:], boxes[:, :, extra:], encoder_logits, encoder_boxes, noisy)
    if edges is not None:
        noisy.edges, output.edges = edges.of_queries(slice(extra)), edges.of_queries(slice(extra, None))
    return output


def _projection(channels: int, hidden: int, eps: float, momentum: float) -> nn.Sequential:
    conv = nn.Conv2d(channels, hidden, 1, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=BatchNorm2d(hidden, eps=eps, momentum=momentum)))


def _check(nc: int, ch: Sequence[int], hd: int, nq: int, nh: int, ndl: int, eval_idx: int) -> None:
    least = {"classes": nc, "feature maps": len(ch), "queries": nq, "heads": nh, "layers": ndl}
    for name, number in least.items():
        if number < 1:
            raise ConfigError(f"RTDETRDecoder needs 1 or more {name}; got {number}.")
    if hd % nh:
        raise ConfigError(f"RTDETRDecoder's hidden width must be a multiple of its heads; got {hd} and {nh}.")
    if not -ndl <= eval_idx < ndl:
        raise ConfigError(f"RTDETRDecoder has layers 0 to {ndl - 1}; it cannot evaluate layer {eval_idx}.")
