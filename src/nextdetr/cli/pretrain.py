"""``nextdetr pretrain``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from nextdetr.cli.common import Json, PretrainOptions, Verbose, is_first_process, print_json, say, settings
from nextdetr.config import PretrainConfig
from nextdetr.errors import ConfigError

__all__ = ["pretrain"]


def pretrain(
    sources: Annotated[
        list[str] | None,
        Parameter(name="IMAGES", help="Folders of images, including subfolders, or data sets (their split train)."),
    ] = None,
    /,
    *,
    options: Annotated[PretrainOptions | None, Parameter(name="*")] = None,
    config: Annotated[str | None, Parameter(help="YAML file of settings; options take precedence.")] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Pre-train a backbone on images without labels, for `train --backbone-weights`; with --detector the head too.

    Examples: `nextdetr pretrain photos --minutes 30`; for `train --weights`,
    `nextdetr pretrain photos --model nextdetr-atto --detector --minutes 60`.
    """
    merged = settings(PretrainConfig, options, config, command="pretrain")
    if sources:
        if options is not None and options.images:
            raise ConfigError("the images are given twice, as IMAGES and as --images: give them in one place.")
        given = {name: getattr(merged, name) for name in merged.model_fields_set}
        merged = PretrainConfig(**{**given, "images": tuple(sources)})
    from nextdetr.engine.pretrain import pretrain_all

    result = pretrain_all(merged)
    if not is_first_process():
        return
    if json:
        print_json(result.to_json())
    else:
        loss = result.loss if result.head is None else result.head["loss"]
        say(f"{result.weights}  loss {loss:.4f}")
