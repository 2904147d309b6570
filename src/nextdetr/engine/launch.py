"""Devices, precision and processes of a run, with lightning-fabric."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment, find_free_network_port
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from nextdetr.config import GraftConfig, PretrainConfig, TrainConfig
from nextdetr.data.raw import plural
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
    """Start the processes of a run, one per device, and end them with it.

    This process is the first. The others are new processes that only call ``run(given)``, so a script continues once after
    it. If torchrun or Slurm started the processes, none is added, and each of them runs the whole script.

    Args:
        given: argument of ``run``.
        config: the same, merged with the settings of a resumed run; has accelerator, devices and precision.
        run: the function that calls this; must be importable by name.

    Raises:
        ConfigError: this machine has no such devices, torchrun started another number of processes, or a logging tool is
            not installed.
        NextDETRError: the error of another process, if this one has no error of its own.
    """
    check_packages(config.log)
    _check_torchrun(config)
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
        yield fabric  # until the first process releases it, see children.join
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


def _check_torchrun(config: TrainConfig | PretrainConfig | GraftConfig) -> None:
    """Check that the run takes all processes of torchrun: otherwise each would train a detector of its own.

    Raises:
        ConfigError: it does not.
    """
    started = int(os.environ.get("WORLD_SIZE", "1")) if TorchElasticEnvironment.detect() else config.devices
    if started == config.devices:
        return
    if "devices" not in type(config).model_fields:
        raise ConfigError("nextdetr graft runs in one process: start it without torchrun.")
    raise ConfigError(
        f"torchrun started {plural(started, 'process')}, but --devices is {config.devices}: give --devices {started}."
    )


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
        if place.index is not None and place.type != "cpu":  # there is only one
            devices = [place.index]
    several: str | DDPStrategy = "ddp" if environment is None else _Strategy()
    try:
        return Fabric(
            accelerator=accelerator, devices=devices, precision=config.precision,
            strategy="auto" if config.devices == 1 else several, plugins=None if environment is None else [environment],
        )  # fmt: skip
    except MisconfigurationException as error:
        raise ConfigError(
            f"--devices {config.devices}: this machine has {plural(torch.cuda.device_count(), 'GPU')} to use; give a lower "
            "number, or --accelerator cpu."
        ) from error
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"--accelerator {accelerator} with --devices {config.devices}: {error}") from error


class _Environment(LightningEnvironment):
    """Rank of this process; Fabric's own launcher would rerun the user's script on each device."""

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


class _Strategy(DDPStrategy):
    """DDP of processes that exist already, in a notebook and at Python's prompt, too.

    Fabric refuses DDP there, as its launcher could not run the script again; it has nothing to start here.
    """

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)


class _Launcher(_SubprocessScriptLauncher):
    @property
    def is_interactive_compatible(self) -> bool:
        return True


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Restore threads, environment and traceback printing: a script continues after the run."""
    hook = sys.excepthook  # torch.distributed wraps it again in each run
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
    """Return the maximum over all processes: decisions by clock or signal must not differ between them."""
    if fabric.world_size == 1:
        return [float(value) for value in values]
    mine = torch.tensor([float(value) for value in values], dtype=torch.float64, device=fabric.device)
    agreed = fabric.all_reduce(mine, reduce_op="max")
    assert isinstance(agreed, Tensor)
    found: list[float] = agreed.tolist()
    return found


def scaler_of(fabric: Fabric) -> Any:
    """Return the float16 loss scaler, whose state is part of the run's; None with other precisions."""
    return getattr(fabric.strategy.precision, "scaler", None)
