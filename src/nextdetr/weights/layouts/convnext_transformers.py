"""Checkpoints of transformers' ConvNext and ConvNextV2, with or without the head's prefix."""

from __future__ import annotations

import re

from torch import Tensor

from nextdetr.weights.layouts.base import State, always
from nextdetr.weights.layouts.convnext import CC_BY_NC, convnext, shaped
from nextdetr.weights.layouts.names import renamed_once, rules

__all__ = ["LAYOUTS", "from_transformers", "to_transformers"]

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
    """Bring the state of a transformers ConvNext or ConvNextV2 model, with or without its prefix, to our names.

    Args:
        state: name -> tensor. A name that no rule knows is kept, so that loading reports it as unexpected.
    """
    bare = {re.sub(r"^convnext(v2)?\.", "", name): tensor for name, tensor in state.items()}
    return {name: shaped(name, tensor) for name, tensor in renamed_once(bare, _TRANSFORMERS).items()}


def to_transformers(state: State) -> dict[str, Tensor]:
    """Return V2 tensors under transformers' names (``ConvNextV2ForImageClassification``, or ``ConvNextV2Model``)."""
    return renamed_once(state, _TO_TRANSFORMERS)


_STEM = r"(.*?)(?:convnextv2\.|convnext\.)?embeddings\.patch_embeddings\.weight"
_BLOCK = r"stages\.0\.layers\.0\.dwconv\."
LAYOUTS = (
    convnext("convnextv2-transformers", _STEM, _BLOCK, from_transformers, licence=CC_BY_NC),
    convnext("convnext-v1-transformers", _STEM, _BLOCK, from_transformers, licence=always("unknown")),
)
