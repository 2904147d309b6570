"""Muon: weight matrices follow the orthogonalised momentum of their gradient, all other parameters AdamW.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon) takes the momentum of a matrix's gradient, sets all
its singular values to about one, and steps along the result. So directions that rarely have a large gradient are learnt as
fast as the others. Steps are scaled as in Moonlight (arXiv 2502.16982, section 2.2): their elements are then as large as
AdamW's usually are, and both share the learning rates and the weight decay.

Differences from ``torch.optim.Muon``: kernels of convolutions take part, as matrices of output channels by all else; all
matrices of a shape are orthogonalised together; wide matrices iterate on their Gram matrix, which is smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

__all__ = ["Muon", "hidden_matrices", "orthogonalize"]

MOMENTUM = 0.95
SCALE = 0.2  # typical size of an element of AdamW's step, relative to the learning rate
ITERATIONS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)  # takes singular values from 0.01 on to between 0.7 and 1.2 in five iterations
LEAST_SIDE = 32  # a thinner matrix is a classifier of few classes, box coordinates, or one kernel of a depthwise layer
GRAM_FROM = 1.5  # times as wide as high, from where iterating on the Gram matrix needs fewer operations
OUTPUTS = ("score_head", "class_embed", "sampling_offsets")  # in names: layers with outputs of their own meaning


def hidden_matrices(model: nn.Module) -> set[int]:
    """Ids of the weights between hidden layers: linear layers, and convolutions that mix channels."""
    found = set()
    for name, parameter in model.named_parameters():
        height, width = (parameter.shape[0], parameter[0].numel()) if parameter.ndim in (2, 4) else (0, 0)
        mixes = parameter.ndim == 2 or (parameter.ndim == 4 and parameter.shape[1] >= LEAST_SIDE // 2)
        if mixes and min(height, width) >= LEAST_SIDE and not any(output in name for output in OUTPUTS):
            found.add(id(parameter))
    return found


class Muon(AdamW):
    """AdamW, except for the groups with a true ``orthogonal``, whose parameters are matrices or kernels.

    Args:
        groups, options: as for ``torch.optim.AdamW``. ``fused`` excludes a gradient scaler.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step; arguments and result as for AdamW."""
        every = self.param_groups
        for group in every:
            if group.get("orthogonal"):
                self._step_matrices(group)
        self.param_groups = [group for group in every if not group.get("orthogonal")]
        try:
            loss: float | None = super().step(closure)
        finally:
            self.param_groups = every
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        gradients = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
                self.state[parameter]["step"] = torch.zeros(())  # not used, but AdamW expects one when a state is loaded
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        steps = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov's
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for indices in _by_shape(steps):
            stack = torch.stack([steps[index].flatten(1) for index in indices])
            factor = SCALE * max(stack.shape[1:]) ** 0.5
            for index, step in zip(indices, orthogonalize(stack), strict=True):
                parameters[index].add_(step.view_as(parameters[index]), alpha=-group["lr"] * factor)


def _by_shape(tensors: Sequence[Tensor]) -> list[list[int]]:
    places: dict[tuple[int, int], list[int]] = {}
    for index, tensor in enumerate(tensors):
        places.setdefault((tensor.shape[0], tensor[0].numel()), []).append(index)
    return list(places.values())


def orthogonalize(stack: Tensor) -> Tensor:
    """Move all singular values of matrices near one: U S V^T becomes about U V^T.

    Args:
        stack: [K, M, N].

    Returns:
        [K, M, N] in its dtype. On CUDA the iterations are in bfloat16, as in the original, elsewhere in float32.
    """
    tall = stack.shape[1] > stack.shape[2]
    wide = stack.mT if tall else stack
    wide = wide.to(torch.bfloat16 if stack.is_cuda else torch.float32)
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    gram = not stack.is_cuda and wide.shape[2] > GRAM_FROM * wide.shape[1]
    result = (_by_gram(wide) if gram else _iterated(wide)).to(stack.dtype)
    return result.mT if tall else result


def _iterated(wide: Tensor) -> Tensor:
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide


def _by_gram(wide: Tensor) -> Tensor:
    """The same, as a product of polynomials of the Gram matrix, which commute with it."""
    a, b, c = QUINTIC
    gram, product = wide @ wide.mT, None
    for iteration in range(ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else factor @ product
        if iteration < ITERATIONS - 1:
            gram = factor @ gram @ factor
    assert product is not None
    return product @ wide
