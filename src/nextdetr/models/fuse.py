"""Folding for inference: BatchNorm into its convolution, RepConv's branches into one, GRN's shift into the next layer.

BatchNorm is an affine map in evaluation mode, so a convolution with BatchNorm is one convolution (Jacob et al., arXiv
1712.05877, section 3.2); the branches of a RepVGG block add up to one (arXiv 2101.03697, section 3.2). GRN ends with a
shift ``beta`` before a linear layer, whose bias absorbs it: one pass less over the widest map of the block.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

from nextdetr.layers.norm import GRN, response_statistics
from nextdetr.layers.rep import RepConv, fused_kernel

__all__ = ["fuse"]

M = TypeVar("M", bound=nn.Module)


class ScaleGRN(nn.Module):
    """GRN without its shift: x · (gamma · n + 1) for a map [B, H, W, C], the statistics in float32."""

    gamma: Tensor

    def __init__(self, source: GRN) -> None:
        super().__init__()
        self.eps = source.eps
        self.register_buffer("gamma", source.gamma.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape and dtype of ``x`` [B, H, W, C]."""
        norm, mean = response_statistics(x, self.eps)
        return x * (self.gamma.to(norm.dtype) * (norm / mean) + 1).to(x.dtype)


@torch.no_grad()
def fuse(model: M) -> M:
    """Return a fused copy of ``model`` in evaluation mode; ``model`` itself is not changed.

    The copy gives the same outputs up to rounding, but can neither be trained nor saved as a checkpoint.
    """
    folded = copy.deepcopy(model).eval()
    _fold_children(folded)
    return folded.requires_grad_(False)


def _fold_children(parent: nn.Module) -> None:
    for name, child in list(parent.named_children()):
        if isinstance(child, RepConv):
            setattr(parent, name, child.fuse())
            continue
        _fold_children(child)
        grn, linear = getattr(child, "grn", None), getattr(child, "pwconv2", None)
        if isinstance(grn, GRN) and isinstance(linear, nn.Linear):
            _fold_grn(child, grn, linear)
    children = list(parent.named_children())
    if isinstance(parent, nn.Sequential):
        for (first, conv), (second, norm) in pairwise(children):
            _fold_pair(parent, first, conv, second, norm)
    else:
        # In other modules, attribute order is not the order of computation; these names have this meaning in this project.
        names = dict(children)
        if "conv" in names and "bn" in names:
            _fold_pair(parent, "conv", names["conv"], "bn", names["bn"])


def _fold_pair(parent: nn.Module, first: str, conv: nn.Module, second: str, norm: nn.Module) -> None:
    """Replace convolution and BatchNorm by one convolution, if they are a pair."""
    if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)) or norm.running_var is None:
        return
    weight, bias = fused_kernel(conv, norm)
    single = copy.deepcopy(conv)
    single.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
    single.bias = nn.Parameter(bias)
    setattr(parent, first, single)
    setattr(parent, second, nn.Identity())


def _fold_grn(block: nn.Module, grn: GRN, linear: nn.Linear) -> None:
    assert linear.bias is not None
    linear.bias.add_(linear.weight @ grn.beta.flatten())
    block.grn = ScaleGRN(grn)
