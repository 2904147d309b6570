"""ConvNeXt V2 as the first row of an ultralytics model: four maps out, of strides 4, 8, 16 and 32.

Paper: "ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders", arXiv 2301.00808 (block: section 3,
figure 5; sizes: table 14 and section 4). Parameters carry the names of the published checkpoints.

NextDETR computes the same with hand-written gradients and fused layers. Here every operation is one of torch's own modules,
so that what looks into a model there (FLOP counts by hooks, exports by tracing, pickled checkpoints) sees all of it, and a
checkpoint does not depend on the insides of NextDETR. The tests hold the two together.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextdetr.models.convnextv2 import SIZES

__all__ = ["Block", "ConvNeXtV2", "GlobalResponseNorm", "LayerNorm2d"]

EPS = 1e-6
#: Classes of the classifier that the recipe keeps: ImageNet-1k's.
CLASSES = 1000
#: ImageNet's mean and deviation of red, green and blue, of pixels from 0 to 1.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class GlobalResponseNorm(nn.Module):
    """GRN over the positions of [B, H, W, C] (section 3): gamma * (x * N) + beta + x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape as ``x`` [B, H, W, C]."""
        # In float16 the sum of squares overflows (ConvNeXt-V2#66), so that it is always of float32.
        energy = x.float().norm(p=2, dim=(1, 2), keepdim=True)  # [B, 1, 1, C]
        response = (energy / (energy.mean(dim=-1, keepdim=True) + EPS)).to(x.dtype)
        return self.gamma * (x * response) + self.beta + x


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape as ``x`` [B, C, H, W]."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Depthwise 7x7, LayerNorm, Linear, GELU, GRN, Linear, residual.

    Args:
        channels: of the map.
        expansion: width inside as a multiple of it.
    """

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, kernel_size=7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.pwconv1 = nn.Linear(channels, expansion * channels)
        self.act = nn.GELU()
        self.grn = GlobalResponseNorm(expansion * channels)
        self.pwconv2 = nn.Linear(expansion * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of ``x`` [B, C, H, W]."""
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))  # [B, H, W, C]
        y = self.pwconv2(self.grn(self.act(self.pwconv1(y))))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXtV2(nn.Module):
    """The backbone of one of NextDETR's sizes.

    Args:
        size: ``atto``, ``femto``, ``pico``, ``nano``, ``tiny``, ``base``, ``large``, ``huge``, or NextDETR's own ``zepto``.
        classifier: keep the final norm and the classifier of 1,000 classes, which nothing runs, as the reference recipe
            does; without them every parameter gets a gradient.
        normalize: subtract ImageNet's mean from the pixels and divide by its deviation, as published weights expect.

    Attributes:
        channels: of the four maps.
    """

    def __init__(self, size: str, *, classifier: bool = True, normalize: bool = False) -> None:
        super().__init__()
        spec = SIZES[size]
        self.channels = list(spec.dims)
        self.downsample_layers = nn.ModuleList()
        self.stages = nn.ModuleList()
        before = 3
        for channels, depth in zip(spec.dims, spec.depths, strict=True):
            self.downsample_layers.append(_stem(channels) if before == 3 else _downsample(before, channels))
            self.stages.append(nn.Sequential(*(Block(channels, spec.expansion) for _ in range(depth))))
            before = channels
        self.norm = nn.LayerNorm(before, eps=EPS) if classifier else None
        self.head = nn.Linear(before, CLASSES) if classifier else None
        # They follow from the model file, and are in no state dict.
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) if normalize else None, persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1) if normalize else None, persistent=False)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the four maps of images [B, 3, H, W], 0 to 1, each [B, channels, H / stride, W / stride]."""
        if self.mean is not None:
            x = (x - self.mean) / self.std
        maps = []
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
            maps.append(x)
        return maps


def _stem(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, channels, kernel_size=4, stride=4), LayerNorm2d(channels, eps=EPS))


def _downsample(before: int, channels: int) -> nn.Sequential:
    return nn.Sequential(LayerNorm2d(before, eps=EPS), nn.Conv2d(before, channels, kernel_size=2, stride=2))


def _initialise(module: nn.Module) -> None:
    """Give convolutions and linear layers their published start: deviation 0.02, biases 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, std=0.02)  # cut at 100 deviations in the published code: no cut
        nn.init.zeros_(module.bias)
