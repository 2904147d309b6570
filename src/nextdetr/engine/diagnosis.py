"""Error messages for a training that diverged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from nextdetr.engine.state import Cursor
from nextdetr.errors import TrainingError

__all__ = ["non_finite"]


def non_finite(
    model: nn.Module, terms: Mapping[str, Tensor], images: Sequence[str], cursor: Cursor, advice: str
) -> TrainingError:
    """Build the error for a loss that is not finite, after its backward pass.

    Args:
        model: the detector, with gradients.
        terms: the loss terms of this process.
        images: names of the files in this process's batch.
        cursor: position in the run.
        advice: what the user can do about it.
    """
    bad = [name for name, value in terms.items() if not math.isfinite(float(value.detach()))] or ["of another process"]
    norms = {
        name: float(parameter.grad.norm()) for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    largest = sorted(norms, key=lambda name: float("-inf") if math.isnan(norms[name]) else -norms[name])[:5]
    gradients = ", ".join(f"{name} {norms[name]:.3g}" for name in largest)
    return TrainingError(
        f"the loss is not finite in epoch {cursor.epoch + 1}, step {cursor.step + 1} "
        f"(terms {', '.join(bad)}; images {', '.join(images)}; largest gradients {gradients}). "
        f"{advice}"
    )
