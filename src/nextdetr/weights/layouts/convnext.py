"""Tensor names and shapes of ConvNeXt checkpoints, brought to ours and back; ours are those of the original repositories.

Layouts: REFERENCE, section 2; the sparse one is that of ConvNeXt V2's FCMAE pre-training (arXiv 2301.00808), whose
convolutions keep their kernels as (positions, in, out). Everything here maps names and reshapes views; only the fold of a
V1 block into a V2 block computes: ``gamma * (W x + b) = (gamma * W) x + gamma * b``, rounded once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nextdetr.errors import WeightsError

__all__ = [
    "POINTWISE_CONVOLUTIONS",
    "check_stem",
    "fold_v1",
    "from_original",
    "from_sparse",
    "from_timm",
    "from_torchvision",
    "from_transformers",
    "to_original",
    "to_timm",
    "to_transformers",
]

#: Widths of the stem of the sizes whose Linear layers are 1x1 convolutions in timm: atto, femto, pico, nano.
POINTWISE_CONVOLUTIONS = frozenset({40, 48, 64, 80})

State = Mapping[str, Tensor]
_Rules = Sequence[tuple[re.Pattern[str], str]]
_PRETRAINING_ONLY = ("decoder.", "mask_token", "proj.", "pred.")


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

_TO_TIMM = _rules(
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

_TO_TRANSFORMERS = _rules(
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

# torchvision numbers the parts of a block's `nn.Sequential`: convolution, (permute), norm, Linear, (GELU), Linear.
_TORCHVISION_BLOCK = {"0": "dwconv", "2": "norm", "3": "pwconv1", "5": "pwconv2"}


def from_original(state: State) -> dict[str, Tensor]:
    """Bring a dense original checkpoint, V2 or V1, to our names: parts that only pre-training has are left out.

    Args:
        state: name -> tensor, with or without the prefix ``encoder.``.
    """
    encoder = {name.removeprefix("encoder."): tensor for name, tensor in state.items() if not _pretraining_only(name)}
    return {name: _shaped(name, tensor) for name, tensor in encoder.items()}


def from_sparse(state: State) -> dict[str, Tensor]:
    """Bring an FCMAE checkpoint of sparse convolutions to our names and shapes, without decoder and mask token.

    Args:
        state: name -> tensor. Kernels are [positions, in, out], or [positions, C] of a depthwise convolution, the position
            x * side + y; biases and GRN's tensors [1, C].

    Raises:
        WeightsError: a kernel is not square.
    """
    dense = {}
    for name, tensor in state.items():
        if _pretraining_only(name):
            continue
        name = re.sub(r"\.(ln|linear)\.(weight|bias)$", r".\2", name.removeprefix("encoder."))
        if name.endswith(".kernel"):
            name, tensor = name.removesuffix("kernel") + "weight", _dense_kernel(name, tensor)
        elif name.endswith(".bias"):
            tensor = tensor.flatten()
        dense[name] = _shaped(name, tensor)
    return dense


def _dense_kernel(name: str, kernel: Tensor) -> Tensor:
    positions = kernel.shape[0] if kernel.ndim in (2, 3) else 0
    side = math.isqrt(positions)
    if side < 1 or side * side != positions:
        raise WeightsError(f"the sparse kernel {name} of shape {list(kernel.shape)} is no square convolution's.")
    if kernel.ndim == 2:  # depthwise: [positions, C]
        kernel = kernel.unsqueeze(1)
    return kernel.permute(2, 1, 0).reshape(kernel.shape[2], kernel.shape[1], side, side).transpose(3, 2)


def from_timm(state: State) -> dict[str, Tensor]:
    """Bring the state of a timm ConvNeXt (V1 or V2, classifier or ``features_only``) to our names and shapes.

    Args:
        state: name -> tensor. A name that no rule knows is kept, so that loading reports it as unexpected.
    """
    return {name: _shaped(name, tensor) for name, tensor in _renamed(state, _TIMM).items()}


def from_transformers(state: State) -> dict[str, Tensor]:
    """Bring the state of a transformers ConvNext or ConvNextV2 model, with or without its prefix, to our names.

    Args:
        state: name -> tensor. A name that no rule knows is kept, so that loading reports it as unexpected.
    """
    bare = {re.sub(r"^convnext(v2)?\.", "", name): tensor for name, tensor in state.items()}
    return {name: _shaped(name, tensor) for name, tensor in _renamed(bare, _TRANSFORMERS).items()}


def from_torchvision(state: State) -> dict[str, Tensor]:
    """Bring the state of a torchvision ConvNeXt (V1) to our names; LayerScale becomes ``gamma`` [C].

    ``features`` alternates between downsampling (even) and stages (odd). A name that no rule knows is kept.
    """
    renamed = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if len(parts) == 4 and parts[0] == "features" and int(parts[1]) % 2 == 0:
            name = f"downsample_layers.{int(parts[1]) // 2}.{parts[2]}.{parts[3]}"
        elif len(parts) == 4 and parts[0] == "features" and parts[3] == "layer_scale":
            name, tensor = f"stages.{int(parts[1]) // 2}.{parts[2]}.gamma", tensor.flatten()
        elif len(parts) == 6 and parts[3] == "block" and parts[4] in _TORCHVISION_BLOCK:
            name = f"stages.{int(parts[1]) // 2}.{parts[2]}.{_TORCHVISION_BLOCK[parts[4]]}.{parts[5]}"
        elif name.startswith("classifier."):
            name = {"0": "norm", "2": "head"}.get(parts[1], name) + "." + parts[-1]
        renamed[name] = tensor
    return renamed


def fold_v1(state: State) -> dict[str, Tensor]:
    """Turn ConvNeXt V1 tensors of our names into V2's: LayerScale goes into ``pwconv2``, GRN is zero.

    Args:
        state: name -> tensor; blocks may have ``gamma`` [C] (LayerScale) or not.

    Raises:
        WeightsError: the stem overlaps (the ``_ols`` variants), or norms have no bias (the ``_rms`` variants).
    """
    check_stem(state)
    folded = {name: tensor for name, tensor in state.items() if not name.endswith(".gamma")}
    for name, gamma in state.items():
        if re.fullmatch(r"stages\.\d+\.\d+\.gamma", name):
            layer = name.removesuffix("gamma") + "pwconv2."
            # In double precision, so that the product is rounded once even from half-precision files.
            weight, bias, scale = state[layer + "weight"], state[layer + "bias"], gamma.double().flatten()
            folded[layer + "weight"] = (weight.double() * scale[:, None]).to(weight.dtype)
            folded[layer + "bias"] = (bias.double() * scale).to(bias.dtype)
    for name in [name for name in folded if name.endswith(".pwconv1.bias")]:
        block, width = name.removesuffix("pwconv1.bias"), folded[name].shape[0]
        for part in ("gamma", "beta"):
            zeros = torch.zeros(1, 1, 1, width, dtype=folded[name].dtype, device=folded[name].device)
            folded.setdefault(f"{block}grn.{part}", zeros)
    return folded


def check_stem(state: State) -> None:
    """Refuse tensors (of our names) of ConvNeXt variants that no block of ours computes.

    Raises:
        WeightsError: the stem is not one 4x4 convolution of stride 4, or the norms are RMS norms.
    """
    stem = state.get("downsample_layers.0.0.weight")
    if "downsample_layers.0.2.weight" in state or (stem is not None and tuple(stem.shape[2:]) != (4, 4)):
        raise WeightsError(
            "it has an overlapping stem (timm's _ols variants), which does not fold into a 4x4 stem of stride 4; "
            "take the variant without _ols."
        )
    if "stages.0.0.norm.weight" in state and "stages.0.0.norm.bias" not in state:
        raise WeightsError("its norms have no bias (timm's _rms variants), so no LayerNorm computes the same.")


def to_original(state: State) -> dict[str, Tensor]:
    """Return the tensors under the original repository's names, which are ours."""
    return dict(state)


def to_timm(state: State) -> dict[str, Tensor]:
    """Return V2 tensors under timm's names and in timm's shapes (GRN [C]; 1x1 convolutions in atto to nano)."""
    stem = state.get("downsample_layers.0.0.bias")
    convolutions = stem is not None and stem.shape[0] in POINTWISE_CONVOLUTIONS
    result = {}
    for name, tensor in _renamed(state, _TO_TIMM).items():
        if ".mlp.grn." in name:
            tensor = tensor.flatten()
        elif convolutions and re.search(r"\.mlp\.fc[12]\.weight$", name):
            tensor = tensor[:, :, None, None]
        result[name] = tensor
    return result


def to_transformers(state: State) -> dict[str, Tensor]:
    """Return V2 tensors under transformers' names (``ConvNextV2ForImageClassification``, or ``ConvNextV2Model``)."""
    return _renamed(state, _TO_TRANSFORMERS)


def _pretraining_only(name: str) -> bool:
    return name.startswith(_PRETRAINING_ONLY)


def _renamed(state: State, rules: _Rules) -> dict[str, Tensor]:
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
