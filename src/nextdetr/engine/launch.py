"""Devices, precision and processes of a run, by lightning-fabric."""

from __future__ import annotations

from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from nextdetr.config import Precision
from nextdetr.errors import ConfigError
from nextdetr.preprocess import choose_device

__all__ = ["largest", "launch", "scaler_of"]


def launch(accelerator: str, devices: int, precision: Precision, *, device: str | None = None) -> Fabric:
    """Start the processes of a run.

    Args:
        accelerator: auto, cpu, cuda or mps.
        devices: processes, one device each.
        precision: arithmetic of the model.
        device: the one device of a run of one process, such as ``cuda:1``, in place of ``accelerator``.

    Raises:
        ConfigError: this machine has no such devices.
    """
    chosen: int | list[int] = devices
    if device is not None:
        if devices > 1:
            raise ConfigError(f"--device {device} is one device: with --devices {devices} give --accelerator.")
        place = choose_device(device)
        accelerator = place.type
        if place.index is not None and place.type != "cpu":  # of which there is one
            chosen = [place.index]
    try:
        fabric = Fabric(
            accelerator=accelerator, devices=chosen, precision=precision, strategy="auto" if devices == 1 else "ddp"
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"--accelerator {accelerator} with --devices {devices}: {error}") from error
    fabric.launch()
    return fabric


def largest(fabric: Fabric, *values: float) -> list[float]:
    """Return the largest of all processes' values: what hangs on a clock or a signal must not differ among them."""
    if fabric.world_size == 1:
        return [float(value) for value in values]
    mine = torch.tensor([float(value) for value in values], dtype=torch.float64, device=fabric.device)
    agreed = fabric.all_reduce(mine, reduce_op="max")
    assert isinstance(agreed, Tensor)
    found: list[float] = agreed.tolist()
    return found


def scaler_of(fabric: Fabric) -> Any:
    """Return the loss scaler of float16, whose state belongs to a run's; None with other precisions."""
    return getattr(fabric.strategy.precision, "scaler", None)
