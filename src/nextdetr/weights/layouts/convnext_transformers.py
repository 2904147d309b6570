"""Checkpoints of transformers' ConvNext, ConvNextV2 and DINOv3ConvNext, with or without the head's prefix."""

from __future__ import annotations

import re

from torch import Tensor

from nextdetr.weights.layouts.base import State, always
from nextdetr.weights.layouts.convnext import CC_BY_NC, convnext, shaped
from nextdetr.weights.layouts.names import renamed_once, rules

__all__ = ["LAYOUTS", "from_dinov3", "from_transformers", "to_transformers"]

_TRANSFORMERS = rules(
    (r"embeddings\.patch_embeddings\.", "downsample_layers.0.0."),
    (r"embeddings\.layernorm\.", "downsample_layers.0.1."),
    (r"encoder\.stages\.(\d+)\.downsampling_layer\.(\d)\.", r"downsample_layers.\1.\2."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layernorm\.", r"stages.\1.\2.norm."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(dwconv|pwconv1|pwconv2)\.", r"stages.\1.\2.\3."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.grn\.weight$", r"stages.\1.\2.grn.gamma"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.grn\.bias$", r"stages.\1.\2.grn.beta"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer_scale_parameter$", r"stages.\1.\2.gamma"),
    (r"layernorm\.", "norm."),
    (r"classifier\.", "head."),
)

_TO_TRANSFORMERS = rules(
    (r"downsample_layers\.0\.0\.", "convnextv2.embeddings.patch_embeddings."),
    (r"downsample_layers\.0\.1\.", "convnextv2.embeddings.layernorm."),
    (r"downsample_layers\.(\d+)\.(\d)\.", r"convnextv2.encoder.stages.\1.downsampling_layer.\2."),
    (r"stages\.(\d+)\.(\d+)\.norm\.", r"convnextv2.encoder.stages.\1.layers.\2.layernorm."),
    (r"stages\.(\d+)\.(\d+)\.(dwconv|pwconv1|pwconv2)\.", r"convnextv2.encoder.stages.\1.layers.\2.\3."),
    (r"stages\.(\d+)\.(\d+)\.grn\.gamma$", r"convnextv2.encoder.stages.\1.layers.\2.grn.weight"),
    (r"stages\.(\d+)\.(\d+)\.grn\.beta$", r"convnextv2.encoder.stages.\1.layers.\2.grn.bias"),
    (r"norm\.", "convnextv2.layernorm."),
    (r"head\.", "classifier."),
)


def from_transformers(state: State) -> dict[str, Tensor]:
    """Convert the state of a transformers ConvNext or ConvNextV2 model, with or without its prefix, to our names.

    Args:
        state: name -> tensor. Unknown names are kept, so that loading reports them as unexpected.
    """
    bare = {re.sub(r"^convnext(v2)?\.", "", name): tensor for name, tensor in state.items()}
    return {name: shaped(name, tensor) for name, tensor in renamed_once(bare, _TRANSFORMERS).items()}


def to_transformers(state: State) -> dict[str, Tensor]:
    """Return V2 tensors with transformers' names (``ConvNextV2ForImageClassification``, or ``ConvNextV2Model``)."""
    return renamed_once(state, _TO_TRANSFORMERS)


_DINOV3_RULES = rules(
    (r"(?:model\.)?stages\.(\d+)\.downsample_layers\.(\d)\.", r"downsample_layers.\1.\2."),
    (r"(?:model\.)?stages\.(\d+)\.layers\.(\d+)\.depthwise_conv\.", r"stages.\1.\2.dwconv."),
    (r"(?:model\.)?stages\.(\d+)\.layers\.(\d+)\.layer_norm\.", r"stages.\1.\2.norm."),
    (r"(?:model\.)?stages\.(\d+)\.layers\.(\d+)\.pointwise_conv([12])\.", r"stages.\1.\2.pwconv\3."),
    (r"(?:model\.)?stages\.(\d+)\.layers\.(\d+)\.gamma$", r"stages.\1.\2.gamma"),
    (r"layer_norm\.", "norm."),
)


def from_dinov3(state: State) -> dict[str, Tensor]:
    """Convert the state of a transformers ``dinov3_convnext`` model, which is a ConvNeXt V1, to our names.

    Args:
        state: name -> tensor. Unknown names are kept, so that loading reports them as unexpected.
    """
    return renamed_once(state, _DINOV3_RULES)


_DINOV3 = always(
    "dinov3-license", "Meta's DINOv3 licence has terms of its own for using and passing on its weights: read it before use."
)
_DINOV3_STEM = r"(.*?)(?:model\.)?stages\.0\.downsample_layers\.0\.weight"
_STEM = r"(.*?)(?:convnextv2\.|convnext\.)?embeddings\.patch_embeddings\.weight"
_BLOCK = r"stages\.0\.layers\.0\.dwconv\."
LAYOUTS = (
    convnext("convnextv2-transformers", _STEM, _BLOCK, from_transformers, licence=CC_BY_NC, types=("convnextv2",)),
    convnext("convnext-v1-transformers", _STEM, _BLOCK, from_transformers, licence=always("unknown"), types=("convnext",)),
    convnext(
        "convnext-v1-dinov3",
        _DINOV3_STEM,
        r"stages\.0\.layers\.0\.depthwise_conv\.",
        from_dinov3,
        licence=_DINOV3,
        types=("dinov3_convnext",),
    ),
)
