"""``nextdetr convert``."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from nextdetr.cli.common import Json, Verbose, print_json, say, settings, split_line
from nextdetr.config import ConvertConfig
from nextdetr.errors import ConfigError

__all__ = ["convert"]


def convert(
    data: Annotated[str, Parameter(help="A data set, as for `train --data`.")],
    *,
    options: Annotated[ConvertConfig | None, Parameter(name="*")] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write a data set back in another format: every split and class, every box as it was read.

    Example: `nextdetr convert photos --to yolo --output photos-yolo`.
    """
    merged = settings(ConvertConfig, options)
    if merged.to is None or merged.output is None:
        raise ConfigError("converting needs a format and a new folder: give --to coco, yolo or voc, and --output.")
    from nextdetr.data.check import summarize_problems
    from nextdetr.data.convert import convert as run
    from nextdetr.data.raw import plural
    from nextdetr.data.records import read_as

    result = run(
        data, merged.to, merged.output, images=merged.images, on_bad_data=merged.on_bad_data,
        min_confidence=merged.min_confidence,
    )  # fmt: skip
    sys.stderr.write(f"{read_as(result.recognised)}\n")
    if result.problems:
        sys.stderr.write(summarize_problems(result.problems) + "\n")
    for split in result.splits_left_out:
        sys.stderr.write(f"left out: the split {split}, for which {merged.to} has no name; its images are in the others\n")
    if result.crowds_left_out:
        sys.stderr.write(f"left out: {plural(result.crowds_left_out, 'crowd')}, for which {merged.to} has no place\n")
    if result.confidences_left_out:
        boxes = plural(result.confidences_left_out, "box")
        sys.stderr.write(f"left out: the confidence of {boxes}, for which {merged.to} has no place\n")
    if json:
        print_json(result.to_json())
        return
    say(f"{result.output}  ({result.to}, {plural(len(result.classes), 'class')})")
    for split, count in result.splits.items():
        say(split_line(split, count))
