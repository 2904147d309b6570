"""A recipe in progress: what the user left open, and what was chosen for it; the choices are in ``engine/recipe.py``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nextdetr.config import TrainConfig
from nextdetr.engine.fine_tune import FineTuning
from nextdetr.engine.statistics import DataStats, Machine

__all__ = ["SIZES", "Plan", "Recipe"]

SIZES = (320, 640)  # smallest and largest input, pixels; BCCD was measured at 320


@dataclass(slots=True)
class Recipe:
    """Settings and reasons.

    Attributes:
        config: the settings, all filled in.
        reasons: one line per choice, for the user.
        chosen: the settings that were chosen, by name.
        seconds: expected time per image in training; None if it is not known, or does not matter (on a GPU).
    """

    config: TrainConfig
    reasons: list[str] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def text(self) -> str:
        """Return all reasons under a heading; empty if there are none."""
        if not self.reasons:
            return ""
        head = "Settings chosen for this data and machine (options that you give come first; config.yaml has all settings):"
        return "\n".join([head, *(f"  {reason}" for reason in self.reasons)])


class Plan:
    """A recipe in progress: has the attributes of the settings, including the chosen ones."""

    def __init__(
        self, config: TrainConfig, data: DataStats, machine: Machine, stride: int, teacher_gflop: float | None
    ) -> None:
        self.config, self.data, self.machine, self.stride = config, data, machine, stride
        self.teacher_gflop = teacher_gflop
        self.given = {name for name in config.model_fields_set if getattr(config, name) not in (None, "auto")}
        self.chosen: dict[str, Any] = {}
        self.reasons: list[str] = []
        self.within: int | None = None
        self.tuning: FineTuning | None = None
        self.gflop: float | None = None
        self.other_backbone = config.backbone_weights is not None  # its weights are not those of the detector

    def open(self, *names: str) -> bool:
        """Whether the user left all of these settings open."""
        return not self.given & set(names)

    def get(self, name: str) -> Any:
        """Return a setting: as chosen so far, else as given, else its default."""
        return self.chosen.get(name, getattr(self.config, name))

    def choose(self, reason: str, **values: Any) -> None:
        """Choose the settings that are still open; the reason is recorded if there is one and any was open."""
        fresh = {name: value for name, value in values.items() if name not in self.given}
        self.chosen |= fresh
        if fresh and reason:
            shown = " ".join(_shown(name.replace("_", "-"), value) for name, value in fresh.items())
            self.reasons.append(f"{shown}: {reason}")

    @property
    def trained(self) -> bool:
        """Whether the run starts from a whole detector's weights that were trained with labels."""
        named = self.config.weights is not None or self.config.model.endswith(".safetensors")
        return named and not (self.tuning is not None and self.tuning.without_labels)

    @property
    def size(self) -> int:
        """Side of the square input, pixels: as chosen or given, else that of the weights, else the largest."""
        own = None if self.tuning is None else self.tuning.image_size
        return int(self.get("image_size") or own or SIZES[1])

    @property
    def shipped(self) -> str:
        """Name of the model in tables of the shipped ones; for a checkpoint that of its network, if it is one of these."""
        model = str(self.get("model"))
        network = self.tuning.model if self.tuning is not None and model.endswith(".safetensors") else None
        return network or model

    @property
    def on_gpu(self) -> bool:
        """Whether the run uses an NVIDIA GPU."""
        return self.machine.device == "cuda"

    @property
    def together(self) -> int:
        """Images per optimizer step."""
        return int(self.get("batch_size")) * self.config.accumulate * self.machine.processes


def _shown(option: str, value: Any) -> str:
    """Return an option as it is written on the command line."""
    if isinstance(value, bool):
        return f"--{option}" if value else f"--no-{option}"
    return f"--{option} {value:g}" if isinstance(value, float) else f"--{option} {value}"
