"""The speed contract of a training: ``--latency``.

Before the first step the untrained model is measured: it says at what size the latency is kept, and whether it can be kept
at all. In the end all settings that were trained for are scored on the validation part, each size in one look at the
images, and the times of a few are measured, the chosen one among them; the others' follow from these.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from nextdetr.config import TrainConfig
from nextdetr.data.records import DetectionData
from nextdetr.engine.evaluate import CocoEvaluator, read_batches
from nextdetr.engine.loading import training_sizes
from nextdetr.engine.log import Display
from nextdetr.engine.processes import gather_values
from nextdetr.errors import ConfigError
from nextdetr.inference.pytorch.latency import eager_point
from nextdetr.inference.speed import SPEED, Setting, SpeedPoint, SpeedTable, choose, pareto, read_points
from nextdetr.inference.speed_text import table_lines
from nextdetr.inference.times import Meter, Times, model_digest
from nextdetr.models.cut import choices, cut_layers, whole_queries
from nextdetr.models.detection import DetectionModel
from nextdetr.postprocess import postprocess
from nextdetr.tensors import as_outputs
from nextdetr.weights.checkpoint import OpenedModel, extra_metadata, open_model, save_opened

__all__ = ["affordable_size", "check_contract", "expected_seconds", "fulfil", "keep_contract", "score_settings", "times_of"]

SCORED = 300  # validation images at most, evenly from all
LEAST, MOST = 160, 640  # sizes that are chosen for a latency, pixels
SURE = 0.7  # of the latency: what is estimated to take no more need not be measured to know that it keeps it
REFINE = 6  # measurements at most to settle which point is chosen


def times_of(config: TrainConfig, model: DetectionModel, meter: Meter | None) -> Times:
    """Return what tells the times of this training's model: a file of another machine, or a measurement here."""
    if config.latency_of is not None:
        return Times(read_points(config.latency_of, model_digest(model.text)))
    return Times(meter=meter or eager_point)


def affordable_size(times: Times, opened: OpenedModel, latency: float, guess: int) -> int:
    """Return the largest image size, 160 to 640 px, at which the whole model keeps the latency; 160 if none does.

    Args:
        times: of the model.
        opened: the model; its weights do not matter.
        latency: milliseconds.
        guess: where to begin, pixels.
    """
    model, step = opened.model, opened.model.stride
    layers = choices(model)[1]
    sizes = range(-(-LEAST // step) * step, MOST + 1, step) or (step,)
    whole = [Setting(size, whole_queries(model), layers[-1]) for size in sizes]
    look = min(whole, key=lambda setting: abs(setting.image_size - guess))
    for _ in range(3):
        if look in times.known:
            break
        times.measure(opened, look)
        fitting = [setting for setting in whole if times.at(setting).latency_ms <= latency]
        look = fitting[-1] if fitting else whole[0]
    return look.image_size


def check_contract(times: Times, opened: OpenedModel, config: TrainConfig) -> None:
    """Refuse a latency that not even the fastest setting of the run keeps, before anything is trained.

    Raises:
        ConfigError: the message says what can be had.
    """
    assert config.latency is not None
    queries, layers = choices(opened.model)
    fastest = Setting(training_sizes(config, opened.model.stride)[0], queries[0], layers[0])
    point = times.at(fastest) if times.known else times.measure(opened, fastest)
    if not point.measured and point.latency_ms > SURE * config.latency:
        point = times.measure(opened, fastest)
    if point.latency_ms > config.latency:
        raise ConfigError(
            f"--latency {config.latency:g} cannot be kept: the fastest that this run would offer takes {point.text}. Ask "
            f"for --latency {math.ceil(1.05 * point.latency_ms)} or more, or name a smaller --image-size or --model."
        )


def expected_seconds(config: TrainConfig, times: Times | None, stride: int, validation: float, images: int) -> float:
    """Estimate how long ``fulfil`` will take, from how long a validation took on ``images`` images."""
    if config.latency is None or config.image_size is None:
        return 0.0
    pixels = sum((size / config.image_size) ** 2 for size in training_sizes(config, stride))
    scoring = 1.5 * validation * pixels * min(1.0, SCORED / max(1, images))
    return scoring + (REFINE + 2) * (0.0 if times is None else times.seconds)


def keep_contract(
    checkpoint: Path, data: DetectionData, config: TrainConfig, fabric: Fabric, times: Times | None, display: Display
) -> dict[str, Any] | None:
    """Write the table of the speed contract into the best weights, show it and return it; None without a contract."""
    if times is None:
        return None
    fabric.barrier()  # the first process has written the file
    display.update("speed contract", 1.0, "")
    table = fulfil(checkpoint, data, config, fabric, times, display.line)
    for line in table_lines(table):
        display.line(line)
    return table.to_json()


def fulfil(
    checkpoint: Path,
    data: DetectionData,
    config: TrainConfig,
    fabric: Fabric,
    times: Times,
    tell: Callable[[str], None] = lambda text: None,
) -> SpeedTable:
    """Score and measure what a trained checkpoint offers, and write the table into it.

    Args:
        checkpoint: ``best.safetensors``.
        data: the validation part.
        config: the settings, filled in.
        fabric: devices and processes; all of them score, and the first one measures.
        times: of the model, what was measured before the training among them.
        tell: takes a line for the user before each part.
    """
    assert config.latency is not None
    opened = open_model(checkpoint)
    opened.model.to(fabric.device)
    queries, layers = choices(opened.model)
    sizes: list[int] = fabric.broadcast(_sizes(times, opened, config, tell) if fabric.global_rank == 0 else [])
    step = max(1, -(-len(data.records) // SCORED))
    data = replace(data, records=data.records[::step])
    tell(f"scoring {len(sizes) * len(queries) * len(layers)} settings on {len(data.records)} images")
    scores = score_settings(
        opened.model, data, sizes, queries, layers, batch_size=config.batch_size, fabric=fabric
    )  # fmt: skip
    table: SpeedTable | None = None
    if fabric.global_rank == 0:
        opened.model.cpu()
        chosen = _settle(times, opened, scores, config.latency, tell)
        points = [replace(times.at(setting), AP=score) for setting, score in scores.items()]
        kept = pareto(points) + ([] if chosen is None else [chosen])
        ordered = sorted({point.setting: point for point in kept}.values(), key=lambda point: point.latency_ms)
        table = SpeedTable(config.latency, chosen, tuple(ordered), len(data.records))
        extra = extra_metadata(opened.metadata) | {SPEED: json.dumps(table.to_json(), ensure_ascii=False)}
        save_opened(checkpoint, opened, extra=extra)
    shared = fabric.broadcast(table)
    assert shared is not None
    return shared


def _sizes(times: Times, opened: OpenedModel, config: TrainConfig, tell: Callable[[str], None]) -> list[int]:
    """Measure what all estimates rest on; return the sizes to score: those above ``image_size`` only if one keeps it."""
    assert config.image_size is not None
    assert config.latency is not None
    (queries, layers), sizes = choices(opened.model), training_sizes(config, opened.model.stride)
    least = queries[0], layers[0]
    whole = Setting(config.image_size, whole_queries(opened.model), layers[-1])
    for setting in (whole, Setting(sizes[0], *least), Setting(config.image_size, *least)):
        if setting not in times.known:
            _measure(times, opened, setting, tell)
    fits = {size: times.at(Setting(size, *least)).latency_ms <= config.latency for size in sizes}
    return [size for size in sizes if size <= config.image_size or fits[size]]


def _measure(times: Times, opened: OpenedModel, setting: Setting, tell: Callable[[str], None]) -> None:
    if times.meter is not None:
        tell(f"measuring {setting.text}")
    times.measure(opened, setting)


def _settle(
    times: Times, opened: OpenedModel, scores: dict[Setting, float | None], latency: float, tell: Callable[[str], None]
) -> SpeedPoint | None:
    """Choose a point, measure it, and choose again with what was learnt, until the chosen one has been measured."""
    settings, fresh = sorted(scores), set[Setting]()
    for _ in range(REFINE):
        found = choose([replace(times.at(setting), AP=scores[setting]) for setting in settings], latency)
        if found is None or found.setting in fresh or times.meter is None:
            return found
        _measure(times, opened, found.setting, tell)
        fresh.add(found.setting)
    sure = [replace(times.at(setting), AP=scores[setting]) for setting in settings if setting in times.known]
    return choose(sure, latency)


@torch.inference_mode()
def score_settings(
    model: DetectionModel,
    data: DetectionData,
    sizes: Sequence[int],
    queries: Sequence[int],
    layers: Sequence[int],
    *,
    batch_size: int,
    fabric: Fabric,
) -> dict[Setting, float | None]:
    """Return AP (0 to 1, None where undefined) of each combination; each image goes through the backbone once a size."""
    cut = {count: cut_layers(model, count).eval() for count in layers}
    indices = range(fabric.global_rank, len(data.records), fabric.world_size)
    scores: dict[Setting, float | None] = {}
    for size in sizes:
        evaluators = {Setting(size, q, count): CocoEvaluator(data) for q in queries for count in layers}
        for images, positions in read_batches(data, indices, size, batch_size, str(fabric.device)):
            features = model.decoder_inputs(torch.from_numpy(images).to(fabric.device))
            extents = [(data.records[position].height, data.records[position].width) for position in positions]
            for setting, evaluator in evaluators.items():
                output = cut[setting.layers].rows[-1](features, queries=setting.queries)
                found = postprocess(as_outputs(output), extents, max_detections=300)
                for position, detected in zip(positions, found, strict=True):
                    evaluator.update(position, detected)
        for setting, evaluator in evaluators.items():
            if fabric.world_size > 1:
                evaluator.merge(gather_values(evaluator.state()))
            scores[setting] = evaluator.summarize().metrics["AP"]
    return scores
