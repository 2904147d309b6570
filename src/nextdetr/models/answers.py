"""Predictions of a decoder at given places: in training as a student, in evaluation as a teacher.

KD-DETR, arXiv 2211.08071, section 3.3: the queries of two DETRs have no common order, and a matching between them changes
from step to step. So both are queried at the same places: the teacher's queries start as usual, and the student gets an
additional group of queries that start at the same places. Query k of one then corresponds to query k of the other.

Differences: in the paper the places are learnt or drawn at random; here they are the teacher's selected proposals, since
the decoders are RT-DETR's. The content of a query is, as for every other query, a token of the detector's own encoder: the
one whose anchor is closest to the place. The group passes through the layers on its own: it sees no other query and needs
no mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nextdetr.layers.deformable import Shapes, at_least_float32
from nextdetr.models.anchors import ANCHOR_SIZE
from nextdetr.structures import Answers, EdgeOutput

if TYPE_CHECKING:
    from nextdetr.models.decoder import RTDETRDecoder
    from nextdetr.models.detection import DetectionModel

__all__ = ["Taught", "answer", "answer_points", "nearest_tokens", "teach"]


@dataclass(frozen=True, slots=True)
class Taught:
    """Predictions of a teacher in evaluation.

    Attributes:
        points: [B, Q, 4] cxcywh, 0 to 1: start of its queries.
        logits: [B, Q, C] of the evaluated layer.
        boxes: [B, Q, 4] cxcywh, 0 to 1, of the same layer.
        edges: distributions of that layer, for a D-FINE decoder.
        maps: maps by stride, or by the requested key.
    """

    points: Tensor
    logits: Tensor
    boxes: Tensor
    edges: EdgeOutput | None
    maps: dict[int, Tensor]


def answer_points(decoder: RTDETRDecoder, memory: Tensor, shapes: tuple[tuple[int, int], ...], points: Tensor) -> Answers:
    """Run queries that start at given places through all layers.

    Args:
        decoder: in training mode.
        memory: [A, S, D] tokens of its projected maps, A at least B.
        shapes: (height, width) of each map.
        points: [B, K, 4] cxcywh, 0 to 1; places in the first B images.
    """
    anchors, valid = decoder._anchors_for(shapes, memory.device)
    memory, index = memory[: len(points)], nearest_tokens(points, shapes)
    taken = decoder.take_rows(memory, index)
    content = decoder.enc_output(taken if valid is None else taken.masked_fill(~valid[index], 0.0))
    encoder_logits = at_least_float32(decoder.enc_score_head(content))
    encoder_boxes = (at_least_float32(decoder.enc_bbox_head(content)) + anchors[index]).sigmoid()
    decoded = decoder._decode(content.detach(), points, memory, shapes, None, every_layer=True)
    logits, boxes, edges = [encoder_logits], [encoder_boxes], decoded.edges
    if edges is not None:
        logits, boxes = [*logits, edges.first_logits], [*boxes, edges.first_boxes]
    return Answers(torch.stack([*logits, *decoded.logits]), torch.stack([*boxes, *decoded.boxes]), edges)


def answer(model: DetectionModel, images: Tensor, points: Tensor, indices: Mapping[int, int]) -> Answers:
    """Predict at given places only, and return maps of any rows: a student without labels.

    Args:
        model: in any mode.
        images: as for ``DetectionModel.forward``.
        points: [B, K, 4] cxcywh, 0 to 1.
        indices: indices of the wanted maps, by any key.

    Returns:
        The predictions; ``maps`` has the keys of ``indices``.
    """
    decoder: RTDETRDecoder = model.rows[-1]  # type: ignore[assignment]
    maps = model._maps(images, len(model.rows) - 1, kept=tuple(indices.values()))
    memory, shapes = decoder._flatten([maps[index] for index in model.row_infos[-1].reads])
    answers = answer_points(decoder, memory, shapes, points)
    return replace(answers, maps={key: maps[index] for key, index in indices.items()})


def teach(
    model: DetectionModel, images: Tensor, strides: Sequence[int] = (), *, indices: Mapping[int, int] | None = None
) -> Taught:
    """Detect as in evaluation, and also return the start of the queries, the distributions of the edges, and maps.

    Args:
        model: in evaluation mode; it may be folded (``fuse``).
        images: as for ``DetectionModel.forward``.
        strides: strides of the wanted maps.
        indices: indices of the available maps by key; None for the backbone's by stride
            (``model.backbone_maps(unread=True)``).
    """
    decoder: RTDETRDecoder = model.rows[-1]  # type: ignore[assignment]
    known = model.backbone_maps(unread=True) if indices is None else indices
    indices = {key: index for key, index in known.items() if key in strides}
    maps = model._maps(images, len(model.rows) - 1, kept=tuple(indices.values()))
    memory, shapes = decoder._flatten([maps[index] for index in model.row_infos[-1].reads])
    content, box_logits = decoder._select(memory, shapes, decoder._count(None, memory.shape[1]), supervised=False)
    content, points, _ = decoder._queries(content, box_logits, None)
    decoded, layer = decoder._decode(content, points, memory, shapes, None, every_layer=True), decoder.eval_layer
    edges = decoded.edges
    if edges is not None:
        rest = (edges.anchors, edges.offsets, edges.scale, edges.first_logits, edges.first_boxes)
        edges = EdgeOutput(edges.bins[layer : layer + 1], *rest)
    found = {key: maps[index] for key, index in indices.items()}
    return Taught(points, decoded.logits[layer], decoded.boxes[layer], edges, found)


def nearest_tokens(points: Tensor, shapes: Shapes) -> Tensor:
    """Return the token whose anchor is closest to each place: on the map for its size, the cell that contains its centre.

    Args:
        points: [B, K, 4] cxcywh, 0 to 1.
        shapes: (height, width) of each map, finest first.

    Returns:
        [B, K] indices into the flattened and concatenated maps.
    """
    side = points[..., 2:].prod(dim=-1).clamp(min=1e-12).sqrt()
    level = (side / ANCHOR_SIZE).log2().round().long().clamp(0, len(shapes) - 1)  # [B, K]
    sizes = torch.tensor(shapes, device=points.device)  # [levels, 2]
    starts = torch.cat((sizes.new_zeros(1), sizes.prod(dim=1).cumsum(0)[:-1]))
    height, width = sizes[level].unbind(-1)
    column = (points[..., 0] * width).long().clamp(min=0).minimum(width - 1)
    row = (points[..., 1] * height).long().clamp(min=0).minimum(height - 1)
    return starts[level] + row * width + column
