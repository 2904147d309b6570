"""``nextdetr info``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from nextdetr.cli.common import AllowPartial, Json, Verbose, Weights, print_json, say, tell_reports

if TYPE_CHECKING:
    from nextdetr.inference.speed import SpeedTable
    from nextdetr.models.summary import Summary

__all__ = ["info"]

SIZE = 640  # pixels, for the GFLOP


def info(
    model: Annotated[str, Parameter(help="A shipped name, a model YAML, a checkpoint or an exported file.")],
    *,
    image_size: Annotated[
        int | None, Parameter(help="Side of the square input to count GFLOP for, pixels (default: 640).")
    ] = None,
    profile: Annotated[bool, Parameter(negative="", help="Also measure the time of each row on this machine.")] = False,
    plot: Annotated[
        Path | None, Parameter(help="Image file for a plot of the latency table, if the model has one.")
    ] = None,
    weights: Weights = None,
    allow_partial: AllowPartial = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show a model's rows, parameters and GFLOP (2 per multiply-add); with --profile, what each row costs.

    Of an exported file, show what it takes and gives, and where it comes from.

    Example: `nextdetr info rtdetr-l-convnextv2-atto --profile`.
    """
    from nextdetr.confidence import confidence_facts, confidence_lines
    from nextdetr.errors import ConfigError
    from nextdetr.inference.header import exported_file, is_exported, read_metadata, summarize_export, summary_lines

    if is_exported(model):
        if weights is not None or profile or image_size is not None:
            raise ConfigError(
                f"{model}: an exported file has its weights inside, its own image size, and no rows: leave --weights, "
                "--image-size and --profile out."
            )
        found = summarize_export(model)
        table = _table(read_metadata(exported_file(model)), model, plot)
        if json:
            print_json({"command": "info", "model": model, **found, **_speed(table)})
            return
        say("\n".join(summary_lines(found)))
        _show_table(table)
        return
    from nextdetr.inference.exported import require_network

    require_network(model)
    from nextdetr.models.summary import summarize
    from nextdetr.weights.checkpoint import read_metrics
    from nextdetr.weights.licences import TEACHER, TEACHER_LICENCE
    from nextdetr.weights.start import open_detector

    opened, reports = open_detector(model, weights=weights, allow_partial=allow_partial)
    tell_reports(reports)
    stated = ("weights_licence", "source_weights", TEACHER, TEACHER_LICENCE)
    origin: dict[str, Any] = {key: opened.metadata[key] for key in stated if key in opened.metadata}
    known = confidence_facts(opened.metadata, opened.classes)
    table = _table(opened.metadata, model, plot)
    summary = summarize(opened.model, SIZE if image_size is None else image_size, profile=profile)
    if json:
        print_json({"command": "info", "model": model, **summary.to_json(), **origin, **known, **_speed(table)})
        return
    _show(summary)
    say(
        f"\n{model}: {summary.parameters:,} parameters ({summary.trainable_parameters:,} trained), "
        f"{summary.gflop:.2f} GFLOP at {summary.image_size} px"
    )
    if opened.trained:
        metrics = read_metrics(opened.metadata)
        scored = [(name, metrics.get(name)) for name in ("AP", "AP50", "AP75")]
        scores = ", ".join(f"{name} {value:.4f}" for name, value in scored if isinstance(value, int | float))
        say(f"classes: {', '.join(opened.classes)}; image size {opened.image_size}; {scores or 'not scored yet'}")
    for line in confidence_lines(known):
        say(line)
    if origin:
        say(
            f"licence of the weights: {origin.get('weights_licence', 'unknown')}; "
            f"started from: {origin.get('source_weights', 'unknown')}"
        )
    if TEACHER in origin:
        say(f"taught by: {origin[TEACHER]}; licence of those weights: {origin.get(TEACHER_LICENCE, 'unknown')}")
    _show_table(table)


def _table(metadata: Mapping[str, str], model: str, plot: Path | None) -> SpeedTable | None:
    """Read the table of speeds, and draw it where that was asked for."""
    from nextdetr.errors import ConfigError
    from nextdetr.inference.speed import read_table
    from nextdetr.inference.speed_text import draw_points

    table = read_table(metadata, model)
    if plot is not None and table is None:
        raise ConfigError(f"{model}: it has no table of speeds to draw: train it with --latency, or leave --plot out.")
    if plot is not None and table is not None:
        draw_points(table, plot)
    return table


def _speed(table: SpeedTable | None) -> dict[str, Any]:
    return {} if table is None else {"speed": table.to_json()}


def _show_table(table: SpeedTable | None) -> None:
    if table is None:
        return
    from nextdetr.inference.speed_text import plot_lines, table_lines

    say("\n" + "\n".join([*table_lines(table), "", *plot_lines(table)]))


def _show(summary: Summary) -> None:
    """Print the table; the columns of the cost only where it was measured."""
    costs = [row.profile for row in summary.rows if row.profile is not None]
    total = sum(cost.seconds for cost in costs)
    measured = f"  {'ms':>8} {'share':>6} {'GFLOP':>8} {'GFLOP/s':>8}" if costs else ""
    say(f"{'row':>4}  {'maps':<6} {'from':<14} {'n':>2} {'parameters':>12}{measured}  {'module':<18} arguments")
    for row in summary.rows:
        cost = row.profile
        columns = ""
        if cost is not None:
            share = cost.seconds / total if total else 0.0
            columns = f"  {1000 * cost.seconds:>8.2f} {share:>6.1%} {cost.gflop:>8.3f} {cost.gflop_per_second:>8.1f}"
        say(
            f"{row.index:>4}  {_range(row.maps):<6} {row.from_!s:<14} {row.repeats:>2} {row.parameters:>12,}{columns}  "
            f"{row.module:<18} {row.arguments}"
        )
    if costs:
        gflop = sum(cost.gflop for cost in costs)
        speed = gflop / total if total else 0.0
        say(f"{'all rows':<43}  {1000 * total:>8.2f} {1:>6.1%} {gflop:>8.3f} {speed:>8.1f}")


def _range(maps: tuple[int, ...]) -> str:
    """Return the indices of a row's maps, which are consecutive: "1-4", "5", or nothing for the decoder."""
    return "-".join(str(index) for index in dict.fromkeys((maps[0], maps[-1]))) if maps else ""
