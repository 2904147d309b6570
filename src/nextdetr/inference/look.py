"""One way to look at images and frames, here and on the workers of a cluster: whole, or in tiles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nextdetr.config import PredictConfig
from nextdetr.inference.predictor import Prediction, Predictor
from nextdetr.inference.sources import Sources

__all__ = ["look", "settings_of"]


def settings_of(config: PredictConfig) -> dict[str, Any]:
    """Return the settings of ``Predictor.stream``."""
    return {
        "confidence": config.confidence, "classes": config.classes, "max_detections": config.max_detections,
        "queries": config.queries, "batch_size": config.batch_size, "recursive": config.recursive,
        "animations": not config.is_table, "merge_iou": config.merge_iou,
    }  # fmt: skip


def look(predictor: Predictor, sources: Sources, config: PredictConfig, settings: dict[str, Any]) -> Iterator[Prediction]:
    """Yield a prediction for each image or frame, whole or in tiles, with these settings of ``Predictor.stream``."""
    if config.tile is None:
        return predictor.stream(sources, **settings)
    from nextdetr.inference.tiles import stream_tiles

    return stream_tiles(predictor, sources, tile=config.tile, overlap=config.overlap, **settings)
