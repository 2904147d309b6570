"""Interface of the tools that log runs, and the packages that they need."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from nextdetr.errors import ConfigError
from nextdetr.extras import is_installed
from nextdetr.installation import install_command

__all__ = ["PACKAGES", "Logged", "Outcome", "Place", "Status", "Tool", "check_packages"]

#: Title of each tool, and the package that it comes with, by its name on PyPI.
PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
TITLES = {"tensorboard": "TensorBoard's events", "mlflow": "MLflow", "wandb": "Weights & Biases"}

#: How a session of a run ended.
Status = Literal["finished", "interrupted", "failed"]

#: Where to find a run: texts by name, including ``look``, which says how to open it.
Place = dict[str, str]


@dataclass(frozen=True, slots=True)
class Logged:
    """The run that is logged.

    Attributes:
        name: name of the run.
        directory: its folder.
        command: ``train``, ``pretrain`` or ``graft``.
        settings: all settings, as plain values.
        resumed: whether the run is resumed.
    """

    name: str
    directory: Path
    command: str
    settings: Mapping[str, Any]
    resumed: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a run.

    Attributes:
        metrics: the best scores, or the last loss.
        per_class: AP by class, 0 to 1; None if undefined.
        weights: the file with the weights to use.
        files: other files worth keeping: settings, table, report, curves.
    """

    metrics: Mapping[str, float | None]
    per_class: Mapping[str, float | None] = field(default_factory=dict)
    weights: Path | None = None
    files: Sequence[Path] = ()

    def existing(self) -> list[Path]:
        """The files that were written, including the weights."""
        return [path for path in (*self.files, self.weights) if path is not None and path.is_file()]


class Tool(ABC):
    """One tool, for one session of a run. All methods may raise anything; the caller handles it."""

    name: ClassVar[str]
    remote: ClassVar[bool] = True  # whether a call may wait for a network

    @property
    def title(self) -> str:
        """Display name of the tool."""
        return TITLES[self.name]

    @abstractmethod
    def start(self, run: Logged, earlier: Place) -> Place:
        """Start, or continue the run at ``earlier`` (empty for a new one); return where it is stored."""

    @abstractmethod
    def add(self, values: Mapping[str, float], step: int, when: float) -> None:
        """Log the numbers of an epoch.

        Args:
            values: loss, scores and so on, by name; may be repeated.
            step: optimizer step.
            when: seconds since 1970.
        """

    @abstractmethod
    def finish(self, outcome: Outcome, step: int, when: float) -> None:
        """Log the result of the run."""

    @abstractmethod
    def close(self, status: Status) -> None:
        """End the session."""


def check_packages(tools: Sequence[str] | None) -> None:
    """Check that the tools named by ``--log`` are installed.

    Raises:
        ConfigError: one is not; the message has the ``pip install`` command.
    """
    for tool in tools or ():
        package = PACKAGES.get(tool)
        if package is not None and not is_installed(package):
            raise ConfigError(
                f"--log {tool} needs the package {package}: pip install {package}, or all of them with "
                f"{install_command('logging')}."
            )
