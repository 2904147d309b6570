"""What all commands share: options that several of them have, building settings, printing a result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from cyclopts import Parameter

from nextdetr.cli.output import print_json, say
from nextdetr.config import CommandConfig, build_config
from nextdetr.config_file import merge_settings, read_config_file

__all__ = ["Json", "Runtime", "Verbose", "Weights", "is_first_process", "print_json", "say", "settings"]

Json = Annotated[
    bool, Parameter(name="--json", negative="", help="Print one JSON object on standard output, and nothing else.")
]
Weights = Annotated[
    Path | None, Parameter(help="Weights for MODEL: ours, official RT-DETR's, transformers' or ultralytics'.")
]
Runtime = Annotated[
    Literal["auto", "onnxruntime", "openvino"],
    Parameter(help="What runs an exported file (default: the fastest that is installed)."),
]
Verbose = Annotated[bool, Parameter(name="--verbose", negative="", help="Show the traceback of an error.")]

C = TypeVar("C", bound=CommandConfig)


def is_first_process() -> bool:
    """Whether this process, among several that train together, is the one that prints the result."""
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    return int(getattr(rank_zero_only, "rank", None) or 0) == 0


def settings(kind: type[C], given: C | None, file: str | None = None) -> C:
    """Merge the settings of a ``--config`` file with the options, which win."""
    explicit = {} if given is None else {name: getattr(given, name) for name in given.model_fields_set}
    stored = {} if file is None else read_config_file(file)
    return build_config(kind, merge_settings(kind, stored, explicit), source=file or "")
