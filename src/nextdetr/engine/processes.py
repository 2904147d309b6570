"""Distributed scoring during training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import nn

from nextdetr.data.records import DetectionData
from nextdetr.engine.evaluate import CocoEvaluator, EvalResult, evaluate

__all__ = ["gather_values", "validate"]


def validate(
    model: nn.Module,
    data: DetectionData,
    *,
    image_size: int,
    batch_size: int,
    device: torch.device,
    fabric: Fabric | None = None,
    queries: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    evaluator: CocoEvaluator | None = None,
) -> EvalResult:
    """Score ``model`` on all images of ``data``, distributed over the processes of ``fabric``."""
    rank, world = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
    gather = None if world == 1 else gather_values
    return evaluate(
        model, data, image_size=image_size, batch_size=batch_size, device=device, rank=rank, world=world, gather=gather,
        queries=queries, progress=progress, evaluator=evaluator,
    )  # fmt: skip


def gather_values(value: Any) -> list[Any]:
    """Collect one picklable value from every process."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
