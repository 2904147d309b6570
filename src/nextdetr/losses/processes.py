"""Normalisation of losses over all processes of a run."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

__all__ = ["mean_over_processes"]


def mean_over_processes(counts: Tensor) -> tuple[Tensor, int]:
    """Return the mean of ``counts`` over the processes, and their number; collective with several processes.

    DDP averages the gradients of the processes, so dividing each by the mean divides their sum by the total.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return counts, 1
    world = dist.get_world_size()
    dist.all_reduce(counts)
    return counts / world, world
