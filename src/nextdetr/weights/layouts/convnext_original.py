"""Checkpoints of the ConvNeXt repositories, V2 and V1: their names are ours. Layouts: REFERENCE, section 2."""

from __future__ import annotations

from torch import Tensor

from nextdetr.weights.layouts.base import State, always
from nextdetr.weights.layouts.convnext import CC_BY_NC, convnext, shaped

__all__ = ["BLOCK", "LAYOUTS", "PRETRAINING_ONLY", "STEM", "from_original", "to_original"]

PRETRAINING_ONLY = ("decoder.", "mask_token", "proj.", "pred.")
STEM, BLOCK = r"(.*?)(?:encoder\.)?downsample_layers\.0\.0\.weight", r"stages\.0\.0\.dwconv\."


def from_original(state: State) -> dict[str, Tensor]:
    """Convert a dense original checkpoint, V2 or V1, to our names, without the parts that only pre-training has.

    Args:
        state: name -> tensor, with or without the prefix ``encoder.``.
    """
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(PRETRAINING_ONLY)}
    encoder = {name.removeprefix("encoder."): tensor for name, tensor in kept.items()}
    return {name: shaped(name, tensor) for name, tensor in encoder.items()}


def to_original(state: State) -> dict[str, Tensor]:
    """Return the tensors under the original repository's names, which are ours."""
    return dict(state)


LAYOUTS = (
    convnext("convnextv2-original", STEM, BLOCK, from_original, licence=CC_BY_NC),
    convnext("convnext-v1-original", STEM, BLOCK, from_original, licence=always("unknown")),
)
