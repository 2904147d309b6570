"""Distillation losses: formulas written out manually, on few numbers."""

from __future__ import annotations

import math

import pytest
import torch

from nextdetr.losses.distill import (
    DistillationLoss,
    MapProjections,
    correlation_loss,
    edge_divergence,
    quality_focal_loss,
)
from nextdetr.models.edges import expected_offsets, offsets_of_bins, offsets_to_boxes, rebin
from nextdetr.structures import Answers, EdgeOutput, Lesson


def _edges(bins, anchors, scale=4.0):
    offsets = offsets_of_bins(bins.shape[-1] - 1, scale)
    return EdgeOutput(bins, anchors, offsets, scale, torch.zeros(*anchors.shape[:2], 1), anchors)


def _lesson(scores, boxes, told=None, edges=None, maps=None):
    told = torch.ones_like(scores, dtype=torch.bool) if told is None else told
    confidence = (scores * told).amax(-1)
    return Lesson(boxes, scores, told, boxes, confidence, edges, maps or {})


def test_quality_focal_loss_is_the_papers_formula():
    logits = torch.tensor([-2.0, 0.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    wanted = torch.tensor([0.9, 0.0, 0.5, 0.95], dtype=torch.float64)
    loss = quality_focal_loss(logits, wanted)
    p = logits.detach().sigmoid()
    expected = -((wanted - p).abs() ** 2) * ((1 - wanted) * (1 - p).log() + wanted * p.log())
    torch.testing.assert_close(loss.detach(), expected)
    loss.sum().backward()
    weighted = (wanted - p) ** 2 * (p - wanted)  # the weight has no gradient
    torch.testing.assert_close(logits.grad[[0, 2, 3]], weighted[[0, 2, 3]])


def test_correlation_knows_neither_scale_nor_shift_and_is_two_for_the_opposite():
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    scaled = maps * torch.tensor([2.0, 0.1, 30.0])[:, None, None] + torch.tensor([5.0, -1.0, 0.0])[:, None, None]
    assert correlation_loss(scaled, maps).item() == pytest.approx(0.0, abs=1e-5)
    assert correlation_loss(-maps, maps).item() == pytest.approx(2.0, abs=1e-5)
    other = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 2, 2)
    mine = torch.tensor([1.0, 3.0, 2.0, 4.0]).view(1, 1, 2, 2)
    assert correlation_loss(mine, other).item() == pytest.approx(1 - 0.8, abs=1e-6)  # Pearson's r of these four is 0.8
    assert correlation_loss(mine, torch.ones(1, 1, 2, 2)).item() == pytest.approx(1.0, abs=1e-4)
    assert correlation_loss(mine, other.repeat_interleave(2, 2).repeat_interleave(2, 3)).item() < 0.3  # another size


def test_distributions_move_to_the_bins_of_another_anchor_and_keep_their_mean():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 4, 17, generator=generator)
    anchors = torch.tensor([0.5, 0.5, 0.2, 0.1]).repeat(5, 1)
    new = torch.tensor([0.51, 0.49, 0.24, 0.12]).repeat(5, 1)
    old_bins, new_bins = offsets_of_bins(16, 4.0), offsets_of_bins(32, 5.0)
    inner = logits.softmax(-1) * (old_bins.abs() < 1.0)  # what both reach
    inner = inner / inner.sum(-1, keepdim=True)
    moved = rebin(inner, anchors, old_bins, 4.0, new, new_bins, 5.0)
    torch.testing.assert_close(moved.sum(-1), torch.ones(5, 4))
    before = offsets_to_boxes(anchors, inner @ old_bins, 4.0)
    torch.testing.assert_close(offsets_to_boxes(new, moved @ new_bins, 5.0), before)
    same = rebin(inner, anchors, old_bins, 4.0, anchors, old_bins, 4.0)
    torch.testing.assert_close(same, inner, atol=1e-5, rtol=0)
    far = rebin(inner, anchors, old_bins, 4.0, torch.tensor([0.9, 0.9, 0.01, 0.01]).repeat(5, 1), new_bins, 5.0)
    torch.testing.assert_close(far.sum(-1), torch.ones(5, 4))  # nothing is lost beyond the ends


def test_edge_divergence_is_zero_for_the_teachers_own_and_the_divergence_otherwise():
    anchors = torch.tensor([[[0.4, 0.4, 0.2, 0.2], [0.6, 0.6, 0.1, 0.3]]])
    teacher = _edges(torch.randn(1, 1, 2, 4, 9, generator=torch.Generator().manual_seed(2)), anchors)
    pupils = torch.cat((teacher.bins, torch.zeros_like(teacher.bins)))
    found = edge_divergence(_edges(pupils, anchors), teacher)
    torch.testing.assert_close(found[0], torch.zeros(1, 2), atol=1e-4, rtol=0)
    known = teacher.bins[0].softmax(-1)
    wanted = (known * (known.log() + math.log(9))).sum((-2, -1))  # from the uniform distribution
    torch.testing.assert_close(found[1], wanted, atol=1e-4, rtol=1e-4)
    assert expected_offsets(teacher.bins, teacher.offsets).shape == (1, 1, 2, 4)


def test_terms_by_hand_and_a_class_that_is_not_told():
    scores = torch.tensor([[[0.8, 0.0], [0.2, 0.0]]])
    told = torch.tensor([[[True, False], [True, False]]])
    wanted = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.1, 0.1]]])
    boxes = wanted.clone()
    boxes[0, 0, 0] += 0.1  # half a width to the right: IoU 1/3, and the hull is 0.3 wide
    answers = Answers(torch.tensor([[[[0.0, 9.0], [0.0, 9.0]]]]), boxes[None])
    terms = DistillationLoss()(answers, _lesson(scores, wanted, told), {})
    assert list(terms) == ["loss_teacher_class", "loss_teacher_l1", "loss_teacher_giou"]
    by_hand = (0.3**2 + 0.3**2) * math.log(2)
    assert terms["loss_teacher_class"].item() == pytest.approx(by_hand, rel=1e-5)  # the confidences' sum is 1
    assert terms["loss_teacher_l1"].item() == pytest.approx(5 * 0.8 * 0.1, rel=1e-5)
    assert terms["loss_teacher_giou"].item() == pytest.approx(2 * 0.8 * (1 - 1 / 3), rel=1e-4)
    doubled = DistillationLoss(2.0)(answers, _lesson(scores, wanted, told), {})
    for name, value in terms.items():
        assert doubled[name].item() == pytest.approx(2 * value.item())


def test_an_image_without_anything_to_see_has_a_finite_loss_and_a_gradient():
    logits = torch.zeros(2, 1, 3, 2, requires_grad=True)
    boxes = torch.full((2, 1, 3, 4), 0.5, requires_grad=True)
    lesson = _lesson(torch.zeros(1, 3, 2), torch.full((1, 3, 4), 0.2))
    total = sum(DistillationLoss()(Answers(logits, boxes), lesson, {}).values())
    total.backward()
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(boxes.grad).all()


def test_numbers_that_are_not_finite_are_seen():
    logits = torch.tensor([[[[float("nan"), 0.0]]]])
    boxes = torch.full((1, 1, 1, 4), 0.5)
    lesson = _lesson(torch.tensor([[[0.5, 0.1]]]), torch.full((1, 1, 4), 0.5))
    assert not math.isfinite(DistillationLoss()(Answers(logits, boxes), lesson, {})["loss_teacher_class"].item())
    edges = Answers(torch.zeros(1, 1, 1, 2), boxes * float("nan"))
    assert not math.isfinite(DistillationLoss()(edges, lesson, {})["loss_teacher_l1"].item())


def test_maps_come_to_the_teachers_channels():
    projections = MapProjections({8: (3, 5), 16: (4, 6)})
    found = projections({8: torch.zeros(2, 3, 4, 4), 16: torch.zeros(2, 4, 2, 2), 32: torch.zeros(2, 9, 1, 1)})
    assert {stride: tuple(maps.shape) for stride, maps in found.items()} == {8: (2, 5, 4, 4), 16: (2, 6, 2, 2)}
    lesson = _lesson(
        torch.zeros(2, 1, 1), torch.zeros(2, 1, 4), maps={8: torch.randn(2, 5, 4, 4), 16: torch.randn(2, 6, 2, 2)}
    )
    terms = DistillationLoss(maps_weight=3.0)(Answers(), lesson, lesson.maps)
    assert terms["loss_teacher_maps"].item() == pytest.approx(0.0, abs=1e-5)
    assert list(terms) == ["loss_teacher_maps"]
