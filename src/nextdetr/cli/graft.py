"""``nextdetr graft``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from nextdetr.cli.common import GraftOptions, Json, Verbose, print_json, say, settings
from nextdetr.config import GraftConfig
from nextdetr.errors import ConfigError

__all__ = ["graft"]


def graft(
    source: Annotated[
        str | None,
        Parameter(
            name="DETECTOR", help="Checkpoint, folder of a run, weights of another program, or a name of weights list."
        ),
    ] = None,
    /,
    *,
    options: Annotated[GraftOptions | None, Parameter(name="*")] = None,
    config: Annotated[str | None, Parameter(help="YAML file of settings; options take precedence.")] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Put a detector's encoder and decoder on a ConvNeXt V2 backbone, aligned on images without labels.

    Example: `nextdetr graft dfine-n-coco --backbone convnextv2-atto=atto.pt --images photos --minutes 20`.
    """
    merged = settings(GraftConfig, options, config, command="graft")
    if source is not None:
        if options is not None and options.detector is not None:
            raise ConfigError("the detector is given twice, as DETECTOR and as --detector: give it in one place.")
        given = {name: getattr(merged, name) for name in merged.model_fields_set}
        merged = GraftConfig(**{**given, "detector": source})
    from nextdetr.engine.graft import run_graft

    result = run_graft(merged)
    if json:
        print_json(result.to_json())
    else:
        say(f"{result.checkpoint}  loss {result.loss:.4f}  {result.parameters:,} parameters")
