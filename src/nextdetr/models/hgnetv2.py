"""Stem and block of HGNetV2, used by the stock RT-DETR-l and -x, D-FINE and the small DEIMv2.

PP-HGNetV2 has no paper of its own; RT-DETR, arXiv 2304.08069, table A, uses it, and PaddlePaddle's ``hgnet_v2.py``
(Apache-2.0) and transformers' ``hgnet_v2`` (Apache-2.0) define it. Parameter names are those of RT-DETR's published files.
The small sizes of D-FINE (arXiv 2410.13842) and DEIMv2 (arXiv 2509.20787) have a learnable affine block after each ReLU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nextdetr.layers.conv import BATCH_NORM_EPS, BATCH_NORM_MOMENTUM, Conv, DWConv

__all__ = ["AffineReLU", "HGBlock", "HGStem", "LightConv"]


class AffineReLU(nn.Module):
    """ReLU, then one scale and one shift for the whole map: PP-HGNetV2's learnable affine block."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of ``x``."""
        return self.scale * x.relu() + self.bias


def _activation(affine: bool) -> nn.Module:
    return AffineReLU() if affine else nn.ReLU(inplace=True)


class HGStem(nn.Module):
    """Five convolutions and a pooling, down to a quarter of the size.

    Args:
        c1: input channels.
        cm: channels inside, at least 2.
        c2: output channels.
        affine: add a learnable affine block after each ReLU.
        eps: BatchNorm's epsilon.
        momentum: BatchNorm's momentum.
    """

    def __init__(
        self,
        c1: int,
        cm: int,
        c2: int,
        *,
        affine: bool = False,
        eps: float = BATCH_NORM_EPS,
        momentum: float = BATCH_NORM_MOMENTUM,
    ) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, k: int, s: int, p: int | None = None) -> Conv:
            return Conv(inputs, outputs, k, s, p, act=_activation(affine), eps=eps, momentum=momentum)

        self.stem1 = conv(c1, cm, 3, 2)
        self.stem2a = conv(cm, cm // 2, 2, 1, 0)
        self.stem2b = conv(cm // 2, cm, 2, 1, 0)
        self.stem3 = conv(2 * cm, cm, 3, 2)
        self.stem4 = conv(cm, c2, 1, 1)
        self.pool = nn.MaxPool2d(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, c1, H, W] to [B, c2, H / 4, W / 4]."""
        x = _one_larger(self.stem1(x))
        convolved = self.stem2b(_one_larger(self.stem2a(x)))
        out: Tensor = self.stem4(self.stem3(torch.cat((self.pool(x), convolved), dim=1)))
        return out


class LightConv(nn.Module):
    """A 1x1 convolution without activation, then a depthwise one with ReLU.

    Args:
        c1: input channels.
        c2: output channels.
        k: kernel side of the depthwise convolution, odd.
        affine: add a learnable affine block after the ReLU.
        eps: BatchNorm's epsilon.
        momentum: BatchNorm's momentum.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        k: int,
        *,
        affine: bool = False,
        eps: float = BATCH_NORM_EPS,
        momentum: float = BATCH_NORM_MOMENTUM,
    ) -> None:
        super().__init__()
        self.conv1 = Conv(c1, c2, act=False, eps=eps, momentum=momentum)
        self.conv2 = DWConv(c2, c2, k, act=_activation(affine), eps=eps, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, c1, H, W] to [B, c2, H, W]."""
        out: Tensor = self.conv2(self.conv1(x))
        return out


class HGBlock(nn.Module):
    """A chain of n convolutions; the input and all intermediate maps are concatenated and reduced to the output.

    Args:
        c1: input channels.
        cm: channels of the chain.
        c2: output channels, at least 2.
        k: kernel side, odd.
        n: convolutions in the chain.
        lightconv: use ``LightConv`` instead of full convolutions.
        shortcut: add the input if it has as many channels as the output; otherwise ignored, as in the model files that
            define the row.
        affine: add a learnable affine block after each ReLU.
        eps: BatchNorm's epsilon.
        momentum: BatchNorm's momentum.
    """

    def __init__(
        self,
        c1: int,
        cm: int,
        c2: int,
        k: int = 3,
        n: int = 6,
        lightconv: bool = False,
        shortcut: bool = False,
        *,
        affine: bool = False,
        eps: float = BATCH_NORM_EPS,
        momentum: float = BATCH_NORM_MOMENTUM,
    ) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, side: int) -> Conv:
            return Conv(inputs, outputs, side, act=_activation(affine), eps=eps, momentum=momentum)

        widths = [c1, *[cm] * (n - 1)]
        if lightconv:
            self.m = nn.ModuleList(LightConv(width, cm, k, affine=affine, eps=eps, momentum=momentum) for width in widths)
        else:
            self.m = nn.ModuleList(conv(width, cm, k) for width in widths)
        self.sc = conv(c1 + n * cm, c2 // 2, 1)
        self.ec = conv(c2 // 2, c2, 1)
        self.add = shortcut and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, c1, H, W] to [B, c2, H, W]."""
        maps = [x]
        for layer in self.m:
            maps.append(layer(maps[-1]))
        out: Tensor = self.ec(self.sc(torch.cat(maps, dim=1)))
        return out + x if self.add else out


def _one_larger(x: Tensor) -> Tensor:
    """Pad with zeros at the right and bottom, so that a 2x2 window at stride 1 keeps the size."""
    return functional.pad(x, (0, 1, 0, 1))
