"""Checkpoints of timm's ConvNeXt, V2 and V1, classifiers and ``features_only`` models."""

from __future__ import annotations

import re

from torch import Tensor

from nextdetr.weights.layouts.base import State
from nextdetr.weights.layouts.classes import IMAGENET_HEADS
from nextdetr.weights.layouts.convnext import CC_BY_NC, convnext, shaped
from nextdetr.weights.layouts.names import renamed_once, rules

__all__ = ["LAYOUTS", "POINTWISE_CONVOLUTIONS", "from_timm", "to_timm"]

#: Stem widths of the sizes with 1x1 convolutions instead of Linear layers in timm: atto, femto, pico, nano.
POINTWISE_CONVOLUTIONS = frozenset({40, 48, 64, 80})

# timm's `features_only` models write `stages_1` for `stages.1`.
_TIMM = rules(
    (r"stem[._](\d)\.", r"downsample_layers.0.\1."),
    (r"stages[._](\d+)\.downsample\.(\d)\.", r"downsample_layers.\1.\2."),
    (r"stages[._](\d+)\.blocks\.(\d+)\.conv_dw\.", r"stages.\1.\2.dwconv."),
    (r"stages[._](\d+)\.blocks\.(\d+)\.mlp\.fc([12])\.", r"stages.\1.\2.pwconv\3."),
    (r"stages[._](\d+)\.blocks\.(\d+)\.mlp\.grn\.weight$", r"stages.\1.\2.grn.gamma"),
    (r"stages[._](\d+)\.blocks\.(\d+)\.mlp\.grn\.bias$", r"stages.\1.\2.grn.beta"),
    (r"stages[._](\d+)\.blocks\.(\d+)\.(norm\.|gamma$)", r"stages.\1.\2.\3"),
    (r"head\.norm\.", "norm."),
    (r"head\.fc\.", "head."),
)

_TO_TIMM = rules(
    (r"downsample_layers\.0\.(\d)\.", r"stem.\1."),
    (r"downsample_layers\.(\d+)\.(\d)\.", r"stages.\1.downsample.\2."),
    (r"stages\.(\d+)\.(\d+)\.dwconv\.", r"stages.\1.blocks.\2.conv_dw."),
    (r"stages\.(\d+)\.(\d+)\.pwconv([12])\.", r"stages.\1.blocks.\2.mlp.fc\3."),
    (r"stages\.(\d+)\.(\d+)\.grn\.gamma$", r"stages.\1.blocks.\2.mlp.grn.weight"),
    (r"stages\.(\d+)\.(\d+)\.grn\.beta$", r"stages.\1.blocks.\2.mlp.grn.bias"),
    (r"stages\.(\d+)\.(\d+)\.norm\.", r"stages.\1.blocks.\2.norm."),
    (r"norm\.", "head.norm."),
    (r"head\.", "head.fc."),
)


def from_timm(state: State) -> dict[str, Tensor]:
    """Convert the state of a timm ConvNeXt (V1 or V2, classifier or ``features_only``) to our names and shapes.

    Args:
        state: name -> tensor. Unknown names are kept, so that loading reports them as unexpected.
    """
    return {name: shaped(name, tensor) for name, tensor in renamed_once(state, _TIMM).items()}


def to_timm(state: State) -> dict[str, Tensor]:
    """Return V2 tensors with timm's names and shapes (GRN [C]; 1x1 convolutions in atto to nano)."""
    stem = state.get("downsample_layers.0.0.bias")
    convolutions = stem is not None and stem.shape[0] in POINTWISE_CONVOLUTIONS
    result = {}
    for name, tensor in renamed_once(state, _TO_TIMM).items():
        if ".mlp.grn." in name:
            tensor = tensor.flatten()
        elif convolutions and re.search(r"\.mlp\.fc[12]\.weight$", name):
            tensor = tensor[:, :, None, None]
        result[name] = tensor
    return result


def _licence_of_first(classes: int | None) -> tuple[str, tuple[str, ...]]:
    if classes in IMAGENET_HEADS:
        return "Apache-2.0", ()
    remark = "timm's ImageNet classifiers are Apache-2.0, but its DINOv3 weights are not: see where it is from."
    return "unknown", (remark,)


_STEM, _BLOCK = r"(.*?)stem[._]0\.weight", r"stages[._]0\.blocks\.0\.conv_dw\."
LAYOUTS = (
    convnext("convnextv2-timm", _STEM, _BLOCK, from_timm, licence=CC_BY_NC, types=("convnextv2_*",)),
    convnext("convnext-v1-timm", _STEM, _BLOCK, from_timm, licence=_licence_of_first, types=("convnext_*",)),
)
