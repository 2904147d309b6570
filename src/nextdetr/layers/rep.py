"""RepVGG convolutions (arXiv 2101.03697, section 3), and the fusion blocks of RT-DETR and D-FINE built from them.

The re-parameterised block has no identity branch here, as in RT-DETR.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nextdetr.layers.conv import BATCH_NORM_EPS, BATCH_NORM_MOMENTUM, Conv
from nextdetr.layers.winograd import Conv3x3

__all__ = ["RepC3", "RepConv", "RepNCSPELAN4", "fused_kernel"]


def fused_kernel(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return kernel and bias of the single convolution that equals ``bn(conv(x))`` in evaluation mode."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    bias = bn.bias - bn.running_mean * scale
    if conv.bias is not None:
        bias = bias + conv.bias * scale
    return conv.weight * scale[:, None, None, None], bias


class RepConv(nn.Module):
    """A 3×3 and a 1×1 convolution, each with BatchNorm, summed; then SiLU.

    Args:
        c1: input channels.
        c2: output channels.
        k: kernel side of the larger branch, odd.
        eps: BatchNorm's epsilon.
        momentum: BatchNorm's momentum.
    """

    def __init__(
        self, c1: int, c2: int, k: int = 3, *, eps: float = BATCH_NORM_EPS, momentum: float = BATCH_NORM_MOMENTUM
    ) -> None:
        super().__init__()
        self.conv1 = Conv(c1, c2, k, act=False, eps=eps, momentum=momentum)
        self.conv2 = Conv(c1, c2, 1, act=False, eps=eps, momentum=momentum)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, c1, H, W] to [B, c2, H, W]."""
        out: Tensor = self.act(self.conv1(x) + self.conv2(x))
        return out

    @torch.no_grad()
    def fuse(self) -> nn.Sequential:
        """Return one convolution and SiLU that equal this block in evaluation mode."""
        large, large_bias = fused_kernel(self.conv1.conv, self.conv1.bn)
        small, small_bias = fused_kernel(self.conv2.conv, self.conv2.bn)
        side = large.shape[-1]
        pair = (large.shape[1], large.shape[0])
        conv = (Conv3x3(*pair) if side == 3 else nn.Conv2d(*pair, side, padding=side // 2)).to(large)
        conv.weight.copy_(large + functional.pad(small, [side // 2] * 4))
        assert conv.bias is not None
        conv.bias.copy_(large_bias + small_bias)
        return nn.Sequential(conv, nn.SiLU(inplace=True))


class RepC3(nn.Module):
    """RT-DETR's fusion block (arXiv 2304.08069, section 4.2): n RepConvs beside a 1×1 shortcut.

    Args:
        c1: input channels.
        c2: output channels.
        n: number of RepConvs.
        e: inner width as a factor of ``c2``.
        eps: BatchNorm's epsilon.
        momentum: BatchNorm's momentum.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 3,
        e: float = 1.0,
        *,
        eps: float = BATCH_NORM_EPS,
        momentum: float = BATCH_NORM_MOMENTUM,
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, eps=eps, momentum=momentum)
        self.cv2 = Conv(c1, hidden, eps=eps, momentum=momentum)
        self.m = nn.Sequential(*(RepConv(hidden, hidden, eps=eps, momentum=momentum) for _ in range(n)))
        self.cv3 = nn.Identity() if hidden == c2 else Conv(hidden, c2, eps=eps, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, c1, H, W] to [B, c2, H, W]."""
        out: Tensor = self.cv3(self.m(self.cv1(x)) + self.cv2(x))
        return out


class RepNCSPELAN4(nn.Module):
    """D-FINE's fusion block (arXiv 2410.13842, its ablation; GELAN, arXiv 2402.13616, section 4.2).

    One half of the split map passes through two branches, each a ``RepC3`` and a 3×3 convolution; both halves and both
    branches are concatenated.

    Args:
        c1: input channels.
        c2: output channels.
        split: channels of the map to split, an even number.
        inner: channels of a branch.
        n: number of RepConvs in a branch.
        eps: BatchNorm's epsilon.
        momentum: BatchNorm's momentum.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        split: int,
        inner: int,
        n: int = 3,
        *,
        eps: float = BATCH_NORM_EPS,
        momentum: float = BATCH_NORM_MOMENTUM,
    ) -> None:
        super().__init__()

        def branch(channels: int) -> nn.Sequential:
            repeated = RepC3(channels, inner, n, eps=eps, momentum=momentum)
            return nn.Sequential(repeated, Conv(inner, inner, 3, eps=eps, momentum=momentum))

        self.cv1 = Conv(c1, split, eps=eps, momentum=momentum)
        self.cv2 = branch(split // 2)
        self.cv3 = branch(inner)
        self.cv4 = Conv(split + 2 * inner, c2, eps=eps, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, c1, H, W] to [B, c2, H, W]."""
        whole = self.cv1(x)
        first = self.cv2(whole.chunk(2, dim=1)[1])
        out: Tensor = self.cv4(torch.cat((whole, first, self.cv3(first)), dim=1))
        return out
