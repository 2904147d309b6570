"""Parameter groups, and the learning rate as a function of the run's progress.

AdamW (arXiv 1711.05101) with RT-DETR's groups (arXiv 2304.08069, section 5.1): the backbone has a rate of its own; norms,
GRN and biases are not decayed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from nextdetr.models.detection import DetectionModel

__all__ = ["WARMUP_STEPS", "build_optimizer", "parameter_groups", "rate_factor", "set_rate", "undecayed"]

WARMUP_STEPS = 2000
FINAL_RATE = 0.01


def parameter_groups(
    model: DetectionModel, learning_rate: float, weight_decay: float, backbone_factor: float
) -> list[dict[str, Any]]:
    """Split the parameters into backbone and head, each with and without decay.

    Args:
        model: the detector.
        learning_rate: peak rate of the head.
        weight_decay: decay of matrices and kernels.
        backbone_factor: the backbone's rate as a factor of the head's.

    Returns:
        Non-empty groups with ``params``, ``lr``, ``peak_rate``, ``weight_decay`` and ``name``.
    """
    rows = list(model.rows)[: model.backbone_rows]
    backbone = {id(parameter) for row in rows for parameter in row.parameters()}
    spared = undecayed(model)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in backbone, id(parameter) in spared), []).append(parameter)
    result = []
    for (in_backbone, no_decay), parameters in groups.items():
        rate = learning_rate * (backbone_factor if in_backbone else 1.0)
        name = ("backbone" if in_backbone else "head") + (", no decay" if no_decay else "")
        decay = 0.0 if no_decay else weight_decay
        result.append({"params": parameters, "lr": rate, "peak_rate": rate, "weight_decay": decay, "name": name})
    return result


def undecayed(model: nn.Module) -> set[int]:
    """Ids of norms' parameters, biases, and GRN's; by name, as GRN's tensors have four dimensions in some files."""
    found = set()
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if parameter.ndim <= 1 or parts[-1] == "bias" or parts[-1] == "in_proj_bias" or "grn" in parts:
            found.add(id(parameter))
    return found


def build_optimizer(
    model: DetectionModel, *, learning_rate: float, weight_decay: float, backbone_factor: float
) -> torch.optim.Optimizer:
    """AdamW over :func:`parameter_groups`, one fused kernel per group."""
    groups = parameter_groups(model, learning_rate, weight_decay, backbone_factor)
    return AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), weight_decay=weight_decay, fused=True)


def rate_factor(progress: float, step: int, *, warmup: float, flat: float) -> float:
    """Factor of the peak rate: a linear rise, a plateau, then half a cosine down to 0.01 (DEIM, arXiv 2412.04234).

    Args:
        progress: share of the run that is over, 0 to 1.
        step: optimiser steps taken.
        warmup: share of the run in which the rate rises; never longer than ``WARMUP_STEPS``.
        flat: share of the run at which the fall begins.
    """
    rise = max(progress / warmup if warmup > 0 else 1.0, (step + 1) / WARMUP_STEPS)
    if rise < 1:
        return max(rise, 1e-3)
    if progress <= flat:
        return 1.0
    fall = min(1.0, (progress - flat) / max(1e-9, 1 - flat))
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * fall))


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group to ``factor`` of its peak rate; return the head's rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_rate"] * factor
    return max(float(group["lr"]) for group in optimizer.param_groups)
