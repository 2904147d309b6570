"""A depthwise convolution whose gradient avoids a slow oneDNN kernel on CPUs.

oneDNN has no depthwise kernel for the weight gradient of channels-last maps: it runs a dense one on blocks of 16 x 16
channels, most of whose results are unused. Both gradients of a depthwise convolution are depthwise convolutions themselves,
for which oneDNN does have a fast kernel:

- input: the output's gradient with the kernel rotated by 180 degrees;
- weight: the input with the output's gradient as the kernel, one image at a time.

Prototypes of the weight gradient were 1.5 times to over 4 times faster (2 shared cores, batch 8, atto at 320 pixels).
The input gradient and the gain for a whole step have not been measured on a quiet machine.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nextdetr.layers.fast import may_run

__all__ = ["DepthwiseConv2d", "depthwise", "depthwise_weight_gradient"]

# Images per convolution in the weight gradient: as many as fit into the cache, in elements.
_CHUNK = 2**18


class DepthwiseConv2d(nn.Conv2d):
    """``nn.Conv2d`` with one group per channel, stride 1, an odd square kernel and same padding; with bias.

    Args:
        channels: C of the map [B, C, H, W].
        kernel_size: an odd number.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [B, C, H, W]."""
        bias = self.bias
        if bias is not None and self.training and torch.is_grad_enabled() and may_run(x):
            out: Tensor = _DepthwiseFunction.apply(x, self.weight, bias)
            return out
        return super().forward(x)


class _DepthwiseFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return depthwise(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = depthwise(grad, weight.flip(2, 3), None) if need_x else None
        grad_weight = depthwise_weight_gradient(x, grad, weight.shape[-1]) if need_weight else None
        grad_bias = grad.sum(dim=(0, 2, 3)) if need_bias else None
        return grad_x, grad_weight, grad_bias


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve [B, C, H, W] with [C, 1, K, K] to a map of the same size."""
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])


def depthwise_weight_gradient(x: Tensor, grad: Tensor, kernel_size: int) -> Tensor:
    """Correlate the input with the output's gradient [B, C, h, w] into [C, 1, K, K].

    The input is [B, C, H, W], of the same size, or larger by K - 1 if the convolution was not padded.
    """
    batch, channels, height, width = x.shape
    inner = grad.shape[-2:]
    padding = (inner[0] + kernel_size - 1 - height) // 2
    images = max(1, min(batch, _CHUNK // (channels * height * width)))
    total = x.new_zeros(channels, kernel_size, kernel_size)
    for maps, kernels in zip(torch.split(x, images), torch.split(grad, images), strict=True):
        count = maps.shape[0] * channels
        # Images become channels side by side, in channels-last memory.
        merged = maps.permute(2, 3, 0, 1).reshape(1, height, width, count).permute(0, 3, 1, 2)
        found = F.conv2d(merged, kernels.reshape(count, 1, *inner), padding=padding, groups=count)
        total += found.view(-1, channels, kernel_size, kernel_size).sum(dim=0)
    return total.unsqueeze(1)
