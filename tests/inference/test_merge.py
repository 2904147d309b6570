"""``--merge-iou``: removing near-duplicates, as torchvision does it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import batched_nms

from nextdetr.config import PredictConfig
from nextdetr.errors import ConfigError
from nextdetr.inference.pipeline import predict_stream
from nextdetr.inference.predictor import Predictor
from nextdetr.structures import DetectorOutput

CLASSES = ["a", "b", "c"]


class Crowd(nn.Module):
    """Forty boxes around four places, the same for each image."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        centres = torch.rand(4, 2, generator=generator).repeat(10, 1) * 0.6 + 0.2
        self.boxes = torch.cat((centres, torch.full((40, 2), 0.2)), 1) + 0.03 * torch.randn(40, 4, generator=generator)
        self.logits = torch.randn(40, 3, generator=generator)

    def forward(self, images, targets=None, *, queries=None):
        return DetectorOutput(self.logits.expand(len(images), -1, -1), self.boxes.expand(len(images), -1, -1))


@pytest.fixture
def predictor():
    return Predictor(Crowd(), CLASSES, 64, device="cpu")


@pytest.mark.parametrize("limit", [0.0, 0.3, 0.5, 0.7, 0.95, 1.0])
def test_what_stays_is_what_torchvision_keeps(predictor, scene, limit):
    (everything,) = predictor.predict(scene, confidence=0.2)
    (found,) = predictor.predict(scene, confidence=0.2, merge_iou=limit)
    kept = batched_nms(*map(torch.from_numpy, (everything.xyxy, everything.confidence, everything.class_id)), limit)
    assert np.array_equal(found.xyxy, everything.xyxy[kept.numpy()])
    assert np.array_equal(found.class_id, everything.class_id[kept.numpy()])
    assert found.data["class_name"].tolist() == everything.data["class_name"][kept.numpy()].tolist()
    assert (len(found) < len(everything)) == (limit < 0.9)


def test_nothing_is_removed_unless_it_is_asked_for(predictor, scene):
    assert len(predictor.predict(scene, confidence=0)[0]) == 120


def test_also_after_tiles(predictor, scene):
    def found(**settings):
        (result,) = predict_stream(predictor, scene, PredictConfig(confidence=0.3, tile=64, **settings))
        return result.detections

    assert len(found(merge_iou=0.1)) < len(found())
    assert len(found(merge_iou=1)) == len(found())


def test_out_of_range(predictor, scene):
    for value in (-0.1, 1.5):
        with pytest.raises(ConfigError, match="merge_iou is an IoU, 0 to 1"):
            predictor.predict(scene, merge_iou=value)
