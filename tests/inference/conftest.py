from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from nextdetr.structures import DetectorOutput

CLASSES = ["Katze", "dog", "bird"]


class BrightFinder(nn.Module):
    """First query: the bright pixels' box, class 1 at 0.9. Second: the whole image, class 2 at 0.4. Third: noise, 0.1."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.queries: int | None = None

    def forward(self, images: torch.Tensor, targets: None = None, *, queries: int | None = None) -> DetectorOutput:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.batches.append(len(images))
        self.queries = queries
        size, boxes = images.shape[-1], []
        for image in images:
            ys, xs = torch.where(image[0] > 0.5)
            low, high = torch.stack((xs.min(), ys.min())), torch.stack((xs.max(), ys.max())) + 1
            found = torch.cat(((low + high) / 2, high - low)) / size
            boxes.append(torch.stack((found, torch.tensor([0.5, 0.5, 1, 1]), torch.tensor([0.1, 0.1, 0.1, 0.1]))))
        scores = torch.full((3, 3), 0.001)
        scores[0, 1], scores[1, 2], scores[2, 0] = 0.9, 0.4, 0.1
        return DetectorOutput(scores.logit().expand(len(images), 3, 3), torch.stack(boxes))


@pytest.fixture
def model() -> BrightFinder:
    return BrightFinder()


@pytest.fixture
def scene() -> Image.Image:
    """200×100, with the bright rectangle (20, 10)-(80, 50)."""
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[10:50, 20:80] = 255
    return Image.fromarray(pixels)
