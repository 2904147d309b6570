"""Mean and standard deviation of ImageNet's pixels, defined only here."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "imagenet_statistics"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def imagenet_statistics() -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of red, green and blue pixels in 0 to 1, each [1, 3, 1, 1] float32."""
    return torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
