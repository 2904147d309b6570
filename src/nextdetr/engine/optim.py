"""Parameter groups, and the learning rate as a function of progress.

AdamW (arXiv 1711.05101), or Muon for the matrices of hidden layers (``engine/muon.py``), with RT-DETR's groups (arXiv
2304.08069, section 5.1): the backbone has its own rate; norms, GRN and biases have no weight decay.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import AdamW

from nextdetr.engine.freezing import stages_of
from nextdetr.engine.muon import Muon, hidden_matrices
from nextdetr.models.detection import DetectionModel
from nextdetr.models.resnet import VDStage

__all__ = ["WARMUP_STEPS", "backbone_depths", "build_optimizer", "parameter_groups", "rate_factor", "set_rate", "undecayed"]

WARMUP_STEPS = 2000
FINAL_RATE = 0.01


def parameter_groups(
    model: DetectionModel,
    learning_rate: float,
    weight_decay: float,
    backbone_factor: float,
    layer_decay: float = 1.0,
    *,
    orthogonal: bool = False,
) -> list[dict[str, Any]]:
    """Split the parameters into backbone and head, each with and without decay; with ``layer_decay``, by layer.

    Args:
        model: the detector.
        learning_rate: peak learning rate of the head.
        weight_decay: weight decay of matrices and kernels.
        backbone_factor: learning rate of the backbone's last block as a factor of the head's.
        layer_decay: factor of the rate from each backbone block to the one before it (arXiv 2106.08254, appendix; MAE,
            arXiv 2111.06377, appendix A.1), so that the most general pre-trained layers change least.
        orthogonal: whether the matrices of hidden layers have groups of their own, for Muon.

    Returns:
        Non-empty groups with ``params``, ``lr``, ``peak_rate``, ``weight_decay``, ``backbone`` (True for its groups) and
        ``name``; with ``orthogonal``, also that, True for the groups of matrices.
    """
    depths, deepest = backbone_depths(model)
    spared = undecayed(model)
    matrices = hidden_matrices(model) if orthogonal else set()
    groups: dict[tuple[int | None, bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            depth = depths.get(id(parameter))
            depth = depth if depth is None or layer_decay != 1.0 else deepest
            groups.setdefault((depth, id(parameter) in spared, id(parameter) in matrices), []).append(parameter)
    result = []
    for (depth, no_decay, matrix), parameters in groups.items():
        factor = 1.0 if depth is None else backbone_factor * layer_decay ** (deepest - depth)
        rate = learning_rate * factor
        name = "head" if depth is None else "backbone" if layer_decay == 1.0 else f"backbone, layer {depth}"
        result.append(
            {
                "params": parameters, "lr": rate, "peak_rate": rate, "weight_decay": 0.0 if no_decay else weight_decay,
                "backbone": depth is not None,
                "name": name + (", no decay" if no_decay else "") + (", matrices" if matrix else ""),
                **({"orthogonal": matrix} if orthogonal else {}),
            }
        )  # fmt: skip
    return result


def backbone_depths(model: DetectionModel) -> tuple[dict[int, int], int]:
    """Return the depth of each backbone parameter by its id, and the largest depth.

    In a ConvNeXt or ResNet-vd of one row, the stem has depth 0, block k depth k + 1, and layers between two stages the
    depth of the next block. In a backbone of several rows, each row is one depth.
    """
    rows = list(model.rows)[: model.backbone_rows]
    stages = stages_of(rows[0]) if len(rows) == 1 else []
    if not stages:
        return {id(parameter): depth for depth, row in enumerate(rows) for parameter in row.parameters()}, len(rows) - 1
    depths: dict[int, int] = {}
    block = 0
    for number, (*before, stage) in enumerate(stages):
        depths |= {id(parameter): block + (number > 0) for module in before for parameter in module.parameters()}
        for module in stage.blocks if isinstance(stage, VDStage) else stage.children():
            block += 1
            depths |= {id(parameter): block for parameter in module.parameters()}
    return depths, block


def undecayed(model: nn.Module) -> set[int]:
    """Ids of the parameters of norms, biases and GRN; GRN by name, as its tensors have four dimensions in some files."""
    found = set()
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if parameter.ndim <= 1 or parts[-1] == "bias" or parts[-1] == "in_proj_bias" or "grn" in parts:
            found.add(id(parameter))
    return found


def build_optimizer(
    model: DetectionModel,
    *,
    learning_rate: float,
    weight_decay: float,
    backbone_factor: float,
    layer_decay: float = 1.0,
    fused: bool = True,
    optimizer: Literal["adamw", "muon"] = "adamw",
) -> torch.optim.Optimizer:
    """AdamW or Muon over :func:`parameter_groups`, with one fused kernel per group of AdamW.

    With the float16 loss scaler it must not be ``fused``: a fused optimizer unscales the gradients in its own step, and
    Fabric refuses to clip them before that.
    """
    muon = optimizer == "muon"
    groups = parameter_groups(model, learning_rate, weight_decay, backbone_factor, layer_decay, orthogonal=muon)
    kind = Muon if muon else AdamW
    return kind(groups, lr=learning_rate, betas=(0.9, 0.999), weight_decay=weight_decay, fused=fused)


def rate_factor(progress: float, step: int, *, warmup: float, flat: float) -> float:
    """Factor of the peak rate: linear warm-up, a plateau, then half a cosine down to 0.01 (DEIM, arXiv 2412.04234).

    Args:
        progress: completed fraction of the run, 0 to 1.
        step: optimizer steps taken.
        warmup: fraction of the run for the warm-up, at most ``WARMUP_STEPS``.
        flat: fraction of the run at which the decay begins.
    """
    rise = max(progress / warmup if warmup > 0 else 1.0, (step + 1) / WARMUP_STEPS)
    if rise < 1:
        return max(rise, 1e-3)
    if progress <= flat:
        return 1.0
    fall = min(1.0, (progress - flat) / max(1e-9, 1 - flat))
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * fall))


def set_rate(optimizer: torch.optim.Optimizer, factor: float, *, frozen: bool = False) -> float:
    """Set every group to ``factor`` of its peak rate, or 0 for a ``frozen`` backbone; return the head's rate."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if frozen and group["backbone"] else group["peak_rate"] * factor
    return max(float(group["lr"]) for group in optimizer.param_groups)
