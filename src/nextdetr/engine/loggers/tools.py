"""What a tool that logs runs is asked to do, and what it needs to be installed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from nextdetr.errors import ConfigError
from nextdetr.extras import is_installed

__all__ = ["PACKAGES", "Logged", "Outcome", "Place", "Status", "Tool", "check_packages"]

#: What each tool is called, and the package that it comes with, which is what pip calls it too.
PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
TITLES = {"tensorboard": "TensorBoard's events", "mlflow": "MLflow", "wandb": "Weights & Biases"}

#: How a session of a run ended.
Status = Literal["finished", "interrupted", "failed"]

#: Where a run is to be found: texts by name, ``look`` among them, which tells people where to look.
Place = dict[str, str]


@dataclass(frozen=True, slots=True)
class Logged:
    """The run that is logged.

    Attributes:
        name: what people call it.
        directory: its folder.
        command: ``train``, ``pretrain`` or ``graft``.
        settings: all of them, as plain values.
        resumed: whether it goes on.
    """

    name: str
    directory: Path
    command: str
    settings: Mapping[str, Any]
    resumed: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run.

    Attributes:
        metrics: the best scores, or the last loss.
        per_class: AP by class, 0 to 1; None where undefined.
        weights: the file with the weights to use.
        files: others that are worth keeping: settings, table, report, curves.
    """

    metrics: Mapping[str, float | None]
    per_class: Mapping[str, float | None] = field(default_factory=dict)
    weights: Path | None = None
    files: Sequence[Path] = ()

    def existing(self) -> list[Path]:
        """The files that were written, the weights among them."""
        return [path for path in (*self.files, self.weights) if path is not None and path.is_file()]


class Tool(ABC):
    """One tool, for one session of a run. All methods may fail with anything; whoever calls them sees to that."""

    name: ClassVar[str]
    remote: ClassVar[bool] = True  # whether a call may wait for a network

    @property
    def title(self) -> str:
        """What people call the tool."""
        return TITLES[self.name]

    @abstractmethod
    def start(self, run: Logged, earlier: Place) -> Place:
        """Begin, or go on with the run at the place ``earlier``, which is empty for a new one; return where it is now."""

    @abstractmethod
    def add(self, values: Mapping[str, float], step: int, when: float) -> None:
        """Take the numbers of an epoch.

        Args:
            values: loss, scores and so on, by name; the same ones may come twice.
            step: of the optimiser.
            when: seconds since 1970.
        """

    @abstractmethod
    def finish(self, outcome: Outcome, step: int, when: float) -> None:
        """Take what came of the run."""

    @abstractmethod
    def close(self, status: Status) -> None:
        """End the session."""


def check_packages(tools: Sequence[str] | None) -> None:
    """See that what ``--log`` names is installed.

    Raises:
        ConfigError: it is not; the message has the ``pip install``.
    """
    for tool in tools or ():
        package = PACKAGES.get(tool)
        if package is not None and not is_installed(package):
            raise ConfigError(
                f"--log {tool} needs the package {package}: pip install {package}, or all of them with "
                "pip install 'nextdetr[logging]'."
            )
