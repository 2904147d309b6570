"""``nextdetr doctor``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from nextdetr.cli.common import Json, Verbose, print_json, say, settings, split_line
from nextdetr.config import DoctorConfig

if TYPE_CHECKING:
    from nextdetr.analysis.doctor.findings import DoctorResult

__all__ = ["doctor"]

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_STEPS = {"read": "reading images", "compare": "comparing", "look closer": "looking closer", "detect": "detecting"}


def doctor(
    data: Annotated[str, Parameter(help="A data set, as for `train --data`.")],
    *,
    options: Annotated[DoctorConfig | None, Parameter(name="*")] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Check a data set: duplicates, leaks between splits, broken images, odd boxes and classes, doubtful labels.

    Exit code 3: training on it would be a waste. Example: `nextdetr doctor photos --output doctor.html`.
    """
    merged = settings(DoctorConfig, options)
    from rich.console import Console
    from rich.progress import Progress

    from nextdetr.analysis.doctor.run import examine

    with Progress(console=Console(file=sys.stderr), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("")

        def progress(step: str, done: int, total: int) -> None:
            bar.update(task, description=_STEPS.get(step, step), completed=done, total=total)

        result = examine(data, merged, progress)
    if json:
        print_json(result.to_json())
    else:
        _show(result)
    return 0 if result.passed else 3


def _show(result: DoctorResult) -> None:
    """Print the result, the most serious findings first."""
    from rich.console import Console
    from rich.text import Text

    from nextdetr.analysis.doctor.findings import headline, some
    from nextdetr.files import path_text

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    say(f"{path_text(result.data)}, read as {result.recognised}")
    for split, count in result.splits.items():
        say(split_line(split, count))
    say()
    for finding in result.findings:
        line = Text(f"{finding.severity:<8}", style=_STYLES[finding.severity])
        console.print(line.append(f" {finding.kind}: ", style="bold").append(path_text(finding.message), style="default"))
        named = [path_text(image) for image in finding.images]
        if named and result.output is None and Path(named[0]).name not in finding.message:
            say(f"{'':8} {some(named)}")
    if result.recipe:
        say("\ntrain would choose:")
        for reason in result.recipe:
            say(f"  {reason}")
    say(f"\n{headline(result)}; {result.verdict}.")
    for name, path in (("page", result.output), ("dataset YAML", result.fixed)):
        if path is not None:
            say(f"{name}: {path_text(path)}")
