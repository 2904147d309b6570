"""Devices, precision and processes of a run, by lightning-fabric."""

from __future__ import annotations

from lightning_fabric import Fabric

from nextdetr.config import Precision
from nextdetr.errors import ConfigError

__all__ = ["launch"]


def launch(accelerator: str, devices: int, precision: Precision) -> Fabric:
    """Start the processes of a run.

    Args:
        accelerator: auto, cpu, cuda or mps.
        devices: processes, one device each.
        precision: arithmetic of the model.

    Raises:
        ConfigError: this machine has no such devices.
    """
    try:
        fabric = Fabric(
            accelerator=accelerator, devices=devices, precision=precision, strategy="auto" if devices == 1 else "ddp"
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"--accelerator {accelerator} with --devices {devices}: {error}") from error
    fabric.launch()
    return fabric
