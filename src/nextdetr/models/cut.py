"""Reduce a detector without training: fewer decoder layers and queries (RT-DETR, arXiv 2304.08069, section 4.4)."""

from __future__ import annotations

import copy

from torch import nn

from nextdetr.errors import ConfigError
from nextdetr.models.decoder import RTDETRDecoder
from nextdetr.models.detection import DetectionModel

__all__ = ["choices", "cut_layers", "evaluated_layers", "possible_queries", "whole_queries"]


def choices(model: DetectionModel) -> tuple[list[int], list[int]]:
    """Numbers of queries and decoder layers that a model offers: half, all and one and a half times; from one to all.

    Learnt queries cannot exceed their number.
    """
    decoder = _decoder(model)
    most = decoder.num_queries if decoder.query_embed is not None else decoder.num_queries * 3 // 2
    queries = {max(1, decoder.num_queries // 2), decoder.num_queries, most}
    return sorted(queries), list(range(1, len(decoder.decoder.layers) + 1))


def whole_queries(model: DetectionModel) -> int:
    """Return the number of queries that a model is trained with."""
    return _decoder(model).num_queries


def possible_queries(model: DetectionModel, image_size: int, queries: int) -> int:
    """Return how many of this number of queries a model runs at an image size: at most as many as it has tokens there."""
    return min(queries, sum((image_size // stride) ** 2 for stride in model.row_infos[-1].strides_read))


def evaluated_layers(model: DetectionModel) -> int:
    """Return how many decoder layers a model runs in evaluation."""
    return _decoder(model).eval_layer + 1


def _decoder(model: DetectionModel) -> RTDETRDecoder:
    decoder = model.rows[-1]
    assert isinstance(decoder, RTDETRDecoder)  # every model file ends with one
    return decoder


def cut_layers(model: DetectionModel, layers: int) -> DetectionModel:
    """Return the model with only the first ``layers`` decoder layers; weights are shared, and ``model`` is not changed.

    Raises:
        ConfigError: the model has fewer layers.
    """
    decoder = _decoder(model)
    present = len(decoder.decoder.layers)
    if not 1 <= layers <= present:
        raise ConfigError(f"decoder layers must be from 1 to {present}, the model's own number (given: {layers}).")
    shorter, last = copy.copy(model), copy.copy(decoder)
    last.eval_layer = layers - 1
    shorter._modules = {**model._modules, "rows": nn.ModuleList([*model.rows[:-1], last])}
    return shorter
