"""GRN fused with the following linear layer, without writing the map between them.

GRN ("ConvNeXt V2", arXiv 2301.00808, section 3) scales each channel of an image and adds a constant. The weight of a linear
layer can absorb both: ``linear(x * s + beta)`` is ``x`` times ``weight * s`` plus ``weight @ beta + bias``, where ``s`` has
one value per image and channel. The map, the largest of a block, is then neither written nor read again, and in the
gradient all sums over positions become a product with the output's gradient, which the weight needs anyway.

Each image then has its own weight, which is only faster if the map has more positions than the layer has outputs;
otherwise, and if something observes the map in between (a hook) or records the operations (compilation, export, autocast),
the two layers run one after the other.

Without gradients more can be saved on a CPU: ``grn_mlp`` takes a few rows of the map at a time through the previous linear
layer, GELU and the sums of squares, so that these find the map in the cache, and computes linear layers as 1x1
convolutions, whose kernel adds the bias on the fly, while ``linear`` first fills its output with it. This saves a fifth of
a block's time at stride 4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from nextdetr.layers.fast import may_run
from nextdetr.layers.norm import GRN, norm_gradient, response_statistics

__all__ = ["by_rows", "grn_linear", "grn_mlp"]

# Elements of the widened map that pass through the layers together; 0.5 to 2 million were equally fast.
_AT_ONCE = 2**20
# Positions per output channel from which the fused product was faster.
_POSITIONS = 2


def grn_linear(x: Tensor, grn: nn.Module, linear: nn.Linear) -> Tensor:
    """Return ``linear(grn(x))`` for a map [B, H, W, D], as [B, H, W, C]; fused if that is faster."""
    if not (isinstance(grn, GRN) and _fuses(x, grn, linear)):
        out: Tensor = linear(grn(x))
        return out
    batch, height, width, inside = x.shape
    out = _GRNLinearFunction.apply(
        x.reshape(batch, height * width, inside), grn.gamma, grn.beta, linear.weight, linear.bias, grn.eps
    )
    return out.view(batch, height, width, -1)


def grn_mlp(
    x: Tensor,
    widen: nn.Linear,
    act: nn.Module,
    grn: nn.Module,
    narrow: nn.Linear,
    *,
    norm: nn.Module | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Return ``residual + narrow(grn(act(widen(norm(x)))))``; in evaluation without gradients in blocks of rows.

    Args:
        x: the map, [B, H, W, C].
        widen: linear layer from C to D.
        act: GELU, or another elementwise function.
        grn: GRN, or its folded form without ``beta``.
        narrow: linear layer from D to C.
        norm: LayerNorm over C, or None.
        residual: [B, H, W, C] to add, or None.
    """
    layers = (widen, act, grn, narrow)
    if by_rows(x, *layers, *(() if norm is None else (norm,))):
        images = [
            _image_by_rows(image, layers, norm, None if residual is None else residual[i : i + 1])
            for i, image in enumerate(torch.split(x, 1))
        ]
        return images[0] if len(images) == 1 else torch.cat(images)
    y = act(widen(x if norm is None else norm(x)))
    out = grn_linear(y, grn, narrow)
    return out if residual is None else residual + out


def by_rows(x: Tensor, *layers: nn.Module) -> bool:
    """Whether ``grn_mlp`` processes the map in blocks of rows."""
    return not torch.is_grad_enabled() and may_run(x, *layers) and x.numel() > 0


def _image_by_rows(
    x: Tensor, layers: tuple[nn.Linear, nn.Module, nn.Module, nn.Linear], norm: nn.Module | None, residual: Tensor | None
) -> Tensor:
    """``grn_mlp`` of one image, [1, H, W, C]."""
    widen, act, grn, narrow = layers
    rows = max(1, _AT_ONCE // (x.shape[2] * widen.out_features))
    widened = []
    squares = x.new_zeros(widen.out_features)
    for part in torch.split(x, rows, dim=1):
        y: Tensor = act(_pointwise(part if norm is None else norm(part), widen.weight, widen.bias))
        squares += y.flatten(0, 2).square().sum(dim=0)
        widened.append(y)
    response = squares.sqrt_()
    gamma, beta, eps = grn.gamma, getattr(grn, "beta", None), grn.eps
    assert isinstance(gamma, Tensor)
    assert isinstance(eps, float)
    weight = narrow.weight * (gamma.flatten() * (response / (response.mean() + eps)) + 1)
    bias = narrow.bias if beta is None else torch.addmv(narrow.bias, narrow.weight, beta.flatten())
    out = x.new_empty((*x.shape[:3], narrow.out_features))
    for i, y in enumerate(widened):
        place = slice(i * rows, (i + 1) * rows)
        narrowed = _pointwise(y, weight, bias)
        if residual is None:
            out[:, place] = narrowed
        else:
            torch.add(residual[:, place], narrowed, out=out[:, place])
    return out


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``linear`` of a map [B, H, W, D] as a convolution."""
    return functional.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


def _fuses(x: Tensor, grn: GRN, linear: nn.Linear) -> bool:
    return (
        (grn.training or not torch.is_grad_enabled())  # evaluation with gradients uses autograd, as in GRN
        and may_run(x, grn, linear, any_device=True)
        and x.shape[1] * x.shape[2] >= _POSITIONS * linear.out_features
    )


class _GRNLinearFunction(torch.autograd.Function):
    """With n the norms [B, D], m their mean plus eps, r = n / m, s = gamma * r + 1 and W the weight [C, D].

    Forward: x (W s)^T + W beta + bias. Backward, with g the output's gradient and G = g^T x [B, C, D]:
    dW = sum(G * s) + sum(g) beta^T; ds = sum over C of G * W; and from there as in GRN:
    dgamma = ds * r; dr = ds * gamma; dn = (dr - mean(dr * r)) / m; dx = g (W s) + x * dn / n.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        norm, mean = response_statistics(x, eps, dim=(1,))  # [B, 1, D], [B, 1, 1]
        ctx.save_for_backward(x, gamma, beta, weight, norm, mean)
        scaled = weight * (gamma[0] * (norm / mean) + 1)  # [B, C, D]
        shift = torch.addmv(bias, weight, beta.flatten())  # [C]
        return torch.bmm(x, scaled.transpose(1, 2)).add_(shift)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, beta, weight, norm, mean = ctx.saved_tensors
        grad = grad.contiguous()
        response = norm / mean  # [B, 1, D]
        scale = gamma[0] * response + 1  # [B, 1, D]
        moments = torch.bmm(grad.transpose(1, 2), x)  # [B, C, D]
        grad_shift = grad.sum(dim=(0, 1))  # [C]
        grad_scale = (moments * weight).sum(dim=1, keepdim=True)  # [B, 1, D]
        need = ctx.needs_input_grad
        grad_x = None
        if need[0]:
            grad_x = torch.bmm(grad, weight * scale).addcmul_(x, norm_gradient(grad_scale * gamma[0], norm, mean))
        return (
            grad_x,
            (grad_scale * response).sum(dim=0).view_as(gamma) if need[1] else None,
            (grad_shift @ weight).view_as(beta) if need[2] else None,
            torch.addr((moments * scale).sum(dim=0), grad_shift, beta.flatten()) if need[3] else None,
            grad_shift if need[4] else None,
            None,
        )
