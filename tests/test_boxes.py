from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from nextdetr.boxes import cxcywh_to_xyxy, inverse_sigmoid, paired_iou_and_giou, xyxy_to_cxcywh
from tests.losses.samples import random_boxes


@pytest.mark.parametrize("shape", [(0, 4), (7, 4), (2, 3, 5, 4)])
def test_conversion_equals_torchvision(shape):
    boxes = torch.rand(shape)
    corners = cxcywh_to_xyxy(boxes)
    torch.testing.assert_close(corners, box_convert(boxes, "cxcywh", "xyxy"))
    torch.testing.assert_close(xyxy_to_cxcywh(corners), box_convert(corners, "xyxy", "cxcywh"))
    torch.testing.assert_close(xyxy_to_cxcywh(corners), boxes)


def test_conversion_by_hand():
    assert cxcywh_to_xyxy(torch.tensor([10.0, 20, 4, 6])).tolist() == [8, 17, 12, 23]
    assert xyxy_to_cxcywh(torch.tensor([8.0, 17, 12, 23])).tolist() == [10, 20, 4, 6]


def test_iou_of_all_pairs_equals_torchvision():
    first, second = cxcywh_to_xyxy(random_boxes(40)), cxcywh_to_xyxy(random_boxes(25))
    iou, giou = paired_iou_and_giou(first[:, None], second[None])
    torch.testing.assert_close(iou, box_iou(first, second))
    torch.testing.assert_close(giou, generalized_box_iou(first, second))


def test_iou_in_pixels_and_of_extreme_sizes():
    first = torch.tensor([[0.0, 0, 4000, 3000], [10, 10, 11, 11], [0, 0, 1e-3, 1e-3]])
    second = torch.tensor([[1000.0, 0, 4000, 3000], [10.5, 10, 11.5, 11], [0, 0, 4000, 3000]])
    iou, giou = paired_iou_and_giou(first, second)
    torch.testing.assert_close(iou, box_iou(first, second).diagonal())
    torch.testing.assert_close(giou, generalized_box_iou(first, second).diagonal(), atol=1e-6, rtol=1e-6)


def test_gradient_equals_torchvision():
    first, second = cxcywh_to_xyxy(random_boxes(20)).requires_grad_(), cxcywh_to_xyxy(random_boxes(20))
    (mine,) = torch.autograd.grad(paired_iou_and_giou(first, second)[1].sum(), first)
    (theirs,) = torch.autograd.grad(generalized_box_iou(first, second).diagonal().sum(), first)
    torch.testing.assert_close(mine, theirs)


def test_empty_boxes_have_iou_zero_and_no_nan():
    point, far, box = torch.zeros(4), torch.ones(4), torch.tensor([0.2, 0.2, 0.6, 0.8])
    first = torch.stack((point, point, far, box)).requires_grad_()
    second = torch.stack((point, far, box, point))
    iou, giou = paired_iou_and_giou(first, second)
    (iou + giou).sum().backward()
    assert iou.tolist() == [0, 0, 0, 0]
    assert giou.isfinite().all()
    assert (giou.abs() <= 1).all()
    assert first.grad.isfinite().all()


coordinates = st.floats(0, 1, width=32, allow_subnormal=False)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[coordinates] * 8), min_size=1, max_size=8))
def test_iou_bounds_and_symmetry(rows):
    first, second = (cxcywh_to_xyxy(half) for half in torch.tensor(rows).split(4, dim=1))
    iou, giou = paired_iou_and_giou(first, second)
    assert ((iou >= 0) & (iou <= 1 + 1e-4)).all()
    assert ((giou >= -1 - 1e-4) & (giou <= iou + 1e-4)).all()
    torch.testing.assert_close(paired_iou_and_giou(second, first), (iou, giou))


def test_inverse_sigmoid():
    values = torch.linspace(0.001, 0.999, 50)
    torch.testing.assert_close(inverse_sigmoid(values), torch.logit(values))
    torch.testing.assert_close(inverse_sigmoid(values).sigmoid(), values)
    ends = inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    torch.testing.assert_close(ends, torch.logit(torch.tensor([0.0, 0.0, 1.0, 1.0]), eps=1e-5), atol=1e-2, rtol=0)
