"""The losses of a D-FINE decoder's distributions: arXiv 2410.13842, section 4.2 and appendix.

Fine-grained localisation (FGL): the distribution of each edge of a matched box is trained towards the two bins around the
true edge, with more weight for better boxes. Decoupled distillation focal loss (DDF): the distributions of earlier layers
are trained towards the last layer's, which acts as teacher; matched queries are weighted with their IoU, unmatched ones
with the teacher's confidence, and each group with the square root of its size.

Differences: the sizes of the groups are those of the whole batch over all processes; denoising queries form their own
groups instead of using the sizes of the matching queries' groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextdetr.losses.matcher import Matches
from nextdetr.models.edges import boxes_to_offsets, split_over_bins
from nextdetr.structures import EdgeOutput

__all__ = ["TEMPERATURE", "distillation_loss", "fine_grained_loss", "united"]

TEMPERATURE = 5.0  # of teacher and student, as set by the authors


def united(matches: Matches, queries: int, most: int) -> Matches:
    """Merge the pairs of all layers into one set for all of them (section 4.2, "global optimal" pairs).

    A query paired with different targets by different layers keeps the most frequent one; on a tie, the first. A target may
    thus have several queries, which is intended: all layers then train the same queries.

    Args:
        matches: pairs of any number of layers.
        queries: Q.
        most: largest number of targets of an image.

    Returns:
        The pairs, sorted by image and query, as if of a single layer 0.
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
    """Fine-grained localisation loss of every pair, summed over its four edges.

    Args:
        edges: the decoder's distributions.
        matches: [P] pairs, the same for all layers.
        wanted: [P, 4] cxcywh, boxes of their targets.
        quality: [L, P] IoU of each layer's box with its target, without gradient.

    Returns:
        [L, P].
    """
    places = (matches.batch_index, matches.query_index)
    # Anchors and pairs are the same for all layers, so the targets are too.
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
        bins: [L, B, Q, 4, N+1] logits of the students.
        teacher: [B, Q, 4, N+1] logits of the last layer; no gradient flows there.
        matches: [P] pairs, the same for all layers.
        confidence: [B, Q] the teacher's highest class probability, the weight of a query without target.
        quality: [L, P] IoU of each student's box, the weight of a query with a target.
        counts: number of queries with and without a target; scalars, means over the processes.

    Returns:
        [L].
    """
    places = (matches.batch_index, matches.query_index)
    known = (teacher.detach().float() / TEMPERATURE).log_softmax(dim=-1)
    guess = (bins.float() / TEMPERATURE).log_softmax(dim=-1)
    divergence = (known.exp() * (known - guess)).sum(dim=(-2, -1))  # [L, B, Q], the four edges' sum
    divergence = divergence * TEMPERATURE**2
    matched = (divergence[:, places[0], places[1]] * quality.to(divergence.dtype)).sum(dim=1)
    # Computed separately from the matched ones, not as a difference: if every query is matched, the sum must be exactly 0.
    weight = confidence.detach().clone()
    weight[places] = 0.0
    unmatched = (divergence * weight).flatten(1).sum(dim=1)
    # A group's mean over its edges, times the square root of its size; the 4 edges per query cancel out.
    some, none = (4 * count.clamp(min=1e-12) for count in counts)
    total = matched / some.sqrt() + unmatched / none.sqrt()
    return total / (some.sqrt() + none.sqrt())
