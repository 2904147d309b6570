from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional
from torchvision.ops import generalized_box_iou

from nextdetr.boxes import cxcywh_to_xyxy
from nextdetr.losses.terms import focal_class_cost, matchability_loss, pair_terms, varifocal_loss
from tests.losses.samples import random_boxes


def test_focal_cost_by_hand():
    # p = 0.5: (0.25 - 0.75) * 0.25 * log 2
    cost = focal_class_cost(torch.zeros(1), 0.25, 2.0)
    assert cost.item() == pytest.approx(-0.5 * 0.25 * math.log(2), abs=1e-6)


def test_focal_cost_falls_with_confidence_and_stays_finite():
    cost = focal_class_cost(torch.tensor([-200.0, -5, -1, 0, 1, 5, 200]), 0.25, 2.0)
    assert cost.isfinite().all()
    assert (cost.diff() < 0).all()


@pytest.mark.parametrize("scale", [1.0, 10.0, 60.0])
def test_varifocal_value_and_gradient_equal_the_dense_formula(scale):
    logits = (torch.randn(2, 3, 7, 5) * scale).requires_grad_()
    positives = (torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1]), torch.tensor([6, 1, 0]), torch.tensor([4, 0, 2]))
    quality = torch.tensor([0.0, 0.3, 1.0])
    loss = varifocal_loss(logits, positives, quality, alpha=0.6, gamma=1.5)
    slope = torch.rand_like(loss)
    (gradient,) = torch.autograd.grad(loss, logits, slope)

    target, is_positive = torch.zeros_like(loss), torch.zeros_like(loss)
    target[positives], is_positive[positives] = quality, 1.0
    weight = torch.where(is_positive == 1, target, 0.6 * logits.detach().sigmoid() ** 1.5)
    expected = functional.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="none")
    (expected_gradient,) = torch.autograd.grad(expected, logits, slope)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 10.0, 60.0])
def test_matchability_value_and_gradient_equal_the_formula(scale):
    """-q^g log p - (1 - q^g) log(1 - p) for a positive, -p^g log(1 - p) for all others, p^g without gradient."""
    logits = (torch.randn(2, 9, 4, dtype=torch.float64) * scale).requires_grad_()
    positives = (torch.tensor([0, 0, 1]), torch.tensor([8, 2, 1]), torch.tensor([3, 0, 2]))
    quality = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    loss = matchability_loss(logits, positives, quality, gamma=1.4)
    slope = torch.rand_like(loss)
    (gradient,) = torch.autograd.grad(loss, logits, slope)

    yes, no = functional.logsigmoid(logits), functional.logsigmoid(-logits)  # log p and log(1 - p)
    expected = -(logits.detach().sigmoid() ** 1.4) * no
    for place, q in zip(zip(*positives, strict=True), quality, strict=True):
        value = -(q**1.4) * yes[place] - (1 - q**1.4) * no[place]
        expected = expected.index_put(tuple(i[None] for i in place), value[None])
    (expected_gradient,) = torch.autograd.grad(expected, logits, slope)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-6)


def test_varifocal_without_positives_is_zero_for_a_confident_background():
    none = (torch.zeros(0, dtype=torch.int64),) * 2
    assert varifocal_loss(torch.full((3, 4), -300.0), none, torch.zeros(0)).abs().max() == 0


def test_varifocal_refuses_a_second_derivative():
    logits = torch.zeros(2, 2, requires_grad=True)
    none = (torch.zeros(0, dtype=torch.int64),) * 2
    loss = varifocal_loss(logits, none, torch.zeros(0)).square().sum()
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_pair_terms_against_torchvision():
    first, second = random_boxes(30).requires_grad_(), random_boxes(30)
    terms = pair_terms(first, second)
    giou = generalized_box_iou(cxcywh_to_xyxy(first), cxcywh_to_xyxy(second)).diagonal()
    torch.testing.assert_close(terms.giou, 1 - giou)
    torch.testing.assert_close(terms.l1, functional.l1_loss(first, second, reduction="none").sum(1))
    assert not terms.iou.requires_grad
    assert terms.giou.requires_grad


def test_pair_terms_of_equal_boxes():
    boxes = random_boxes(5)
    terms = pair_terms(boxes, boxes.clone())
    torch.testing.assert_close(torch.stack(terms), torch.tensor([0.0, 0.0, 1.0])[:, None].expand(3, 5), atol=1e-6, rtol=0)
