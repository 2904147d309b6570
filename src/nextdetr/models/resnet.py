"""The two ResNets of RT-DETR: a plain one in rows, and the official ResNet-vd as one backbone.

"Deep Residual Learning for Image Recognition", arXiv 1512.03385, section 3; the vd variant is ResNet-D of "Bag of Tricks
for Image Classification with Convolutional Neural Networks", arXiv 1812.01187, section 4.2: a stem of three 3x3
convolutions, and an average pooling in the shortcuts that halve a map.

Differences from the papers, as in RT-DETR's published files: ``ResNetLayer`` has SiLU inside its blocks and in its stem,
and ReLU only after the sum; the vd variant projects the shortcut of the first block of every stage, even in the first stage
of ResNet-18 and -34, where the channels would not require it. Parameter names are those of the published files.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from nextdetr.errors import ConfigError
from nextdetr.layers.conv import BATCH_NORM_EPS, BATCH_NORM_MOMENTUM, Conv

__all__ = ["VD_SIZES", "ResNetBlock", "ResNetLayer", "ResNetVD", "VDBlock", "VDSpec", "VDStage", "resnetvd"]


class ResNetBlock(nn.Module):
    """A bottleneck: 1x1, 3x3 and 1x1 convolution, plus a shortcut.

    Args:
        c1: input channels.
        c2: inner channels; the output has e · c2.
        s: stride of the 3x3 convolution.
        e: expansion.
        eps: BatchNorm's epsilon.
        momentum: BatchNorm's momentum.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        s: int = 1,
        e: int = 4,
        *,
        eps: float = BATCH_NORM_EPS,
        momentum: float = BATCH_NORM_MOMENTUM,
    ) -> None:
        super().__init__()
        self.cv1 = Conv(c1, c2, eps=eps, momentum=momentum)
        self.cv2 = Conv(c2, c2, 3, s, eps=eps, momentum=momentum)
        self.cv3 = Conv(c2, e * c2, act=False, eps=eps, momentum=momentum)
        projected = s != 1 or c1 != e * c2
        self.shortcut = (
            nn.Sequential(Conv(c1, e * c2, 1, s, act=False, eps=eps, momentum=momentum)) if projected else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, c1, H, W] to [B, e · c2, H / s, W / s]."""
        return functional.relu(self.cv3(self.cv2(self.cv1(x))) + self.shortcut(x))


class ResNetLayer(nn.Module):
    """The stem, or a stage of bottlenecks.

    Args:
        c1: input channels.
        c2: output channels of the stem, or inner channels of the bottlenecks.
        s: stride of a stage; the stem's is 4.
        is_first: the stem, a 7x7 convolution and a pooling.
        n: bottlenecks of a stage.
        e: expansion of a stage.
        eps: BatchNorm's epsilon.
        momentum: BatchNorm's momentum.

    Attributes:
        channels: channels of the output map.
        stride: stride of the output map, in pixels of the input.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        s: int = 1,
        is_first: bool = False,
        n: int = 1,
        e: int = 4,
        *,
        eps: float = BATCH_NORM_EPS,
        momentum: float = BATCH_NORM_MOMENTUM,
    ) -> None:
        super().__init__()
        self.channels, self.stride = (c2, 4) if is_first else (e * c2, s)
        if is_first:
            self.layer = nn.Sequential(Conv(c1, c2, 7, 2, eps=eps, momentum=momentum), nn.MaxPool2d(3, 2, 1))
        else:
            blocks = (
                ResNetBlock(c1 if k == 0 else e * c2, c2, s if k == 0 else 1, e, eps=eps, momentum=momentum)
                for k in range(n)
            )
            self.layer = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, c1, H, W] to [B, channels, H / stride, W / stride]."""
        out: Tensor = self.layer(x)
        return out


class VDSpec(NamedTuple):
    """Blocks of each stage, and whether they are bottlenecks (of expansion 4)."""

    depths: tuple[int, int, int, int]
    bottleneck: bool


VD_SIZES: Mapping[str, VDSpec] = MappingProxyType(
    {
        "18": VDSpec((2, 2, 2, 2), bottleneck=False),
        "34": VDSpec((3, 4, 6, 3), bottleneck=False),
        "50": VDSpec((3, 4, 6, 3), bottleneck=True),
        "101": VDSpec((3, 4, 23, 3), bottleneck=True),
    }
)
_WIDTHS = (64, 128, 256, 512)
_EXPANSION = 4


class VDBlock(nn.Module):
    """A block of ResNet-vd: two 3x3 convolutions, or a bottleneck; ReLU throughout.

    Args:
        c1: input channels.
        c2: inner channels.
        s: stride of the first 3x3 convolution, 1 or 2.
        bottleneck: 1x1, 3x3 and 1x1 instead of two 3x3 convolutions; the output has 4 · c2 channels instead of c2.
        projected: first block of its stage: the shortcut has a convolution, after a pooling at stride 2.
        eps: BatchNorm's epsilon.
        momentum: BatchNorm's momentum.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        s: int,
        *,
        bottleneck: bool,
        projected: bool,
        eps: float = BATCH_NORM_EPS,
        momentum: float = BATCH_NORM_MOMENTUM,
    ) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, k: int, stride: int = 1, *, act: bool = False) -> Conv:
            relu = nn.ReLU(inplace=True) if act else None
            return Conv(inputs, outputs, k, stride, act=relu, eps=eps, momentum=momentum)

        out = c2 * _EXPANSION if bottleneck else c2
        if bottleneck:
            self.branch2a = conv(c1, c2, 1, act=True)
            self.branch2b = conv(c2, c2, 3, s, act=True)
            self.branch2c: nn.Module = conv(c2, out, 1)
        else:
            self.branch2a = conv(c1, c2, 3, s, act=True)
            self.branch2b = conv(c2, c2, 3)
            self.branch2c = nn.Identity()
        self.short: nn.Module = conv(c1, out, 1) if projected else nn.Identity()
        if projected and s == 2:
            pool = nn.AvgPool2d(2, 2, ceil_mode=True)
            self.short = nn.Sequential(OrderedDict[str, nn.Module](pool=pool, conv=self.short))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, c1, H, W] to [B, c2 or 4 · c2, H / s, W / s]."""
        return functional.relu(self.branch2c(self.branch2b(self.branch2a(x))) + self.short(x))


class VDStage(nn.Module):
    """The blocks of a stage; a module of its own because the published names include one here."""

    def __init__(self, blocks: list[VDBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks."""
        for block in self.blocks:
            x = block(x)
        return x


class ResNetVD(nn.Module):
    """ResNet-vd as a feature extractor, the backbone of the official RT-DETR-R18 to -R101.

    Args:
        depths: blocks of each stage.
        bottleneck: see ``VDBlock``.
        eps: BatchNorm's epsilon.
        momentum: BatchNorm's momentum.

    Attributes:
        channels: channels of the four maps.
        strides: their strides: 4, 8, 16, 32.
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        *,
        bottleneck: bool,
        eps: float = BATCH_NORM_EPS,
        momentum: float = BATCH_NORM_MOMENTUM,
    ) -> None:
        super().__init__()
        stem = OrderedDict[str, nn.Module]()
        for k, (c1, c2) in enumerate(((3, 32), (32, 32), (32, 64))):
            act = nn.ReLU(inplace=True)
            stem[f"conv1_{k + 1}"] = Conv(c1, c2, 3, 2 if k == 0 else 1, act=act, eps=eps, momentum=momentum)
        self.conv1 = nn.Sequential(stem)
        self.pool = nn.MaxPool2d(3, 2, 1)
        expansion = _EXPANSION if bottleneck else 1
        self.channels = [width * expansion for width in _WIDTHS]
        self.strides = [4, 8, 16, 32]
        self.res_layers = nn.ModuleList()
        c1 = 64
        for i, (depth, width) in enumerate(zip(depths, _WIDTHS, strict=True)):
            blocks = []
            for j in range(depth):
                first = j == 0
                stride = 2 if first and i > 0 else 1
                blocks.append(
                    VDBlock(c1, width, stride, bottleneck=bottleneck, projected=first, eps=eps, momentum=momentum)
                )
                c1 = width * expansion
            self.res_layers.append(VDStage(blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # arXiv 1502.01852, section 2.2
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map images [B, 3, H, W] to four maps [B, channels[k], H / strides[k], W / strides[k]]."""
        x = self.pool(self.conv1(x))
        maps = []
        for stage in self.res_layers:
            x = stage(x)
            maps.append(x)
        return maps


def resnetvd(size: str, *, eps: float = BATCH_NORM_EPS, momentum: float = BATCH_NORM_MOMENTUM) -> ResNetVD:
    """Build one of the published sizes.

    Args:
        size: a key of ``VD_SIZES``.
        eps: BatchNorm's epsilon.
        momentum: BatchNorm's momentum.

    Raises:
        ConfigError: there is no such size.
    """
    if size not in VD_SIZES:
        raise ConfigError(f"there is no ResNet-vd of size {size!r}: choose one of {', '.join(VD_SIZES)}.")
    depths, bottleneck = VD_SIZES[size]
    return ResNetVD(depths, bottleneck=bottleneck, eps=eps, momentum=momentum)
