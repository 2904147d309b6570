"""What the configurations of all commands have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

__all__ = ["CommandConfig"]


class CommandConfig(BaseModel):
    """Base of all configurations: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    # Each a set of settings that say the same thing in several ways.
    alternatives: ClassVar[tuple[frozenset[str], ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_empty(cls, values: Any) -> Any:
        """Refuse ``--data ""``, as an unset variable of the shell leaves it: as a path it is the working directory."""
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if value == "" or (isinstance(value, list | tuple) and "" in value):
                raise ValueError(f"--{name.replace('_', '-')} is empty")
        return values
