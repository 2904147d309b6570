"""BatchNorm with statistics over the batches of all processes; torch's own version runs only on CUDA.

Statistics: Ioffe and Szegedy, arXiv 1502.03167, section 3; shared as in MegDet, arXiv 1711.07240, section 3.2. Sums are
exchanged with a differentiable collective, so that N processes compute, forward and backward, what one would on the N-fold
batch. If the statistics are not shared (one process, evaluation), it is torch's BatchNorm.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nextdetr.layers.norm import BatchNorm2d

__all__ = ["SyncedBatchNorm2d", "synchronize_norms"]


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce whose gradient is all-reduced too: each process's output depends on every process's input."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, value: Tensor) -> Tensor:
        del ctx
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        del ctx
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SyncedBatchNorm2d(BatchNorm2d):
    """``nn.BatchNorm2d`` on [B, C, H, W] over the batches of all processes; parameters and state are the same."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        """Return the normalised map, [B, C, H, W]; a collective call in training."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        values = input.float()  # sums of thousands of values overflow half precision
        count = torch.full((1,), float(values.numel() // values.shape[1]), device=values.device)
        total: Tensor = _SumOverProcesses.apply(torch.cat((values.sum(dim=(0, 2, 3)), count)))
        number, mean = total[-1], total[:-1] / total[-1]
        # In a second pass: the difference of E[x^2] and E[x]^2 would lose the digits of a small variance.
        squares: Tensor = _SumOverProcesses.apply((values - mean[:, None, None]).square().sum(dim=(0, 2, 3)))
        variance = squares / number
        self._track(mean.detach(), variance.detach() * number / (number - 1).clamp(min=1))
        scale = (variance + self.eps).rsqrt() * self.weight.float()
        shift = self.bias.float() - mean * scale
        return (values * scale[:, None, None] + shift[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def synchronize_norms(model: nn.Module) -> int:
    """Convert every BatchNorm2d of the model to a synchronised one, in place; return their number."""
    found = [module for module in model.modules() if type(module) in (nn.BatchNorm2d, BatchNorm2d) and module.affine]
    for module in found:
        module.__class__ = SyncedBatchNorm2d
    return len(found)
