"""The one rule that says when a fast path may run in the place of torch's own operations.

A fast path is another order of the same sums, mostly with a hand-written gradient: of the depthwise convolution, of GRN and
the linear layers around it, of 3 × 3 convolutions, of deformable attention. It must give way where something records the
operations (a compiler or exporter knows torch's, not ours), where tensors have no numbers (the meta device), and where
somebody looks at what lies between the layers that it joins (a hook). Most are written for float32 on a processor, where
autocast would have cast in between.
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
        x: what goes in.
        *between: layers that the path joins, so that their own outputs never exist.
        any_device: the path is not for processors alone.
        any_precision: the path takes other types than float32, and autocast.
    """
    return (
        not x.is_meta  # first, as autocast knows no such device
        and (any_device or x.device.type == "cpu")
        and (any_precision or (x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)))
        and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in between)
        and not is_traced()
    )
