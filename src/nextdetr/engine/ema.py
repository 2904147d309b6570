"""Exponential moving average of the weights (Polyak averaging), which is validated and saved.

RT-DETR ramps a decay of 0.9999 up over 2,000 steps. A run on 200 images has about 1,200 steps in all, so the ramp here is
(1 + t) / (10 + t): the average spans about a tenth of the steps so far, whatever the length of the run.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

__all__ = ["ModelEMA"]


class ModelEMA:
    """Average of a model's parameters and buffers (BatchNorm statistics).

    Args:
        model: the model in training.
        decay: largest decay, 0 to 1.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999) -> None:
        self.module = copy.deepcopy(model).eval()
        self.module.requires_grad_(False)
        self.decay = decay
        self.steps = 0
        self._pairs: tuple[list[Tensor], list[Tensor], list[tuple[Tensor, Tensor]]] | None = None

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's current weights."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        averaged, current, counters = self._match(model)
        torch._foreach_lerp_(averaged, current, 1 - decay)
        for own, other in counters:
            own.copy_(other)

    def state_dict(self) -> dict[str, object]:
        """State for resuming."""
        return {"module": self.module.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from :meth:`state_dict`."""
        module = state["module"]
        steps = state["steps"]
        assert isinstance(module, dict)
        assert isinstance(steps, int)
        self.module.load_state_dict(module)
        self.steps = steps

    def _match(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor], list[tuple[Tensor, Tensor]]]:
        if self._pairs is None:  # the tensors stay the same objects during training
            other = model.state_dict()
            # One that several layers share has several names, and must not be averaged once for each.
            named = {id(own): (name, own) for name, own in self.module.state_dict(keep_vars=True).items()}
            pairs = [(own.detach(), other[name]) for name, own in named.values()]
            floats = [(a, b) for a, b in pairs if a.is_floating_point()]
            self._pairs = (
                [a for a, _ in floats],
                [b for _, b in floats],
                [(a, b) for a, b in pairs if not a.is_floating_point()],
            )
        return self._pairs
