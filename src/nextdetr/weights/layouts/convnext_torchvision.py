"""Checkpoints of torchvision's ConvNeXt, which is V1."""

from __future__ import annotations

from torch import Tensor

from nextdetr.weights.layouts.base import State, always
from nextdetr.weights.layouts.convnext import convnext

__all__ = ["LAYOUTS", "from_torchvision"]

# torchvision numbers the parts of a block's `nn.Sequential`: convolution, (permute), norm, Linear, (GELU), Linear.
_TORCHVISION_BLOCK = {"0": "dwconv", "2": "norm", "3": "pwconv1", "5": "pwconv2"}


def from_torchvision(state: State) -> dict[str, Tensor]:
    """Convert the state of a torchvision ConvNeXt (V1) to our names; LayerScale becomes ``gamma`` [C].

    ``features`` alternates between downsampling (even) and stages (odd). Unknown names are kept.
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


_REMARK = "torchvision's code is BSD-3-Clause; of its weights it states no licence."
LAYOUTS = (
    convnext(
        "convnext-v1-torchvision", r"(.*?)features\.0\.0\.weight", r"features\.1\.0\.block\.0\.", from_torchvision,
        licence=always("unknown", _REMARK),
    ),
)  # fmt: skip
