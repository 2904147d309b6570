"""A light head over every token of the encoder's maps, for training only: dense supervision beside the sparse queries.

RT-DETRv3, arXiv 2409.08475, section 3.2: one query per target is sparse supervision for the encoder, so a CNN head with
one-to-many assignment is added in training and dropped afterwards.

Differences: their head is PP-YOLOE's, with several convolutions per level, and their decoder runs three more groups of
queries and one with one-to-many targets. Here the head is a linear layer and a two-layer perceptron on the decoder's
tokens, and there are no additional groups: a decoder pass costs many times as much as this head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nextdetr.layers.deformable import Shapes, at_least_float32
from nextdetr.layers.mlp import MLP
from nextdetr.structures import DenseOutput

__all__ = ["DenseHead", "make_cells"]

START_SIZE = 0.05  # of the boxes on the finest map, as for the decoder's anchors; doubles from map to map
MOST_SIZE = 0.9


class DenseHead(nn.Module):
    """Class logits and a box for every token; boxes are initialised as squares on the cells.

    Args:
        hidden: width of the tokens, D.
        num_classes: C.
        prior: probability of any class before training.
    """

    def __init__(self, hidden: int, num_classes: int, prior: float = 0.01) -> None:
        super().__init__()
        self.score = nn.Linear(hidden, num_classes)
        self.box = MLP(hidden, hidden, 4, 2)
        nn.init.constant_(self.score.bias, -math.log((1 - prior) / prior))
        self.box.zero_last()

    def class_parameters(self) -> list[str]:
        """Names of the tensors whose first dimension is the class."""
        return ["score.weight", "score.bias"]

    def forward(self, memory: Tensor, shapes: Shapes) -> DenseOutput:
        """Predict from tokens [B, S, D], the flattened and concatenated maps, and the (height, width) of each map."""
        cells = make_cells(shapes, memory.device)
        sizes = torch.cat(
            [torch.full((h * w, 2), min(START_SIZE * 2.0**level, MOST_SIZE)) for level, (h, w) in enumerate(shapes)]
        )
        start = torch.cat((cells[:, :2], sizes.to(memory.device)), dim=1).logit()
        boxes = (at_least_float32(self.box(memory)) + start).sigmoid()
        return DenseOutput(at_least_float32(self.score(memory)), boxes, cells)


def make_cells(shapes: Shapes, device: torch.device | None = None) -> Tensor:
    """Return the cells of all maps as boxes, [S, 4] float32 cxcywh in fractions of the image, row by row."""
    cells = []
    for height, width in shapes:
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        size = torch.tensor((1 / width, 1 / height), device=device).expand(height, width, 2)
        cells.append(
            torch.cat((torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), -1), size), -1).flatten(0, 1)
        )
    return torch.cat(cells)
