"""ConvNeXt V2 in the form that runtimes compute fastest: 1 × 1 convolutions on [B, C, H, W], without layout changes.

``models/convnextv2.py`` applies linear layers to the last axis, like the published weights. In an exported file this costs
two transposes per block, which OpenVINO and ONNX Runtime execute, and products over the last axis are slower there than 1 ×
1 convolutions. The same numbers, reordered:

- LayerNorm's scale and shift are folded into the next layer, and so is the subtraction of the mean: (x - mean(x)) · W is x
  · (W - mean of W over its inputs). What remains is one factor per position, from two reductions.
- The stem subtracts the mean over its outputs itself, so the following norm has none to subtract.
- GRN's shift is folded into the next layer's bias; its norm is one reduction, without a map of squares.
- The image's mean and standard deviation are folded into the stem, which has no padding.

Tried without gain in either runtime: GRN's scale in the next layer's weights, which are then no longer constants.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextdetr.layers.deformable import at_least_float32
from nextdetr.layers.norm import GRN, LayerNorm2d
from nextdetr.models.convnextv2 import Block, ConvNeXtV2
from nextdetr.models.detection import DetectionModel

__all__ = ["use_channels_first"]


class Norm(nn.Module):
    """Division by the standard deviation over the channels of [B, C, H, W], in at least float32: the rest of LayerNorm.

    Args:
        eps: added to the variance.
        centred: whether the input already has mean 0.
    """

    def __init__(self, eps: float, *, centred: bool = False) -> None:
        super().__init__()
        self.eps, self.centred = eps, centred

    def forward(self, x: Tensor) -> Tensor:
        """Divide; the layer that reads the result subtracts the mean."""
        wide = at_least_float32(x)
        norm = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
        variance = norm * norm / x.shape[1]
        if not self.centred:
            mean = wide.mean(dim=1, keepdim=True)
            variance = (variance - mean * mean).clamp(min=0)
        out: Tensor = wide * (variance + self.eps).rsqrt()
        return out.to(x.dtype)


class Response(nn.Module):
    """GRN without its shift on [B, C, H, W]."""

    gamma: Tensor

    def __init__(self, gamma: Tensor, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("gamma", gamma.detach().reshape(1, -1, 1, 1).clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape and dtype of ``x``."""
        norm: Tensor = torch.linalg.vector_norm(at_least_float32(x), dim=(2, 3), keepdim=True)
        scale: Tensor = self.gamma.to(norm.dtype) * (norm / (norm.mean(dim=1, keepdim=True) + self.eps)) + 1
        return x * scale.to(x.dtype)


class ChannelsFirstBlock(nn.Module):
    """What a folded ``Block`` computes, on [B, C, H, W] throughout."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.dwconv = block.dwconv
        assert self.dwconv.bias is not None
        self.dwconv.bias.sub_(self.dwconv.bias.mean())  # the norm would subtract it; leaving it out saves digits
        self.norm = Norm(block.norm.eps)
        self.pwconv1 = _behind_norm(block.norm, _as_conv(block.pwconv1))
        self.act = block.act
        grn = block.grn
        self.grn = nn.Identity() if isinstance(grn, nn.Identity) else Response(*_of_grn(grn))
        self.pwconv2 = _as_conv(block.pwconv2)
        if block.gamma is not None:
            self.pwconv2.weight.mul_(block.gamma[:, None, None, None])
            assert self.pwconv2.bias is not None
            self.pwconv2.bias.mul_(block.gamma)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of ``x`` [B, C, H, W]."""
        out: Tensor = x + self.pwconv2(self.grn(self.act(self.pwconv1(self.norm(self.dwconv(x))))))
        return out


class StemNorm(nn.Module):
    """The stem's LayerNorm on [B, C, H, W] with its scale and shift, as the residual stream reads them; input mean is 0."""

    def __init__(self, norm: LayerNorm2d) -> None:
        super().__init__()
        self.norm = Norm(norm.eps, centred=True)
        self.weight = nn.Parameter(norm.weight.detach().reshape(1, -1, 1, 1).clone())
        self.bias = nn.Parameter(norm.bias.detach().reshape(1, -1, 1, 1).clone())

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        out: Tensor = self.norm(x) * self.weight + self.bias
        return out


@torch.no_grad()
def use_channels_first(model: DetectionModel) -> None:
    """Replace every ConvNeXt V2 of a folded model by this form, in place."""
    for row in model.rows:
        if isinstance(row, ConvNeXtV2):
            _change_layout(row)
    stem = model.rows[0].downsample_layers[0] if isinstance(model.rows[0], ConvNeXtV2) else None
    if model.normalize == "imagenet" and isinstance(stem, nn.Sequential):
        _take_normalisation(model, _conv(stem[0]))


def _change_layout(backbone: ConvNeXtV2) -> None:
    for i, stage in enumerate(backbone.stages):
        assert isinstance(stage, nn.Sequential)
        blocks = [block for block in stage if isinstance(block, Block)]
        backbone.stages[i] = nn.Sequential(*(ChannelsFirstBlock(block) for block in blocks))
    for i, layers in enumerate(backbone.downsample_layers):
        assert isinstance(layers, nn.Sequential)
        if i == 0:
            stem, norm = _conv(layers[0]), _norm(layers[1])
            _centre_outputs(stem)
            backbone.downsample_layers[i] = nn.Sequential(stem, StemNorm(norm))
        else:
            norm, conv = _norm(layers[0]), _conv(layers[1])
            backbone.downsample_layers[i] = nn.Sequential(Norm(norm.eps), _behind_norm(norm, conv))


def _conv(layer: nn.Module) -> nn.Conv2d:
    assert isinstance(layer, nn.Conv2d)
    return layer


def _norm(layer: nn.Module) -> LayerNorm2d:
    assert isinstance(layer, LayerNorm2d)
    return layer


def _take_normalisation(model: DetectionModel, stem: nn.Conv2d) -> None:
    """Make the stem accept images in 0 to 1."""
    stem.weight.div_(model.std)
    assert stem.bias is not None
    stem.bias.sub_((stem.weight * model.mean).sum(dim=(1, 2, 3)))
    model.normalize = "none"


def _centre_outputs(conv: nn.Conv2d) -> None:
    """Subtract the mean over its output channels from a convolution."""
    conv.weight.sub_(conv.weight.mean(dim=0, keepdim=True))
    assert conv.bias is not None
    conv.bias.sub_(conv.bias.mean())


def _of_grn(grn: nn.Module) -> tuple[Tensor, float]:
    gamma, eps = grn.gamma, grn.eps
    assert not isinstance(grn, GRN), "the model is not folded"
    assert isinstance(gamma, Tensor)
    assert isinstance(eps, float)
    return gamma, eps


def _as_conv(linear: nn.Linear) -> nn.Conv2d:
    """Return a linear layer as a 1 × 1 convolution."""
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1)
    conv.weight = nn.Parameter(linear.weight.detach()[:, :, None, None].clone())
    conv.bias = nn.Parameter(linear.bias.detach().clone())
    return conv


def _behind_norm(norm: nn.LayerNorm, conv: nn.Conv2d) -> nn.Conv2d:
    """Return a convolution without padding that absorbs scale and shift of the preceding LayerNorm."""
    assert conv.bias is not None
    weight = conv.weight.detach()  # [O, C, k, k]
    conv.bias = nn.Parameter(conv.bias.detach() + weight.sum(dim=(2, 3)) @ norm.bias)
    weight = weight * norm.weight.reshape(1, -1, 1, 1)
    conv.weight = nn.Parameter(weight - weight.mean(dim=1, keepdim=True))
    return conv
