"""``nextdetr benchmark``."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from nextdetr.cli.common import AllowPartial, Json, Verbose, Weights, print_json, say, settings
from nextdetr.config import BenchmarkConfig

__all__ = ["benchmark"]


def benchmark(
    model: Annotated[str, Parameter(help="A checkpoint, an exported file, a model YAML or a shipped name.")],
    *,
    options: Annotated[BenchmarkConfig | None, Parameter(name="*")] = None,
    weights: Weights = None,
    allow_partial: AllowPartial = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Measure the speed of a detector in every installed runtime, next to the limits of the machine.

    Example: `nextdetr benchmark runs/nextdetr-atto-photos/best.safetensors --data photos --precision float32 int8`.
    """
    merged = settings(BenchmarkConfig, options)
    from nextdetr.export.benchmark import benchmark as run
    from nextdetr.measures import scorer

    result = run(
        model, merged, weights=weights, allow_partial=allow_partial, score=scorer(merged.data, merged.split), tell=_note
    )
    if json:
        print_json(result.to_json())
        return
    from nextdetr.data.raw import plural

    for threads, limit in result.ceilings.items():
        machine = f"this machine, {plural(int(threads), 'thread')}"
        say(f"{machine}: {limit.gflops:.0f} GFLOP/s of matrix products, {limit.gigabytes:.1f} GB/s")
    say(f"preprocessing of 1920 x 1080: {1000 * result.seconds_preprocess:.1f} ms (without decoding)\n")
    heads = (
        "runtime",
        "precision",
        "threads",
        "batch",
        "median ms",
        "p95 ms",
        "images/s",
        "peak MB",
        "file MB",
        "share",
        "AP",
    )
    say("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in result.rows:
        name = row.runtime if row.attainable is not None or len(result.rows) == 1 else f"{row.model} ({row.runtime})"
        cells = (
            name, row.precision, row.threads, row.batch, f"{1000 * row.median:.1f}", f"{1000 * row.p95:.1f}",
            f"{row.images_per_second:.2f}", f"{row.memory / 1e6:.0f}", f"{row.bytes / 1e6:.1f}" if row.bytes else "-",
            "-" if row.attainable is None else f"{row.attainable:.0%}", "-" if row.AP is None else f"{row.AP:.4f}",
        )  # fmt: skip
        say("| " + " | ".join(str(cell) for cell in cells) + " |")
    if result.points:
        from nextdetr.inference.speed_text import point_lines

        say("\n" + "\n".join(point_lines(result.points)))
    for advice in result.deploy.values():
        say("\n" + "\n".join(advice.lines()))
    say(f"\nwritten to {result.output}")


def _note(text: str) -> None:
    sys.stderr.write(text + "\n")
