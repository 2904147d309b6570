"""What all commands share: options that several of them have, building settings, printing a result."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeVar, get_args

from cyclopts import Parameter
from pydantic import model_validator

from nextdetr.cli.other_tools import own_settings
from nextdetr.cli.output import print_json, say
from nextdetr.config import CommandConfig, GraftConfig, PretrainConfig, TrainConfig, ValConfig, build_config
from nextdetr.config_base import ModelWeights, PartialWeights
from nextdetr.config_file import merge_settings, read_config_file

if TYPE_CHECKING:
    from nextdetr.inference.exported import OpenedExport
    from nextdetr.weights.checkpoint import OpenedModel
    from nextdetr.weights.report import LoadReport

__all__ = [
    "AllowPartial", "GraftOptions", "Json", "PretrainOptions", "Runtime", "TrainOptions", "Verbose", "Weights",
    "is_first_process", "open_told", "print_json", "say", "settings", "split_line", "tell_point", "tell_reports",
]  # fmt: skip

Json = Annotated[
    bool, Parameter(name="--json", negative="", help="Print one JSON object on standard output, and nothing else.")
]
Weights = Annotated[Path | None, Parameter(help=get_args(ModelWeights)[1].description)]
AllowPartial = Annotated[bool, Parameter(negative="", help=get_args(PartialWeights)[1].description)]
Runtime = Annotated[
    Literal["auto", "onnxruntime", "openvino"],
    Parameter(help="Runtime of an exported file (default: the fastest that passed its checks)."),
]
Verbose = Annotated[bool, Parameter(name="--verbose", negative="", help="Show the traceback of an error.")]

C = TypeVar("C", bound=CommandConfig)


class _Options(CommandConfig):
    """Options that a ``--config`` file may complete: ``settings`` checks with it whether they lack another one."""

    @model_validator(mode="after")
    def _one_choice_of_speed(self) -> Self:
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        return self


class TrainOptions(_Options, TrainConfig):
    """Options of ``nextdetr train``."""


class PretrainOptions(_Options, PretrainConfig):
    """Options of ``nextdetr pretrain``."""


class GraftOptions(_Options, GraftConfig):
    """Options of ``nextdetr graft``."""


def is_first_process() -> bool:
    """Whether this process, among several that train together, is the one that prints the result."""
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    return int(getattr(rank_zero_only, "rank", None) or 0) == 0


def settings(kind: type[C], given: C | None, file: str | None = None, *, command: str = "") -> C:
    """Merge the settings of a ``--config`` file of a command with the options, which win."""
    explicit = {} if given is None else {name: getattr(given, name) for name in given.model_fields_set}
    stored = {} if file is None else own_settings(read_config_file(file), command, kind.model_fields, file)
    return build_config(kind, merge_settings(kind, stored, explicit), source=file or "")


def split_line(split: str, count: Mapping[str, int]) -> str:
    """Return a row of a table of splits: how many images and boxes one has."""
    images, boxes = (plural_noun(count[name], noun) for name, noun in (("images", "image"), ("boxes", "box")))
    return f"  {split:<8} {count['images']:>8,} {images:<6} {count['boxes']:>10,} {boxes}"


def plural_noun(count: int, noun: str) -> str:
    """Return the noun alone, for a number in a column of its own."""
    from nextdetr.data.raw import plural

    return plural(count, noun).partition(" ")[2]


def tell_reports(reports: Iterable[LoadReport]) -> None:
    """Report on standard error what was loaded from each weights file, and what was not."""
    for report in reports:
        sys.stderr.write(report.text() + "\n")


def open_told(
    model: str, config: ValConfig, *, weights: Weights, allow_partial: AllowPartial, runtime: Runtime
) -> OpenedModel | OpenedExport:
    """Open the detector of a command that scores it, and say what was loaded and what ``--latency`` chooses."""
    from nextdetr.inference.exported import open_any

    opened, reports = open_any(model, weights=weights, allow_partial=allow_partial, runtime=runtime)
    tell_reports(reports)
    tell_point(opened, config.latency, config.latency_of)
    return opened


def tell_point(opened: OpenedModel | OpenedExport, latency: float | None, times: Path | None) -> None:
    """Say on standard error what ``--latency`` chooses, and where its milliseconds were measured."""
    if latency is None:
        return
    from nextdetr.inference.exported import OpenedExport
    from nextdetr.inference.opened import point_at
    from nextdetr.inference.speed import processor_name

    point = point_at(opened, latency, times)
    sys.stderr.write(f"--latency {latency:g}: {point.text}\n")
    if times is None and point.processor != processor_name():
        model = "CHECKPOINT" if isinstance(opened, OpenedExport) else opened.source  # an exported file has no other points
        sys.stderr.write(
            f"these times are of another processor than this one ({processor_name()}): measure them here with nextdetr "
            f"benchmark {model} --points, and name its benchmark.json as --latency-of\n"
        )
