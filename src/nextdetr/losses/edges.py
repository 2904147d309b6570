"""The losses of a D-FINE decoder's distributions: arXiv 2410.13842, section 4.2 and appendix.

Fine-grained localisation (FGL): the distribution of each edge of a matched box shall lie on the two bins between which the
true edge is, the more so the better the box already is. Decoupled distillation focal loss (DDF): the distributions of the
earlier layers shall resemble the last layer's, which counts as the teacher; matched queries weigh in with their IoU, the
unmatched ones with the teacher's confidence, and either group with the root of its size.

Where we differ: the sizes of the groups are those of the whole batch over all processes; denoising queries form groups of
their own instead of borrowing the sizes of the matching queries' groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextdetr.losses.matcher import Matches
from nextdetr.models.edges import boxes_to_offsets, split_over_bins
from nextdetr.structures import EdgeOutput

__all__ = ["TEMPERATURE", "distillation_loss", "fine_grained_loss", "united"]

TEMPERATURE = 5.0  # of teacher and pupil, as the authors set it


def united(matches: Matches, queries: int, most: int) -> Matches:
    """Join the pairs of all layers into one set for all of them (section 4.2, "global optimal" pairs).

    A query that different layers pair with different targets keeps the most frequent one; of equally frequent ones the
    first. A target may so have several queries, which is meant: layers then agree on whom they train.

    Args:
        matches: of any number of layers.
        queries: Q.
        most: the most targets of an image.

    Returns:
        The pairs, sorted by image and query, as of a single layer 0.
    """
    most = max(most, 1)
    slot = matches.batch_index * queries + matches.query_index
    pairs, votes = torch.unique(slot * most + matches.target_index, return_counts=True)  # sorted
    order = votes.argsort(descending=True, stable=True)
    order = order[(pairs[order] // most).argsort(stable=True)]  # by slot, then by votes, then by target
    slot = pairs[order] // most
    first = torch.ones_like(slot, dtype=torch.bool)
    first[1:] = slot[1:] != slot[:-1]
    slot, target = slot[first], pairs[order][first] % most
    return Matches(torch.zeros_like(slot), slot // queries, slot % queries, target)


def fine_grained_loss(edges: EdgeOutput, matches: Matches, wanted: Tensor, quality: Tensor) -> Tensor:
    """Fine-grained localisation loss of every pair, the sum over its four edges.

    Args:
        edges: the decoder's distributions.
        matches: [P] pairs, the same for all layers.
        wanted: [P, 4] cxcywh, their targets' boxes.
        quality: [L, P] IoU of each layer's box with its target, without gradient.

    Returns:
        [L, P].
    """
    places = (matches.batch_index, matches.query_index)
    # Anchors and pairs are the same on all layers, so the targets are too.
    lower, share = split_over_bins(boxes_to_offsets(edges.anchors[places], wanted, edges.scale), edges.offsets)  # [P, 4]
    logs = edges.bins[:, places[0], places[1]].float().log_softmax(dim=-1)  # [L, P, 4, N+1]
    both = torch.stack((lower, lower + 1), dim=-1).expand(*logs.shape[:-1], 2)
    near = logs.gather(-1, both)  # [L, P, 4, 2]
    shares = torch.stack((1 - share, share), dim=-1)
    return -(near * shares).sum(dim=(-2, -1)) * quality


def distillation_loss(
    bins: Tensor, teacher: Tensor, matches: Matches, confidence: Tensor, quality: Tensor, counts: tuple[Tensor, Tensor]
) -> Tensor:
    """Decoupled distillation focal loss of some layers.

    Args:
        bins: [L, B, Q, 4, N+1] the pupils' logits.
        teacher: [B, Q, 4, N+1] the last layer's; no gradient goes there.
        matches: [P] pairs, the same for all layers.
        confidence: [B, Q] the teacher's highest class probability, which weighs a query without a target.
        quality: [L, P] IoU of each pupil's box, which weighs a query with one.
        counts: how many queries have a target and how many have none; scalars, means over the processes.

    Returns:
        [L].
    """
    places = (matches.batch_index, matches.query_index)
    known = (teacher.detach().float() / TEMPERATURE).log_softmax(dim=-1)
    guess = (bins.float() / TEMPERATURE).log_softmax(dim=-1)
    divergence = (known.exp() * (known - guess)).sum(dim=(-2, -1))  # [L, B, Q], the four edges' sum
    divergence = divergence * TEMPERATURE**2
    matched = (divergence[:, places[0], places[1]] * quality.to(divergence.dtype)).sum(dim=1)
    # Apart from the matched ones, not as a difference: where every query is matched its size is 0, and so must the sum be.
    weight = confidence.detach().clone()
    weight[places] = 0.0
    unmatched = (divergence * weight).flatten(1).sum(dim=1)
    # A group's mean over its edges, times the root of its size. The number of edges, 4 a query, stands in both.
    some, none = (4 * count.clamp(min=1e-12) for count in counts)
    total = matched / some.sqrt() + unmatched / none.sqrt()
    return total / (some.sqrt() + none.sqrt())
