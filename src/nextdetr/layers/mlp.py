"""A stack of linear layers, ReLU between them: the box heads and the query position of DETR-like decoders.

DETR, arXiv 2005.12872, section 3.2 ("a 3-layer perceptron with ReLU activation").
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

__all__ = ["MLP"]


class MLP(nn.Module):
    """Linear layers with a ReLU after each but the last.

    Args:
        in_features: width of the input.
        hidden: width between the layers.
        out_features: width of the output.
        layers: number of linear layers, 1 or more.
    """

    def __init__(self, in_features: int, hidden: int, out_features: int, layers: int) -> None:
        super().__init__()
        widths = [in_features, *[hidden] * (layers - 1), out_features]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def zero_last(self) -> None:
        """Start with an output of 0 for every input."""
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features]."""
        *body, last = self.layers
        for layer in body:
            x = layer(x).relu()
        out: Tensor = last(x)
        return out
