"""Common parts of the layouts of ConvNeXt backbones; our names are those of the original repositories.

Everything here maps names and reshapes views; only the conversion of V1 blocks to V2 computes: ``gamma * (W x + b) = (gamma
* W) x + gamma * b``, rounded once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from nextdetr.errors import WeightsError
from nextdetr.models.detection import DetectionModel
from nextdetr.weights.layouts.base import Config, Layout, Licence, State, always

__all__ = ["CC_BY_NC", "EPS", "V1_NOTE", "check_stem", "convnext", "fold_v1", "shaped"]

EPS = 1e-6  # of every norm of a ConvNeXt, including ours
V1_NOTE = "ConvNeXt V1: LayerScale is folded into the second pointwise layer, and GRN starts at zero."
CC_BY_NC = always(
    "CC-BY-NC-4.0", "the published ConvNeXt V2 weights may not be used commercially (CC BY-NC 4.0)."
)  # fmt: skip
_LAYER_SCALE = re.compile(r"(\.gamma|\.layer_scale|\.layer_scale_parameter)$")


def convnext(
    kind: str,
    stem: str,
    block: str,
    rename: Callable[[State], dict[str, Tensor]],
    *,
    licence: Licence,
    sparse: bool = False,
    types: tuple[str, ...] = (),
) -> Layout:
    """Build the layout of a ConvNeXt backbone.

    Args:
        kind: name; ``convnext-v1…`` is converted to V2.
        stem: pattern for the stem's convolution, present in every such file; its first group is the prefix.
        block: pattern for a name of the first block.
        rename: converts tensors to our names.
        licence: licence of files that state none.
        sparse: whether its kernels are those of sparse convolutions.
        types: see ``Layout``.
    """
    first = kind.startswith("convnext-v1")
    stems, blocks = re.compile(stem), re.compile(block)

    def matches(names: Collection[str], metadata: Mapping[str, str]) -> str | None:
        found = next((match for name in names if (match := stems.fullmatch(name))), None)
        if found is None or not any(blocks.search(name) for name in names):
            return None
        if any(name.endswith(".kernel") for name in names) != sparse:
            return None
        return str(found[1]) if _is_first(names) == first or sparse else None

    def to_ours(state: State, model: DetectionModel | None = None, config: Config = None) -> dict[str, Tensor]:
        return fold_v1(rename(state)) if first else rename(state)

    return Layout(kind, True, licence, EPS, matches, to_ours, rename, types=types)


def _is_first(names: Collection[str]) -> bool:
    """Whether a ConvNeXt is a V1: LayerScale in its blocks, or no GRN."""
    grn = any(".grn." in name for name in names)
    return not grn or any(_LAYER_SCALE.search(name) and ".grn." not in name for name in names)


def fold_v1(state: State) -> dict[str, Tensor]:
    """Convert ConvNeXt V1 tensors with our names to V2: LayerScale is folded into ``pwconv2``, GRN is zero.

    Args:
        state: name -> tensor; blocks may have ``gamma`` [C] (LayerScale) or not.

    Raises:
        WeightsError: the stem overlaps (``_ols`` variants), or norms have no bias (``_rms`` variants).
    """
    check_stem(state)
    folded = {name: tensor for name, tensor in state.items() if not name.endswith(".gamma")}
    for name, gamma in state.items():
        if re.fullmatch(r"stages\.\d+\.\d+\.gamma", name):
            layer = name.removesuffix("gamma") + "pwconv2."
            # In double precision, so that the product is rounded only once, even for half-precision files.
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
    """Refuse tensors (with our names) of ConvNeXt variants that our blocks do not support.

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


def shaped(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor with one of our names in our shape."""
    if name.endswith((".grn.gamma", ".grn.beta")):
        return tensor.reshape(1, 1, 1, -1)
    if name.endswith((".pwconv1.weight", ".pwconv2.weight")):  # timm's smaller sizes have 1x1 convolutions here
        return tensor.flatten(1)
    return tensor
