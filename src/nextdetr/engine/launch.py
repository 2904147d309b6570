"""Devices, precision and processes of a run, by lightning-fabric."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment, find_free_network_port
from torch import Tensor

from nextdetr.config import GraftConfig, PretrainConfig, TrainConfig
from nextdetr.engine import children
from nextdetr.engine.loggers.tools import check_packages
from nextdetr.errors import ConfigError, FailedElsewhere, NextDETRError
from nextdetr.tensors import choose_device

__all__ = ["largest", "launch", "scaler_of"]


@contextlib.contextmanager
def launch(
    given: TrainConfig | PretrainConfig | GraftConfig,
    config: TrainConfig | PretrainConfig | GraftConfig,
    run: Callable[..., Any],
) -> Iterator[Fabric]:
    """Start the processes of a run, one a device, and end them with it.

    This process is the first; the others are fresh ones that call ``run(given)`` and nothing else, so that a script goes on
    once after it. Where torchrun or Slurm have started the processes, none is added, and each of them runs all of the
    script.

    Args:
        given: what ``run`` was called with.
        config: the same with a resumed run's settings merged in; says accelerator, devices and precision.
        run: the function that calls this, importable by its name.

    Raises:
        ConfigError: this machine has no such devices, or a tool that is to log the run is not installed.
        NextDETRError: what another process failed with, where this one has no sentence of its own.
    """
    check_packages(config.log)
    if config.devices == 1 or children.started_elsewhere():
        fabric = _fabric(config)
        fabric.launch()
        yield fabric
        return
    place = children.own_place() or children.Place(0, find_free_network_port())
    fabric = _fabric(config, _Environment(place))
    if place.rank:
        children.ready()
        fabric.launch()
        yield fabric  # until the first process lets go, see children.join
        return
    with children.started(given, run, config.devices, place.port) as others, _restored():
        fabric.launch()
        try:
            yield fabric
        except Exception as error:
            if isinstance(error, NextDETRError) and not isinstance(error, FailedElsewhere):
                raise
            failure = others.failure()
            if failure is None:
                raise
            raise failure from error
        torch.distributed.destroy_process_group()


def _fabric(config: TrainConfig | PretrainConfig | GraftConfig, environment: LightningEnvironment | None = None) -> Fabric:
    accelerator: str = config.accelerator
    devices: int | list[int] = config.devices
    if config.device is not None:
        if config.devices > 1:
            raise ConfigError(
                f"--device {config.device} is one device: with --devices {config.devices} give --accelerator."
            )
        place = choose_device(config.device)
        accelerator = place.type
        if place.index is not None and place.type != "cpu":  # of which there is one
            devices = [place.index]
    try:
        return Fabric(
            accelerator=accelerator, devices=devices, precision=config.precision,
            strategy="auto" if config.devices == 1 else "ddp", plugins=None if environment is None else [environment],
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"--accelerator {accelerator} with --devices {config.devices}: {error}") from error


class _Environment(LightningEnvironment):
    """Where this process stands; Fabric's own launcher would run the user's whole script again for each device."""

    def __init__(self, place: children.Place) -> None:
        super().__init__()
        self._place = place

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        return self._place.port

    def local_rank(self) -> int:
        return self._place.rank

    def node_rank(self) -> int:
        return 0


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Leave threads, environment and the printing of tracebacks as they were: a script goes on after the run."""
    hook = sys.excepthook  # torch.distributed wraps it, once for each run
    threads, names = torch.get_num_threads(), ("OMP_NUM_THREADS", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")
    with children.environment_kept(names):
        try:
            yield
        finally:
            sys.excepthook = hook
            torch.set_num_threads(threads)
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


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
