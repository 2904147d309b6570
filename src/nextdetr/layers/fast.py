"""The one rule that decides whether a fast path may replace torch's own operations.

A fast path is another order of the same sums, usually with a hand-written gradient: for the depthwise convolution, GRN and
the linear layers around it, 3 × 3 convolutions, deformable attention. It must not run if something records the operations
(a compiler or exporter knows torch's, not ours), if tensors have no data (the meta device), or if something observes the
values between the fused layers (a hook). Most are written for float32 on a CPU, where autocast would insert casts in
between.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["is_traced", "may_run"]


def is_traced() -> bool:
    """Whether a compiler or exporter is recording the operations."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def may_run(x: Tensor, *between: nn.Module, any_device: bool = False, any_precision: bool = False) -> bool:
    """Whether a fast path may run on ``x``.

    Args:
        x: input.
        *between: layers that the path fuses, so that their own outputs never exist.
        any_device: whether the path supports devices other than the CPU.
        any_precision: whether the path supports other types than float32, and autocast.
    """
    return (
        not x.is_meta  # first, as autocast does not support this device
        and (any_device or x.device.type == "cpu")
        and (any_precision or (x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)))
        and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in between)
        and not is_traced()
    )
