"""Latency targets in training: ``--latency``.

Before the first step, the untrained model is measured to find the image size that meets the latency, if any does. At the
end, all trained settings are scored on the validation split, with one pass over the images per size. A few of them are
timed, including the chosen one; the other times are estimated from these. With ``minutes``, sizes far from the run's own
that would be scored after the time are left out, and no more is timed than one point that meets the latency.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from nextdetr.config import TrainConfig
from nextdetr.data.raw import plural
from nextdetr.data.records import DetectionData
from nextdetr.engine.evaluate import CocoEvaluator, read_batches
from nextdetr.engine.launch import largest
from nextdetr.engine.loading import training_sizes
from nextdetr.engine.log import Display
from nextdetr.engine.processes import gather_values
from nextdetr.errors import ConfigError
from nextdetr.inference.pytorch.backend import TorchBackend
from nextdetr.inference.pytorch.latency import eager_point
from nextdetr.inference.speed import SPEED, Setting, SpeedPoint, SpeedTable, choose, pareto, read_points
from nextdetr.inference.speed_text import table_lines
from nextdetr.inference.times import Meter, Times, model_digest
from nextdetr.models.cut import choices, cut_layers, possible_queries, whole_queries
from nextdetr.models.detection import DetectionModel
from nextdetr.postprocess import postprocess
from nextdetr.tensors import as_outputs
from nextdetr.weights.checkpoint import OpenedModel, extra_metadata, open_model, save_opened

__all__ = ["affordable_size", "check_contract", "expected_seconds", "fulfil", "keep_contract", "score_settings", "times_of"]

SCORED = 300  # at most this many validation images, evenly spaced
LEAST, MOST = 160, 640  # range of sizes to choose from, pixels
SURE = 0.7  # of the latency: a setting estimated below this meets it without being measured
REFINE = 6  # maximum measurements to settle the choice
SHARE = 0.2  # of a validation that each setting of a size takes for its own decoder and scores


def times_of(config: TrainConfig, model: DetectionModel, meter: Meter | None) -> Times:
    """Return the timings of this model: from a file of another machine, or by measuring here."""
    if config.latency_of is not None:
        return Times(read_points(config.latency_of, model_digest(model.text)))
    return Times(meter=meter or eager_point)


def affordable_size(times: Times, opened: OpenedModel, latency: float, guess: int) -> int:
    """Return the largest image size, 160 to 640 px, at which the whole model meets the latency; 160 if none does.

    Args:
        times: timings of the model.
        opened: the model; its weights do not matter.
        latency: milliseconds.
        guess: where to start searching, pixels.
    """
    model, step = opened.model, opened.model.stride
    layers = choices(model)[1]
    sizes = range(-(-LEAST // step) * step, MOST + 1, step) or (step,)
    whole = [_setting(model, size, whole_queries(model), layers[-1]) for size in sizes]
    look = min(whole, key=lambda setting: abs(setting.image_size - guess))
    for _ in range(3):
        if look in times.known:
            break
        times.measure(opened, look)
        fitting = [setting for setting in whole if times.at(setting).latency_ms <= latency]
        look = fitting[-1] if fitting else whole[0]
    return look.image_size


def check_contract(times: Times, opened: OpenedModel, config: TrainConfig) -> None:
    """Reject a latency that even the fastest setting misses, before training starts.

    Raises:
        ConfigError: the message says what is possible.
    """
    assert config.latency is not None
    queries, layers = choices(opened.model)
    fastest = _setting(opened.model, training_sizes(config, opened.model.stride)[0], queries[0], layers[0])
    point = times.at(fastest) if times.known else times.measure(opened, fastest)
    if not point.measured and point.latency_ms > SURE * config.latency:
        point = times.measure(opened, fastest)
    if point.latency_ms > config.latency:
        raise ConfigError(
            f"--latency {config.latency:g} cannot be kept: the fastest that this run would offer takes {point.text}. Ask "
            f"for --latency {math.ceil(1.05 * point.latency_ms)} or more, or name a smaller --image-size or --model."
        )


def expected_seconds(
    config: TrainConfig, times: Times | None, model: DetectionModel, validation: float, images: int
) -> float:
    """Estimate how long ``fulfil`` will take, given the time of a validation on ``images`` images."""
    if config.latency is None or config.image_size is None:
        return 0.0
    queries, layers = choices(model)
    settings = SHARE * len(queries) * len(layers)
    passes = sum((size / config.image_size) ** 2 + settings for size in training_sizes(config, model.stride))
    scoring = validation * passes * min(1.0, SCORED / max(1, images))
    return scoring + (REFINE + 2) * (0.0 if times is None else times.seconds)


def keep_contract(
    checkpoint: Path,
    data: DetectionData,
    config: TrainConfig,
    fabric: Fabric,
    times: Times | None,
    display: Display,
    ends: float = math.inf,
) -> dict[str, Any] | None:
    """Write the speed table into the best weights, show it and return it; None without ``latency``."""
    if times is None:
        return None
    fabric.barrier()  # the first process has written the file
    display.update("speed contract", 1.0, "")
    table = fulfil(checkpoint, data, config, fabric, times, display.line, ends)
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
    ends: float = math.inf,
) -> SpeedTable:
    """Score and time the settings that a trained checkpoint offers, and write the table into it.

    Args:
        checkpoint: ``best.safetensors``.
        data: the validation split.
        config: the resolved settings.
        fabric: devices and processes; all of them score, the first one times.
        times: timings of the model, including those from before the training.
        tell: prints a line for the user before each part.
        ends: when the time for all of this is over (``time.perf_counter``); one size is scored anyway.
    """
    assert config.latency is not None
    opened = open_model(checkpoint)
    opened.model.to(fabric.device)
    queries, layers = choices(opened.model)
    sizes: list[int] = fabric.broadcast(_sizes(times, opened, config, tell) if fabric.global_rank == 0 else [])
    step = max(1, -(-len(data.records) // SCORED))
    data = replace(data, records=data.records[::step])
    offered = {size: sorted({possible_queries(opened.model, size, number) for number in queries}) for size in sizes}
    settings = len(layers) * sum(map(len, offered.values()))
    tell(f"scoring {settings} settings on {plural(len(data.records), 'image')}")
    scores, pace, late = dict[Setting, float | None](), 0.0, 0  # pace: seconds for a pixel
    for size in sizes:
        started = time.perf_counter()
        if scores and largest(fabric, started + pace * size**2 > ends)[0]:
            late += 1
            continue
        scores |= score_settings(
            opened.model, data, [size], offered[size], layers, batch_size=config.batch_size, fabric=fabric
        )  # fmt: skip
        pace = max(pace, (time.perf_counter() - started) / size**2)
    if late:
        tell(f"--minutes are over: scored {len(sizes) - late} of {len(sizes)} image sizes, first {sizes[0]} px")
    table: SpeedTable | None = None
    if fabric.global_rank == 0:
        opened.model.cpu()
        chosen = _settle(times, opened, scores, config.latency, tell, ends)
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
    """Measure what the estimates need; return the sizes to score, beginning with one that meets the latency.

    That is the run's own, or the one closest to it; larger ones are included only if one setting is fast enough.
    """
    assert config.image_size is not None
    assert config.latency is not None
    (queries, layers), sizes = choices(opened.model), training_sizes(config, opened.model.stride)
    least = {size: _setting(opened.model, size, queries[0], layers[0]) for size in sizes}
    whole = _setting(opened.model, config.image_size, whole_queries(opened.model), layers[-1])
    for setting in (whole, least[sizes[0]], least[config.image_size]):
        if setting not in times.known:
            _measure(times, opened, setting, tell)
    fits = {size: times.at(setting).latency_ms <= config.latency for size, setting in least.items()}
    own = config.image_size
    fast = min((size for size in sizes if fits[size]), key=lambda size: abs(size - own), default=own)
    return sorted((size for size in sizes if size <= own or fits[size]), key=lambda size: abs(size - fast))


def _setting(model: DetectionModel, size: int, queries: int, layers: int) -> Setting:
    """Return a setting with no more queries than the model has tokens at this size, as it would run no more."""
    return Setting(size, possible_queries(model, size, queries), layers)


def _measure(times: Times, opened: OpenedModel, setting: Setting, tell: Callable[[str], None]) -> None:
    if times.meter is not None:
        tell(f"measuring {setting.text}")
    times.measure(opened, setting)


def _settle(
    times: Times,
    opened: OpenedModel,
    scores: dict[Setting, float | None],
    latency: float,
    tell: Callable[[str], None],
    ends: float = math.inf,
) -> SpeedPoint | None:
    """Choose a point, measure it, and repeat with the new timing until the chosen point has been measured.

    After ``ends`` the best of the measured points is chosen, if one meets the latency.
    """
    settings, fresh = sorted(scores), set[Setting]()

    def best_measured() -> SpeedPoint | None:
        known = [setting for setting in settings if setting in times.known]
        return choose([replace(times.at(setting), AP=scores[setting]) for setting in known], latency)

    for _ in range(REFINE):
        found = choose([replace(times.at(setting), AP=scores[setting]) for setting in settings], latency)
        if found is None or found.setting in fresh or times.meter is None:
            return found
        if time.perf_counter() + times.seconds > ends and best_measured() is not None:
            break
        _measure(times, opened, found.setting, tell)
        fresh.add(found.setting)
    return best_measured()


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
    """Return AP (0 to 1, None if undefined) of each combination; the backbone runs once per image and size."""
    cut = {count: cut_layers(model, count).eval() for count in layers}
    backend = TorchBackend(model, fabric.device)
    indices = range(fabric.global_rank, len(data.records), fabric.world_size)
    scores: dict[Setting, float | None] = {}
    for size in sizes:
        evaluators = {Setting(size, q, count): CocoEvaluator(data) for q in queries for count in layers}
        for images, positions in read_batches(data, indices, size, batch_size, backend):
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
