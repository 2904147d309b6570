"""``nextdetr pretrain``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from nextdetr.cli.common import Json, Verbose, is_first_process, print_json, say, settings
from nextdetr.config import PretrainConfig

__all__ = ["pretrain"]


def pretrain(
    sources: Annotated[
        list[str] | None,
        Parameter(help="IMAGES: folders, with their subfolders, or data sets, of which the training split is taken."),
    ] = None,
    /,
    *,
    options: Annotated[PretrainConfig | None, Parameter(name="*")] = None,
    config: Annotated[str | None, Parameter(help="YAML file of the same settings; options given here win.")] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Pre-train a backbone on images without labels, for `train --backbone-weights`.

    Example: `nextdetr pretrain photos --minutes 30`. Ctrl-C stops it; `--resume DIR` goes on exactly there.
    """
    merged = settings(PretrainConfig, options, config)
    if sources:
        given = {name: getattr(merged, name) for name in merged.model_fields_set}
        merged = PretrainConfig(**{**given, "images": tuple(sources)})
    from nextdetr.engine.pretrain import run_pretraining

    result = run_pretraining(merged)
    if not is_first_process():
        return
    if json:
        print_json(result.to_json())
    else:
        say(f"{result.weights}  loss {result.loss:.4f}")
