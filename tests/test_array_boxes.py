from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms as nms_of_torchvision

from nextdetr import array_boxes, boxes


@pytest.mark.parametrize("name", ["cxcywh_to_xyxy", "xyxy_to_cxcywh"])
def test_arrays_are_converted_as_tensors_are(name):
    values = torch.rand(3, 40, 4)
    converted = getattr(array_boxes, name)(values.numpy())
    assert converted.dtype == np.float32
    np.testing.assert_allclose(converted, getattr(boxes, name)(values), rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 2, 30, 400, 1500])
@pytest.mark.parametrize("limit", [0.3, 0.5])
def test_the_boxes_that_stay_are_torchvisions(count, limit):
    low = torch.rand(count, 2) * 300
    corners = torch.cat((low, low + 5 + 100 * torch.rand(count, 2)), dim=1)
    scores, labels = torch.rand(count), torch.randint(0, 3, (count,))
    kept = array_boxes.batched_nms(corners.numpy(), scores.numpy(), labels.numpy(), limit)
    assert kept.tolist() == nms_of_torchvision(corners, scores, labels, limit).tolist()


def test_equal_scores_and_boxes_without_an_area():
    corners = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 10]], np.float32)
    labels = np.array([0, 0, 0, 0, 1])
    assert array_boxes.batched_nms(corners, np.full(5, 0.5, np.float32), labels, 0.5).tolist() == [0, 2, 3, 4]
