"""From sources to results, as ``nextdetr predict`` gives them: whole or in tiles, followed through videos, and written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nextdetr.confidence import AUTO, CALIBRATED, DEFAULT
from nextdetr.config import PredictConfig
from nextdetr.errors import ConfigError, DataError
from nextdetr.identity import Identity
from nextdetr.inference.header import exported_file, is_exported
from nextdetr.inference.look import look, settings_of
from nextdetr.inference.outputs import save_predictions
from nextdetr.inference.predictor import Prediction, Predictor
from nextdetr.inference.sources import Sources, find_images, only_folder

__all__ = ["file_identity", "predict_stream"]

_NOT_OF_ROWS = ("batch_size", "recursive", "animations")  # settings that a table's rows do not depend on


def predict_stream(
    predictor: Predictor,
    sources: Sources,
    config: PredictConfig,
    *,
    model: str = "",
    opens: Mapping[str, Any] | None = None,
    identity: Identity | None = None,
) -> Iterator[Prediction]:
    """Yield a prediction for each image or frame; with ``config.output``, write what ``config.save`` names.

    Args:
        predictor: runs the model.
        sources: see ``find_images``; with a table, images only.
        config: the settings; an ``output`` that ends in ``.parquet`` is a table of all predictions.
        model: identity of the model; an unfinished table is resumed only with the same one.
        opens: how another process opens the same model: the arguments of ``open_any``; for the engine ``ray``.
        identity: what the data set calls its classes and images, for COCO results.

    Raises:
        ConfigError: a setting is out of its range, or a package is missing.
        DataError: nothing is there to look at, or none of it can be read.
    """
    settings = settings_of(config)
    if config.is_table:
        return _to_table(predictor, sources, config, model, opens)
    follower = None
    if config.track or config.line or config.zone:
        from nextdetr.inference.tracking import UNSURE, Follower

        least = predictor.least_scores(config.confidence)
        follower = Follower(confidence=least, track=config.track, lines=config.line, zones=config.zone)
        if config.track:
            settings["confidence"] = np.minimum(UNSURE, least)
    predictions = look(predictor, sources, config, settings)
    if follower is not None:
        predictions = follower.follow(predictions)
    if config.output is None:
        return predictions
    draw = None if follower is None else follower.draw
    names = predictor.classes
    root = only_folder(sources) if config.recursive else None
    return save_predictions(
        predictions, config.output, config.save, identity=identity, draw=draw, classes=names, root=root
    )  # fmt: skip


def file_identity(source: str) -> str:
    """Return the identity of a model file, which changes if the file is replaced."""
    path = exported_file(source) if is_exported(source) else Path(source)
    if not path.exists():
        return source
    stat = path.stat()
    return f"{path.resolve()}, {stat.st_size} bytes, changed {stat.st_mtime_ns}"


def _weights_of(opens: Mapping[str, Any]) -> dict[str, str]:
    """Return the identity of the weights that the model was opened with; empty without any, as in earlier tables."""
    given = {name: opens.get(name) for name in ("weights", "backbone_weights")}
    return {name: file_identity(str(source)) for name, source in given.items() if source is not None}


def _to_table(
    predictor: Predictor, sources: Sources, config: PredictConfig, model: str, opens: Mapping[str, Any] | None
) -> Iterator[Prediction]:
    from nextdetr.inference.writers.protocol import written
    from nextdetr.inference.writers.table import PredictionTable

    if config.track or config.line or config.zone:
        raise ConfigError("a Parquet table is of images: --track, --line and --zone are for videos.")
    assert config.output is not None
    items = list(find_images(sources, skipped=predictor.skipped, recursive=config.recursive))
    memory = next((item.path for item in items if item.in_memory), None)
    if memory is not None:
        raise ConfigError(f"a Parquet table names its images by their files, and {memory} has none.")
    kept = {name: value for name, value in settings_of(config).items() if name not in _NOT_OF_ROWS}
    if config.merge_iou is None:
        kept.pop("merge_iou")  # earlier tables do not say
    if config.confidence == AUTO:  # as numbers: the rows depend on them
        kept["confidence"] = predictor.thresholds or DEFAULT
    elif config.confidence == CALIBRATED:
        kept["confidence"] = float(predictor.least_scores(CALIBRATED)[0])
    kept |= {"tile": config.tile, "overlap": config.overlap, "image_size": predictor.image_size}
    kept |= {} if config.latency is None else {"latency": config.latency, "latency_of": str(config.latency_of or "")}
    kept |= {} if predictor.reading.bits == 16 else {"bits": predictor.reading.bits}  # earlier tables do not say
    kept |= _weights_of(opens or {})
    table = PredictionTable(config.output, {"model": model, "classes_of_model": predictor.classes, **kept})

    def found(paths: Iterator[str]) -> Iterator[Prediction]:
        if config.engine == "local":
            return look(predictor, paths, config, settings_of(config))
        from nextdetr.inference.cluster import stream_on_ray

        assert opens is not None
        return stream_on_ray(paths, opens, config, predictor.skipped)

    def rest() -> Iterator[Prediction]:
        try:
            yield from found(table.remaining(item.path for item in items))
        except DataError:  # none of the images that were left could be read
            if not table.resumed:
                raise

    def run() -> Iterator[Prediction]:
        with table.kept():
            yield from written(rest(), [table])

    return run()
