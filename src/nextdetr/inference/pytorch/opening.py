"""Opening networks of torch, and putting them where they run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from nextdetr.inference.familiarity import Familiarity
from nextdetr.models.cut import cut_layers
from nextdetr.tensors import choose_device
from nextdetr.weights.checkpoint import OpenedModel
from nextdetr.weights.report import LoadReport
from nextdetr.weights.start import open_detector

__all__ = ["fits", "open_network", "place", "shortened"]


def open_network(
    model: str | Path,
    *,
    weights: str | Path | None,
    backbone_weights: str | Path | None,
    allow_partial: bool,
    threads: int | None,
) -> tuple[OpenedModel, list[LoadReport]]:
    """Open a shipped name, a model YAML or a checkpoint; see ``open_any``."""
    if threads is not None:
        torch.set_num_threads(threads)
    return open_detector(model, weights=weights, backbone_weights=backbone_weights, allow_partial=allow_partial)


def place(opened: OpenedModel, device: str | torch.device | None) -> str:
    """Put a network where it is to run, in evaluation mode, and return the device's name.

    Raises:
        ConfigError: there is no such device.
    """
    chosen = choose_device(device)
    opened.model.to(chosen).eval()
    return str(chosen)


def shortened(opened: OpenedModel, layers: int, image_size: int) -> OpenedModel:
    """Return a detector with ``layers`` decoder layers, at another image size; ``opened`` is unchanged."""
    return replace(opened, model=cut_layers(opened.model, layers), image_size=image_size)


def fits(opened: OpenedModel, known: Familiarity, image_size: int) -> bool:
    """Whether what a file says of unlike images is of this network at this size."""
    last = opened.model.row_infos[opened.model.backbone_rows - 1]
    return known.image_size == image_size and len(known.space.mean) == last.channels[-1]
