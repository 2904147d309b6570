"""Tensor names of public ConvNeXt checkpoints, brought to ours, which are those of the original repositories."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

__all__ = ["from_timm", "from_transformers"]

_Rules = Sequence[tuple[re.Pattern[str], str]]


def _rules(*pairs: tuple[str, str]) -> _Rules:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


# The first rule that matches the start of a name replaces what it matched. timm's `features_only` models spell
# `stages_1` for `stages.1`.
_TIMM = _rules(
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

_TRANSFORMERS = _rules(
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


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring the state of a timm ConvNeXt (V1 or V2, classifier or ``features_only``) to our names and shapes.

    Args:
        state: name -> tensor. A name that no rule knows is kept, so that loading reports it as unexpected.
    """
    return {name: _shaped(name, tensor) for name, tensor in _renamed(state, _TIMM).items()}


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring the state of a transformers ConvNext or ConvNextV2 model, with or without its prefix, to our names.

    Args:
        state: name -> tensor. A name that no rule knows is kept, so that loading reports it as unexpected.
    """
    bare = {re.sub(r"^convnext(v2)?\.", "", name): tensor for name, tensor in state.items()}
    return {name: _shaped(name, tensor) for name, tensor in _renamed(bare, _TRANSFORMERS).items()}


def _renamed(state: Mapping[str, Tensor], rules: _Rules) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        rule = next((rule for rule in rules if rule[0].match(name)), None)
        renamed[name if rule is None else rule[0].sub(rule[1], name, count=1)] = tensor
    return renamed


def _shaped(name: str, tensor: Tensor) -> Tensor:
    if name.endswith((".grn.gamma", ".grn.beta")):
        return tensor.reshape(1, 1, 1, -1)
    if name.endswith((".pwconv1.weight", ".pwconv2.weight")):  # timm's smaller sizes have 1x1 convolutions here
        return tensor.flatten(1)
    return tensor
