"""Convolution with BatchNorm and SiLU, its depthwise form, and combinations of maps: the basic rows of a model file."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nextdetr.layers.norm import BatchNorm2d
from nextdetr.layers.winograd import Conv3x3

__all__ = ["BATCH_NORM_EPS", "BATCH_NORM_MOMENTUM", "JOINS", "Add", "Concat", "Conv", "DWConv", "PooledAdd", "autopad"]

BATCH_NORM_EPS = 1e-3
BATCH_NORM_MOMENTUM = 0.03


def autopad(kernel: int, padding: int | None = None, dilation: int = 1) -> int:
    """Return the padding that keeps the size at stride 1, unless ``padding`` is given."""
    return dilation * (kernel - 1) // 2 if padding is None else padding


class Conv(nn.Module):
    """Convolution without bias, BatchNorm, activation.

    Args:
        c1: input channels.
        c2: output channels.
        k: kernel side.
        s: stride.
        p: padding; None keeps the size at stride 1.
        g: groups.
        d: dilation.
        act: True for SiLU, False or None for none, or a module.
        eps: BatchNorm's epsilon; it differs by framework, and a loaded checkpoint needs its own.
        momentum: BatchNorm's momentum.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        k: int = 1,
        s: int = 1,
        p: int | None = None,
        g: int = 1,
        d: int = 1,
        act: bool | nn.Module | None = True,
        *,
        eps: float = BATCH_NORM_EPS,
        momentum: float = BATCH_NORM_MOMENTUM,
    ) -> None:
        super().__init__()
        plain = (k, s, autopad(k, p, d), d, g) == (3, 1, 1, 1, 1)
        self.conv = (
            Conv3x3(c1, c2, bias=False)
            if plain
            else nn.Conv2d(c1, c2, k, s, autopad(k, p, d), dilation=d, groups=g, bias=False)
        )
        self.bn = BatchNorm2d(c2, eps=eps, momentum=momentum)
        self.act = act if isinstance(act, nn.Module) else nn.SiLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, c1, H, W] to [B, c2, H / s, W / s]."""
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out


class DWConv(Conv):
    """Convolution with as many groups as divide both input and output channels: depthwise if these are equal.

    Args:
        c1: input channels.
        c2: output channels.
        k: kernel side.
        s: stride.
        d: dilation.
        act: True for SiLU, False or None for none, or a module.
        eps: BatchNorm's epsilon.
        momentum: BatchNorm's momentum.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        k: int = 1,
        s: int = 1,
        d: int = 1,
        act: bool | nn.Module | None = True,
        *,
        eps: float = BATCH_NORM_EPS,
        momentum: float = BATCH_NORM_MOMENTUM,
    ) -> None:
        super().__init__(c1, c2, k, s, g=math.gcd(c1, c2), d=d, act=act, eps=eps, momentum=momentum)


class Concat(nn.Module):
    """Concatenation of several maps of the same size.

    Args:
        dimension: dimension to concatenate along; 1 is the channels.
    """

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.dimension = dimension

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Concatenate maps [B, C_i, H, W]."""
        return torch.cat(list(maps), dim=self.dimension)


class Add(nn.Module):
    """Sum of several maps of the same shape."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Add maps [B, C, H, W]."""
        total, *rest = maps
        for one in rest:
            total = total + one
        return total


#: Layers that take a list of maps.
JOINS = (Concat, Add)


class PooledAdd(nn.Module):
    """A map plus its mean over all positions, then ``Conv``: the global context of DEIMv2's lite encoder.

    DEIMv2, arXiv 2509.20787, section 3.1.

    Args:
        c1: input channels.
        c2: output channels.
        eps: BatchNorm's epsilon.
        momentum: BatchNorm's momentum.
    """

    def __init__(self, c1: int, c2: int, *, eps: float = BATCH_NORM_EPS, momentum: float = BATCH_NORM_MOMENTUM) -> None:
        super().__init__()
        self.cv = Conv(c1, c2, eps=eps, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, c1, H, W] to [B, c2, H, W]."""
        out: Tensor = self.cv(x + x.mean(dim=(2, 3), keepdim=True))
        return out
