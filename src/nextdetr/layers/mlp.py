"""A multi-layer perceptron: the box heads and query positions of DETR-like decoders.

DETR, arXiv 2005.12872, section 3.2 ("a 3-layer perceptron with ReLU activation"); DEIM uses SiLU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ACTIVATIONS", "MLP"]

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"relu": functional.relu, "silu": functional.silu}


class MLP(nn.Module):
    """Linear layers with an activation after each but the last.

    Args:
        in_features: width of the input.
        hidden: inner width.
        out_features: width of the output.
        layers: number of linear layers, 1 or more.
        act: one of ``ACTIVATIONS``.
    """

    def __init__(self, in_features: int, hidden: int, out_features: int, layers: int, act: str = "relu") -> None:
        super().__init__()
        self.act = ACTIVATIONS[act]
        widths = [in_features, *[hidden] * (layers - 1), out_features]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def zero_last(self) -> None:
        """Initialise so that the output is 0 for every input."""
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features]."""
        *body, last = self.layers
        for layer in body:
            x = self.act(layer(x))
        out: Tensor = last(x)
        return out
