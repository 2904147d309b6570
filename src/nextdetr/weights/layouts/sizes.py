"""Size of a ConvNeXt, from its blocks and the shapes of its convolutions."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from nextdetr.models.convnextv2 import SIZES

__all__ = ["backbone_size", "known_size", "size_name"]

Stages = tuple[int, ...]


def backbone_size(state: Mapping[str, Tensor]) -> tuple[Stages, Stages]:
    """Return depths and dims of a ConvNeXt with our names; empty if it is not one."""
    blocks: dict[int, int] = {}
    dims: dict[int, int] = {}
    for name, tensor in state.items():
        block = re.fullmatch(r"stages\.(\d+)\.(\d+)\.dwconv\.weight", name)
        if block:
            stage = int(block[1])
            blocks[stage] = max(blocks.get(stage, 0), int(block[2]) + 1)
            dims[stage] = tensor.shape[0]
    return tuple(blocks[i] for i in sorted(blocks)), tuple(dims[i] for i in sorted(dims))


def known_size(depths: Stages, dims: Stages) -> str | None:
    """Return the name of a published size, such as ``atto``; otherwise None."""
    return next((name for name, spec in SIZES.items() if (spec.depths, spec.dims) == (depths, dims)), None)


def size_name(depths: Stages, dims: Stages) -> str:
    """Return the size for messages: ``atto``, or depths and widths."""
    known = known_size(depths, dims)
    if known or not depths:
        return known or "unknown"
    return f"depths {','.join(map(str, depths))} and widths {','.join(map(str, dims))}"
