"""The logging tools of one run: started with it, updated each epoch, and never a reason for it to fail."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nextdetr.config import GraftConfig, PretrainConfig, TrainConfig
from nextdetr.engine.loggers.courier import Courier, reason
from nextdetr.engine.loggers.places import Places, read_places
from nextdetr.engine.loggers.tools import Logged, Outcome, Place, Status, Tool
from nextdetr.errors import ConfigError, Interrupted
from nextdetr.extras import is_installed
from nextdetr.files import path_text
from nextdetr.installation import install_command

__all__ = ["RunLogs"]

_log = logging.getLogger(__name__)

START_SECONDS = 90.0  # for a tool to accept a new run
CLOSE_SECONDS = 300.0  # for sending what is left at the end, if nothing fails
SHORT_SECONDS = 30.0  # the same after a failure or an interruption


class RunLogs:
    """Where a run is logged beside ``metrics.csv``; a context manager around its epochs.

    Args:
        config: the run's settings; ``log`` names the tools, None means TensorBoard if it is installed.
        directory: the run's folder; the run is continued if it holds a state.
        command: the command that runs.
        tell: prints a line for the user.
        main: whether this process logs; in others nothing happens.
    """

    def __init__(
        self,
        config: TrainConfig | PretrainConfig | GraftConfig,
        directory: Path,
        command: str,
        tell: Callable[[str], None],
        *,
        main: bool = True,
    ) -> None:
        settings = {name: _plain(value) for name, value in config.model_dump(mode="json").items()}
        resumed = (directory / "last.ckpt").is_file()
        self._run = Logged(_name(directory), directory, command, settings, resumed)
        self._tell = tell
        names = ["tensorboard"] if config.log is None else [name for name in config.log if name != "csv"]
        self._names = list(dict.fromkeys(names)) if main else []
        self._given = config.log is not None
        self._couriers: list[Courier] = []

    @property
    def asked_for(self) -> bool:
        """Whether the user named a tool, and so wants everything logged there."""
        return self._given and bool(self._names)

    def __enter__(self) -> Self:
        """Start the run in every tool.

        Raises:
            ConfigError: a tool that the user named does not accept a new run.
        """
        if not self._names:
            return self
        if not self._given and not is_installed("tensorboard"):
            self._tell(f"No TensorBoard events: the package is not installed ({install_command('logging')}).")
            return self
        places = self._places()
        try:
            for name in self._names:
                self._begin(_open(name, self._tell), places)
        except BaseException as error:
            self._close("failed" if isinstance(error, Exception) else "interrupted")
            raise
        return self

    def _places(self) -> Places:
        known: dict[str, Place] = {}
        try:
            known = read_places(self._run.directory) if self._run.resumed else {}
        except ValueError as error:
            _log.warning("%s The run is logged as a new one.", error)
        return Places(self._run.directory, known)

    def _begin(self, tool: Tool, places: Places) -> None:
        earlier = places[tool.name]

        def start() -> None:
            place = tool.start(replace(self._run, resumed=bool(earlier)), earlier)
            places[tool.name] = place
            if tool.remote and place.get("look"):
                word = "logged" if earlier.get("run_id") != place.get("run_id") else "logged on"
                self._tell(f"{tool.title}: {word} as run {place['run_id']}; {place['look']}")

        courier = Courier(tool)
        courier.send(start)
        self._couriers.append(courier)
        if not courier.wait(START_SECONDS) and tool.remote and not self._run.resumed:
            self._couriers.remove(courier)
            why = "no answer" if courier.error is None else reason(courier.error)
            raise ConfigError(f"--log {tool.name}: the run cannot be logged there ({why}); fix this, or leave it out.")
        courier.tell_failures()

    def add(self, values: Mapping[str, Any], step: int) -> None:
        """Log the numbers of an epoch, at an optimizer step; numbers that are not finite are left out."""
        when, numbers = time.time(), _numbers(values)
        for courier in self._couriers:
            courier.send(lambda tool=courier.tool: tool.add(numbers, step, when))  # type: ignore[misc]

    def end(
        self, step: int, metrics: Mapping[str, float | None], weights: Path,
        per_class: Mapping[str, float | None] | None = None,
    ) -> None:  # fmt: skip
        """Log the result of the run: its scores, AP by class, the weights and the files beside them."""
        names = ("config.yaml", "metrics.csv", "report.html", "pictures/curves.png")
        files = [self._run.directory / name for name in names]
        self.finish(Outcome(metrics, per_class or {}, weights, files), step)

    def finish(self, outcome: Outcome, step: int) -> None:
        """Log an outcome."""
        when = time.time()
        outcome = replace(
            outcome,
            metrics=_numbers(outcome.metrics),
            per_class={path_text(name): value for name, value in outcome.per_class.items()},
        )
        for courier in self._couriers:
            courier.send(lambda tool=courier.tool: tool.finish(outcome, step, when))  # type: ignore[misc]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        self._close("finished" if error is None else "interrupted" if stopped else "failed")

    def _close(self, status: Status) -> None:
        couriers, self._couriers = self._couriers, []
        for courier in couriers:
            courier.send(lambda tool=courier.tool: tool.close(status))  # type: ignore[misc]
        for courier in couriers:
            patient = status == "finished" and courier.error is None
            if not courier.wait(CLOSE_SECONDS if patient else SHORT_SECONDS) and courier.tool.remote:
                self._tell(f"{courier.tool.title} lacks the end of this run; {self._run.directory} has all of it.")


def _open(name: str, tell: Callable[[str], None]) -> Tool:
    """Return a tool.

    Raises:
        ConfigError: its package is installed, but cannot be imported.
    """
    try:
        return _tool(name, tell)
    except ImportError as error:
        raise ConfigError(f"--log {name}: its package cannot be imported ({reason(error)}); reinstall it.") from error


def _tool(name: str, tell: Callable[[str], None]) -> Tool:
    if name == "tensorboard":
        from nextdetr.engine.loggers.board import TensorBoard

        return TensorBoard()
    if name == "mlflow":
        from nextdetr.engine.loggers.mlflow_run import MLflow

        return MLflow()
    from nextdetr.engine.loggers.wandb_run import WandB

    return WandB(tell)


def _name(directory: Path) -> str:
    """Name of a run: its folder, with the run's own name for the head's part of a pre-training."""
    whole = directory.resolve()
    return path_text(f"{whole.parent.name}/head" if whole.name == "head" else whole.name)


def _plain(value: Any) -> Any:
    """A setting in a form that every tool accepts."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return path_text(value) if isinstance(value, str) else value


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
