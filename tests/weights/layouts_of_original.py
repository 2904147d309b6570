"""Checkpoints with the exact names and shapes of the original ConvNeXt V2 code, made here of random numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from nextdetr.models.convnextv2 import SIZES

SMALL = ((1, 1, 2, 1), (40, 80, 160, 320))  # widths of atto, fewer blocks


def original(depths, dims, *, classes: int | None = 1000, device: str = "cpu") -> dict[str, Tensor]:
    """A dense fine-tuned checkpoint, written out from the original code's module names."""

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device)

    state = {"downsample_layers.0.0.weight": rand(dims[0], 3, 4, 4), "downsample_layers.0.0.bias": rand(dims[0])}
    state |= {"downsample_layers.0.1.weight": rand(dims[0]), "downsample_layers.0.1.bias": rand(dims[0])}
    for i in (1, 2, 3):
        state |= {f"downsample_layers.{i}.0.weight": rand(dims[i - 1]), f"downsample_layers.{i}.0.bias": rand(dims[i - 1])}
        state[f"downsample_layers.{i}.1.weight"] = rand(dims[i], dims[i - 1], 2, 2)
        state[f"downsample_layers.{i}.1.bias"] = rand(dims[i])
    for i, (depth, c) in enumerate(zip(depths, dims, strict=True)):
        for j in range(depth):
            p = f"stages.{i}.{j}."
            state |= {p + "dwconv.weight": rand(c, 1, 7, 7), p + "dwconv.bias": rand(c)}
            state |= {p + "norm.weight": rand(c), p + "norm.bias": rand(c)}
            state |= {p + "pwconv1.weight": rand(4 * c, c), p + "pwconv1.bias": rand(4 * c)}
            state |= {p + "grn.gamma": rand(1, 1, 1, 4 * c), p + "grn.beta": rand(1, 1, 1, 4 * c)}
            state |= {p + "pwconv2.weight": rand(c, 4 * c), p + "pwconv2.bias": rand(c)}
    if classes is not None:
        state |= {"norm.weight": rand(dims[-1]), "norm.bias": rand(dims[-1])}
        state |= {"head.weight": rand(classes, dims[-1]), "head.bias": rand(classes)}
    return state


def sparse(dense: dict[str, Tensor]) -> dict[str, Tensor]:
    """The FCMAE checkpoint of the same numbers: sparse kernels, (1, C) biases, `.ln` and `.linear`, decoder and mask token.

    A kernel's position is x * side + y: entry (y, x) of the dense kernel stands at position x * side + y.
    """
    state = {}
    for name, tensor in dense.items():
        if name.startswith(("norm.", "head.")):
            continue
        layer, part = name.rsplit(".", 1)
        stem = layer.startswith("downsample_layers.0.")  # the stem is dense in the original too
        if tensor.ndim == 4 and part == "weight" and not stem:
            out, inside, side, _ = tensor.shape
            kernel = torch.empty(side * side, inside, out)
            for y in range(side):
                for x in range(side):
                    kernel[x * side + y] = tensor[:, :, y, x].T
            state[f"encoder.{layer}.kernel"] = kernel[:, 0] if layer.endswith("dwconv") else kernel
        elif ".grn." in name or (part == "bias" and not stem and layer.endswith(("dwconv", ".1"))):
            state[f"encoder.{name}"] = tensor.reshape(1, -1)
        elif ".pwconv" in name:
            state[f"encoder.{layer}.linear.{part}"] = tensor
        elif not stem:
            state[f"encoder.{layer}.ln.{part}"] = tensor
        else:
            state[f"encoder.{name}"] = tensor
    width = dense["downsample_layers.3.1.bias"].shape[0]
    state |= {
        "mask_token": torch.randn(1, 512, 1, 1),
        "proj.weight": torch.randn(512, width, 1, 1),
        "proj.bias": torch.randn(512),
    }
    state |= {"decoder.0.dwconv.weight": torch.randn(512, 1, 7, 7), "pred.weight": torch.randn(3072, 512, 1, 1)}
    return state | {"pred.bias": torch.randn(3072)}


def v1(dense: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same as a ConvNeXt V1 checkpoint: LayerScale in place of GRN."""
    state = {name: tensor for name, tensor in dense.items() if ".grn." not in name}
    return state | {
        name.replace("pwconv2.bias", "gamma"): torch.randn_like(tensor)
        for name, tensor in dense.items()
        if name.endswith("pwconv2.bias")
    }


def one_stage(size: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A size's widths with one block a stage: all names and shapes, a fraction of the memory."""
    return (1, 1, 1, 1), SIZES[size].dims
