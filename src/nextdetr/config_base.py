"""What the configurations of all commands have in common."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

__all__ = ["CommandConfig", "Latency", "LatencyOf", "LeastConfidence", "Log", "split_commas"]

Latency: TypeAlias = Annotated[
    float | None,
    Field(
        gt=0,
        description="Milliseconds per image: picks image size, queries and layers from the table of train --latency.",
    ),
]
LatencyOf: TypeAlias = Annotated[
    Path | None, Field(description="Times of another machine for --latency, written by nextdetr benchmark there.")
]
LeastConfidence: TypeAlias = Annotated[
    float | None,
    Field(ge=0, le=1, description="Minimum confidence of labels that have one (default: keep all)."),
]


def split_commas(value: Any) -> Any:
    """Return one text or several, each perhaps with commas, as a tuple of their parts; anything else as it is."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list | tuple):
        return tuple(part.strip() for item in value for part in str(item).split(",") if part.strip())
    return value


Log: TypeAlias = Annotated[
    tuple[Literal["csv", "tensorboard", "mlflow", "wandb"], ...] | None,
    BeforeValidator(split_commas),
    Field(description="Where to log the run besides metrics.csv; csv: nowhere else (default: tensorboard, if installed)."),
]


class CommandConfig(BaseModel):
    """Base of all configurations: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    # Each a set of settings that say the same thing in several ways.
    alternatives: ClassVar[tuple[frozenset[str], ...]] = ()
    latency_chooses: ClassVar[bool] = True  # what a training chooses for itself in the end

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_empty(cls, values: Any) -> Any:
        """Refuse ``--data ""``, as an unset variable of the shell leaves it: as a path it is the working directory."""
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if value == "" or (isinstance(value, list | tuple) and "" in value):
                raise ValueError(f"--{name.replace('_', '-')} is empty")
        return values

    @field_validator("device", mode="before", check_fields=False)
    @classmethod
    def _device_of_a_number(cls, value: Any) -> Any:
        """Read ``0``, as other tools call the first GPU, as ``cuda:0``."""
        text = str(value).strip()
        if re.fullmatch(r"\d+", text) and not isinstance(value, bool):
            return f"cuda:{int(text)}"
        if re.fullmatch(r"\d+(,\d+)+", text):
            number = text.count(",") + 1
            many = f"; --devices {number} uses {number} GPUs, and the variable CUDA_VISIBLE_DEVICES={text} says which"
            raise ValueError("names one device, such as cuda:0" + (many if "devices" in cls.model_fields else ""))
        return value

    @model_validator(mode="after")
    def _one_choice_of_speed(self) -> Self:
        """Refuse ``--latency`` beside what it chooses, and another machine's times without it."""
        given = [name for name in ("image_size", "queries", "decoder_layers") if getattr(self, name, None) is not None]
        if getattr(self, "latency_of", None) is not None and getattr(self, "latency", None) is None:
            raise ValueError("--latency-of says whose milliseconds --latency counts: give both")
        if self.latency_chooses and getattr(self, "latency", None) is not None and given:
            option = "--" + given[0].replace("_", "-")
            raise ValueError(f"--latency chooses size, queries and layers: leave {option} out, or --latency")
        return self
