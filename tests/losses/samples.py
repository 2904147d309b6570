"""Random predictions and targets for the tests of matcher and criterion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nextdetr.models.edges import offsets_of_bins
from nextdetr.structures import DenoisingOutput, DenoisingPlan, DetectorOutput, EdgeOutput, Target, TrainingOutput


def random_boxes(*shape: int) -> Tensor:
    return torch.cat((torch.rand(*shape, 2) * 0.6 + 0.2, torch.rand(*shape, 2) * 0.35 + 0.02), -1)


def random_targets(counts: Sequence[int], classes: int) -> list[Target]:
    return [Target(random_boxes(count), torch.randint(classes, (count,))) for count in counts]


def denoising_plan(counts: Sequence[int], groups: int) -> tuple[DenoisingPlan, int]:
    """The plan, and the number of queries: in each group the positives of all targets (padded), then as many negatives."""
    most = max(counts)
    rows = [
        (image, 2 * most * group + target, target)
        for image, count in enumerate(counts)
        for group in range(groups)
        for target in range(count)
    ]
    columns = torch.tensor(rows, dtype=torch.int64).view(-1, 3).unbind(1)
    return DenoisingPlan(groups, *columns), 2 * most * groups


def random_output(
    counts: Sequence[int],
    classes: int,
    *,
    layers: int = 3,
    queries: int = 20,
    groups: int = 2,
    dtype=torch.float32,
    bins: int = 0,
) -> DetectorOutput:
    """Leaf tensors with gradient; no denoising when there is no target or ``groups`` is 0; with ``bins`` of D-FINE."""
    batch = len(counts)

    def leaves(*shape: int) -> tuple[Tensor, Tensor]:
        logits, boxes = torch.randn(*shape, classes) * 2 - 1, random_boxes(*shape)
        return logits.to(dtype).requires_grad_(), boxes.to(dtype).requires_grad_()

    logits, boxes = leaves(layers, batch, queries)
    encoder_logits, encoder_boxes = leaves(batch, queries)

    def edges(number: int) -> EdgeOutput | None:
        if not bins:
            return None
        logits = torch.randn(layers, batch, number, 4, bins + 1).to(dtype).requires_grad_()
        return EdgeOutput(logits, random_boxes(batch, number), offsets_of_bins(bins), 4.0, *leaves(batch, number))

    denoising = None
    if groups and max(counts, default=0):
        plan, size = denoising_plan(counts, groups)
        denoising = DenoisingOutput(*leaves(layers, batch, size), plan, edges(size))
    training = TrainingOutput(logits, boxes, encoder_logits, encoder_boxes, denoising, edges(queries))
    return DetectorOutput(logits[-1], boxes[-1], training)


def supervised(output: DetectorOutput) -> list[Tensor]:
    """All tensors that must get a gradient."""
    training = output.training
    assert training is not None
    leaves = [training.layer_logits, training.layer_boxes, training.encoder_logits, training.encoder_boxes]
    if training.denoising is not None:
        leaves += [training.denoising.logits, training.denoising.boxes]
    for edges in (training.edges, training.denoising and training.denoising.edges):
        if edges is not None:
            leaves += [edges.bins, edges.first_logits, edges.first_boxes]
    return leaves
