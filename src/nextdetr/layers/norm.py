"""BatchNorm, LayerNorm over the channels of a map, and Global Response Normalization (GRN).

GRN: "ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders", arXiv 2301.00808, section 3, algorithm 1.

Differences from the paper, and reasons:

- ``gamma * (x * n) + beta + x`` is computed as ``x * (gamma * n + 1) + beta``: the same algebra, but the bracket has one
  value per image and channel, so the map is read twice and written once.
- Norm, mean and quotient are computed in float32 if the map is float16 or bfloat16: a sum of squares over a whole map
  exceeds float16's 65,504 in ordinary networks.
- In training mode the gradient is hand-written, with fewer passes over the map than autograd. A prototype saved 0 to 20 %
  of a single block on 2 shared CPU cores, most in the early stages; the gain for a whole step has not been measured.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from nextdetr.layers.fast import may_run

__all__ = ["GRN", "BatchNorm2d", "LayerNorm2d", "norm_gradient", "response_statistics"]


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of each position of [B, C, H, W].

    A channels-last map is normalised without a copy; the result is always in channels-last memory.

    Args:
        channels: C.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, H, W]."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class BatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` that can also train on a single value per channel: one image with a 1 × 1 map.

    A single value has no deviation. It is normalised with the running statistics, as in evaluation, where torch's own
    raises an error; the statistics are not updated.

    The gradient is first brought to the map's memory layout: a slice of a longer list of positions, as in the decoder,
    would otherwise take torch's slow general path on a CPU.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        """Normalise [B, C, H, W]."""
        if self.training and input.numel() == input.shape[1] and self.running_mean is not None:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        out = super().forward(input)
        if self.training and out.requires_grad and may_run(out, any_precision=True):
            layout = torch.contiguous_format if out.is_contiguous() else torch.channels_last
            out.register_hook(lambda gradient: gradient.contiguous(memory_format=layout))  # type: ignore[no-untyped-call]
        return out


class GRN(nn.Module):
    """Global Response Normalization of a channels-last map [B, H, W, C]; the identity at initialisation.

    Args:
        channels: C.
        eps: added to the mean of the channels' norms.

    Attributes:
        gamma: [1, 1, 1, C], zero at initialisation.
        beta: [1, 1, 1, C], zero at initialisation.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape and dtype of ``x`` [B, H, W, C]."""
        if self.training and torch.is_grad_enabled() and may_run(x, any_device=True, any_precision=True):
            out: Tensor = _GRNFunction.apply(x, self.gamma, self.beta, self.eps)
            return out
        norm, mean = response_statistics(x, self.eps)
        return _scale_and_shift(x, self.gamma, self.beta, norm / mean)

    def extra_repr(self) -> str:
        """Channels and eps, for ``print``."""
        return f"{self.gamma.shape[-1]}, eps={self.eps}"


def response_statistics(x: Tensor, eps: float, dim: tuple[int, ...] = (1, 2)) -> tuple[Tensor, Tensor]:
    """Norm of every channel over the positions (the dimensions ``dim``), and its mean over the channels plus eps.

    Both keep the dimensions of ``x`` [B, H, W, C]: [B, 1, 1, C] and [B, 1, 1, 1]; at least float32.
    """
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    if x.requires_grad and torch.is_grad_enabled():  # its gradient handles a norm of 0
        norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=dtype)
    else:  # the same sum in about a third of the time on a CPU, where the norm of a channels-last map has no fast kernel
        wide = x.to(dtype)
        norm = (wide * wide).sum(dim=dim, keepdim=True).sqrt_()
    return norm, norm.mean(dim=-1, keepdim=True) + eps


def norm_gradient(grad_response: Tensor, norm: Tensor, mean: Tensor) -> Tensor:
    """Factor of the map in its gradient through the norms, dn / n; arguments as for ``response_statistics``.

    With r = n / m and dr its gradient: dn = (dr - mean(dr * r)) / m.
    """
    grad_norm = (grad_response - (grad_response * (norm / mean)).mean(dim=-1, keepdim=True)) / mean
    # A channel that is zero everywhere has no direction: the gradient of its norm is taken as 0, as in autograd.
    return (grad_norm / norm).masked_fill(norm == 0, 0.0)


def _scale_and_shift(x: Tensor, gamma: Tensor, beta: Tensor, response: Tensor) -> Tensor:
    return torch.addcmul(beta.to(x.dtype), x, (gamma * response + 1).to(x.dtype))


class _GRNFunction(torch.autograd.Function):
    """GRN with a gradient of three passes over the map.

    With g the gradient of the output, n the norm, m the mean plus eps and r = n / m of C channels, and the sums over one
    image's positions: dr = gamma * sum(g * x); dn = (dr - mean(dr * r)) / m; dx = g * (gamma * r + 1) + x * dn / n.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
        norm, mean = response_statistics(x, eps)
        ctx.save_for_backward(x, gamma, norm, mean)
        return _scale_and_shift(x, gamma, beta, norm / mean)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, gamma, norm, mean = ctx.saved_tensors
        need_x, need_gamma, need_beta, _ = ctx.needs_input_grad
        response = norm / mean  # [B, 1, 1, C]
        # The products are float32 regardless of the map: loss scaling makes float16 gradients overflow here.
        product = grad.to(norm.dtype) * x  # [B, H, W, C]
        grad_scale = product.sum(dim=(1, 2), keepdim=True)  # [B, 1, 1, C]
        grad_gamma = (grad_scale * response).sum(dim=0, keepdim=True).to(gamma.dtype) if need_gamma else None
        grad_beta = grad.sum(dim=(0, 1, 2), keepdim=True, dtype=norm.dtype).to(gamma.dtype) if need_beta else None
        grad_x = None
        if need_x:
            toward_x = norm_gradient(grad_scale * gamma, norm, mean)
            # The product is no longer needed; reuse its memory for the result.
            grad_x = torch.mul(grad, gamma * response + 1, out=product).addcmul_(x, toward_x).to(x.dtype)
        return grad_x, grad_gamma, grad_beta, None
