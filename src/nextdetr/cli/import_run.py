"""``nextdetr import-run``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from nextdetr.cli.common import Json, Verbose, print_json, say
from nextdetr.installation import to_paste

__all__ = ["import_run"]


def import_run(
    run: Annotated[Path, Parameter(help="Folder of a training run of ultralytics, with args.yaml and weights/best.pt.")],
    *,
    output: Annotated[Path | None, Parameter(help="New folder (default: beside RUN, RUN-nextdetr).")] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Turn an ultralytics run of RT-DETR into one of NextDETR's: settings, data set, best weights and table of scores.

    Nothing in its files is run. Example: `nextdetr import-run runs/detect/train`.
    """
    from nextdetr.data.raw import plural
    from nextdetr.engine.import_run import import_run as read

    result = read(run, output)
    if json:
        print_json(result.to_json())
        return
    what = f"{result.model}, {plural(len(result.classes), 'class')}"
    say(f"{result.checkpoint}  ({what}; licence of the weights: {result.weights_licence})")
    for argument in result.arguments:
        if argument.outcome == "set" and argument.settings:
            ours = ", ".join(f"{name}: {value}" for name, value in argument.settings.items())
            say(f"  {argument.name}: {argument.value}  ->  {ours}")
    for outcome, title in (("left", "left at NextDETR's own value"), ("none", "no counterpart")):
        given = [argument for argument in result.arguments if argument.value is not None]
        names = [argument.name for argument in given if argument.outcome == outcome]
        if names:
            say(f"  {title}: {', '.join(names)}")
    for note in result.notes:
        sys.stderr.write(f"{note}\n")
    say(f"Continue from it: {to_paste(['nextdetr', 'train', '--config', str(result.config)])} --output NEW")
