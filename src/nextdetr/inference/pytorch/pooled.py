"""One vector an image while a detector runs: the pooled last map of the backbone, as ``embed`` gives it by itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from nextdetr.models.detection import DetectionModel

__all__ = ["pool", "pooled_maps"]


def pool(features: Tensor) -> NDArray[np.float32]:
    """Return the average of each channel, [B, C], of maps [B, C, H, W]."""
    result: NDArray[np.float32] = features.float().mean(dim=(2, 3)).cpu().numpy()
    return result


@contextmanager
def pooled_maps(model: nn.Module) -> Iterator[list[NDArray[np.float32]]]:
    """Look on at what a detector does inside the ``with``, in this thread.

    Yields:
        a list to which each forward pass adds [B, C] of its images.
    """
    assert isinstance(model, DetectionModel)
    found: list[NDArray[np.float32]] = []
    thread = threading.get_ident()

    def keep(row: nn.Module, inputs: Any, result: Tensor | list[Tensor]) -> None:
        if threading.get_ident() == thread:
            found.append(pool(result[-1] if isinstance(result, list) else result))

    hook = model.rows[model.backbone_rows - 1].register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()
