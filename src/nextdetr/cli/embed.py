"""``nextdetr embed``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from nextdetr.cli.common import AllowPartial, Json, Verbose, Weights, print_json, say, settings, tell_reports
from nextdetr.config import EmbedConfig

__all__ = ["embed"]


def embed(
    model: Annotated[str, Parameter(help="A shipped name, a model YAML, a checkpoint, or a backbone's weights.")],
    *sources: Annotated[str, Parameter(help="Image files, folders or glob patterns.")],
    options: Annotated[EmbedConfig | None, Parameter(name="*")] = None,
    weights: Weights = None,
    allow_partial: AllowPartial = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Describe each image by one vector: the average of the map that a row of the model yields.

    Example: `nextdetr embed runs/nextdetr-atto-photos/best.safetensors photos --output photos.npz`.
    """
    merged = settings(EmbedConfig, options)
    from nextdetr.errors import ConfigError
    from nextdetr.inference.opened import settle, warn_of_random_weights
    from nextdetr.inference.pytorch.embed import check_output, embed_images, write_embeddings
    from nextdetr.inference.sources import skipped_as
    from nextdetr.weights.backbone import open_features
    from nextdetr.weights.start import open_detector

    if not sources:
        raise ConfigError("embedding needs images: name files, folders or a glob pattern after the model.")
    if merged.output is None and not json:
        raise ConfigError("say where the vectors go: --output FILE.npz, --output FILE.csv, or --json.")
    if merged.output is not None:
        check_output(merged.output)
    if weights is None:
        opened = open_features(model)
    else:
        opened, reports = open_detector(model, weights=weights, allow_partial=allow_partial)
        tell_reports(reports)
    warn_of_random_weights(opened, weights=weights is not None, maps_only=True)
    settled = settle(opened, device=merged.device, image_size=merged.image_size, bits=merged.bits)
    result = embed_images(
        opened.model, list(sources), image_size=settled.image_size, row=merged.row, batch_size=merged.batch_size,
        device=settled.device, name=model, reading=settled.reading, recursive=merged.recursive,
    )  # fmt: skip
    if merged.output is None:
        print_json({"command": "embed", **result.to_json()})
        return
    write_embeddings(result, merged.output)
    from nextdetr.data.raw import plural

    shape = list(result.embeddings.shape)
    if json:
        print_json({"command": "embed", "model": model, "row": result.row, "output": str(merged.output), "shape": shape,
                    "skipped": result.skipped})  # fmt: skip
    else:
        if result.skipped:
            say(f"Skipped: {', '.join(skipped_as(*entry) for entry in result.skipped.items())}")
        say(f"{merged.output}  {plural(shape[0], 'image')}, {shape[1]} numbers each, from row {result.row}")
