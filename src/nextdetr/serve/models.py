"""The models of a server, by name: opened, used, and reloaded without losing a request."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from nextdetr.confidence import CALIBRATED, Calibrated, named_thresholds, read_calibrated
from nextdetr.config_serve import ServeConfig
from nextdetr.detector_files import detector_name
from nextdetr.errors import ConfigError, NextDETRError
from nextdetr.inference.exported import OpenedExport, open_any
from nextdetr.inference.opened import settle, warn_of_gaps, warn_of_random_weights, warn_of_training
from nextdetr.inference.predictor import Predictor
from nextdetr.inference.steps import Steps
from nextdetr.preprocess import Reading
from nextdetr.serve.batcher import Batcher, Closed, Job
from nextdetr.serve.engine import DetectorEngine
from nextdetr.serve.errors import ServeError
from nextdetr.serve.metrics import Metrics

if TYPE_CHECKING:
    from nextdetr.weights.checkpoint import OpenedModel

__all__ = ["Models", "Opens", "Served", "engine_of", "named_sources", "open_first"]

#: Opens a model of the command line, and returns its description.
Opens: TypeAlias = Callable[[str, ServeConfig], tuple[DetectorEngine, dict[str, Any]]]

logger = logging.getLogger(__name__)

CALIBRATED_DETECTIONS = 300  # per image, as in calibrate
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Served:
    """A model in service.

    Attributes:
        name: name of the model in URLs.
        source: file or name that it was opened from.
        engine: the detector.
        batcher: processes its jobs.
        info: response of ``GET /model``.
    """

    name: str
    source: str
    engine: DetectorEngine
    batcher: Batcher
    info: dict[str, Any]


class Models:
    """Opens all models, and serves them until ``close``.

    Args:
        sources: file or name by name of the model; the first is the default.
        config: the server's settings.
        metrics: metrics to update.
        opens: opens a model; by default from its file.

    Raises:
        NextDETRError: a model cannot be opened.
    """

    def __init__(
        self,
        sources: dict[str, str],
        config: ServeConfig,
        metrics: Metrics,
        *,
        opens: Opens | None = None,
    ) -> None:
        self._config, self._metrics, self._open = config, metrics, opens or open_engine
        self._sources = sources
        self._reloading = threading.Lock()
        self._served: dict[str, Served] = {}
        try:
            for name in sources:
                self._served[name] = self._start(name, generation=1)
        except BaseException:
            self.close()
            raise
        for name in sources:
            metrics.watch_queue(name, lambda name=name: float(self._served[name].batcher.pending))  # type: ignore[misc]

    @property
    def names(self) -> list[str]:
        """Names of the models, the default first."""
        return list(self._sources)

    def get(self, name: str | None = None) -> Served:
        """Return a model by its name, or the default.

        Raises:
            ServeError: there is no such model (404).
        """
        try:
            return self._served[name or self.names[0]]
        except KeyError:
            raise ServeError(404, f"there is no model of that name here: there is {', '.join(self.names)}.") from None

    def submit(self, name: str | None, jobs: Sequence[Job], classes: Sequence[str] | None) -> Served:
        """Submit jobs to the current version of a model, and return that.

        Raises:
            ServeError: there is no such model, it does not support the confidence, or its queue is full.
            DataError: there is no such class.
        """
        while True:
            served = self.get(name)
            indices = served.engine.class_indices(classes)  # of this generation, whose classes may have changed
            for job in jobs:
                served.engine.check_confidence(job.settings["confidence"])
                job.settings["classes"] = indices
            try:
                served.batcher.submit(jobs)
            except Closed:
                if served is self.get(name):  # not replaced, so the server is stopping
                    raise ServeError(503, "the server is stopping.", headers={"Retry-After": "5"}) from None
                continue
            except ServeError as error:
                if error.status == 503:
                    self.count_refusal(served, "queue")
                raise
            return served

    def check_room(self, served: Served) -> None:
        """Refuse a request before its body is read if there is no room for even one image.

        Raises:
            ServeError: the queue is full (503).
        """
        try:
            served.batcher.check_room()
        except ServeError:
            self.count_refusal(served, "queue")
            raise

    def count_refusal(self, served: Served, reason: str) -> None:
        """Count a refused request: the ``queue`` was full, or its ``time`` was over."""
        self._metrics.refused.labels(served.name, reason).inc()

    def reload(self, name: str | None) -> Served:
        """Reload a model's file, direct new requests to it, and finish those of the old one; takes its time.

        Raises:
            ServeError: there is no such model, the file cannot be opened (422, the old model stays), or another reload is
                in progress (409).
        """
        old = self.get(name)
        if not self._reloading.acquire(blocking=False):
            raise ServeError(409, "another model is being read at the moment: try again later.", kind="Conflict")
        try:
            try:
                fresh = self._start(old.name, generation=old.info["generation"] + 1)
            except NextDETRError as error:
                raise ServeError(422, f"{old.name} stays as it is: {error}", kind=type(error).__name__) from error
            self._served[old.name] = fresh
            self._metrics.reloads.labels(old.name).inc()
            old.batcher.close()
        finally:
            self._reloading.release()
        return fresh

    def close(self) -> None:
        """Finish what was accepted, and stop."""
        for served in self._served.values():
            served.batcher.close(wait=False)
        for served in self._served.values():
            served.batcher.close()

    def _start(self, name: str, *, generation: int) -> Served:
        config = self._config
        engine, info = self._open(self._sources[name], config)
        engine.warm_up()
        batcher = Batcher(
            engine, _Watch(self._metrics, name), batch=config.batch, wait=config.wait / 1000, queue=config.queue,
            parallel=config.parallel,
        )  # fmt: skip
        information = {"name": name, **info, "generation": generation, "loaded": round(time.time(), 3)}
        return Served(name, self._sources[name], engine, batcher, information)


class _Watch:
    """Passes a batcher's events on to the metrics."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._images, self._batches = metrics.images.labels(name), metrics.batches.labels(name)
        self._steps = {
            step: metrics.step_seconds.labels(name, step) for step in ("queue", "preprocess", "model", "postprocess")
        }

    def batch(self, images: int, seconds: float) -> None:
        self._batches.observe(images)
        self._steps["model"].observe(seconds)

    def image(self, seconds: dict[str, float]) -> None:
        self._images.inc()
        for step, taken in seconds.items():
            if step != "model":
                self._steps[step].observe(taken)


def open_engine(source: str, config: ServeConfig) -> tuple[DetectorEngine, dict[str, Any]]:
    """Open a detector, and return it with its description for ``GET /model``.

    Raises:
        NextDETRError: it cannot be opened or run.
    """
    opened, reports = open_any(source, weights=config.weights, allow_partial=config.allow_partial, threads=config.threads)
    warn_of_gaps(reports)
    return engine_of(opened, source, config)


def engine_of(
    opened: OpenedModel | OpenedExport, source: str, config: ServeConfig
) -> tuple[DetectorEngine, dict[str, Any]]:
    """Do the same for an opened detector."""
    settled = settle(opened, device=config.device, image_size=config.image_size)
    warn_of_random_weights(opened, weights=config.weights is not None)
    warn_of_training(opened, config.confidence)
    exported = opened if isinstance(opened, OpenedExport) else None
    reading, predictor = Reading(settled.reading.bits, config.max_pixels), settled.predictor()
    predictor.least_scores(config.confidence)  # fail now rather than on each request
    calibrated = read_calibrated(opened.metadata)
    if calibrated is not None:
        _tell_what_holds(calibrated, predictor, source, config)
    info = {
        "model": source, "classes": list(opened.classes), "image_size": settled.image_size,
        "runtime": "pytorch" if exported is None else exported.model.session.name,
        "device": str(settled.device), "batches": exported is None or exported.model.contract.dynamic,
        "trained": bool(opened.trained), "confidence": config.confidence,
        "thresholds": named_thresholds(opened.metadata, opened.classes),
        "calibrated": None if calibrated is None else {"threshold": calibrated.threshold, "recall": calibrated.recall},
        "checks_unlikeness": predictor.familiarity is not None, "max_detections": config.max_detections,
        "merge_iou": config.merge_iou,
    }  # fmt: skip
    return DetectorEngine(Steps(predictor), reading), info


def open_first(opened: OpenedModel | OpenedExport, again: Callable[[int | None], Any] | None = None) -> Opens:
    """Return what serves an opened detector at first, and opens it again for each reload.

    It is opened again at once for a number of CPU threads, which a runtime is given when it opens a file.

    Args:
        opened: the detector.
        again: opens it, with a number of CPU threads or None; by default from its file.
    """
    first = [opened]

    def opens(source: str, config: ServeConfig) -> tuple[DetectorEngine, dict[str, Any]]:
        if first and config.threads is None:
            return engine_of(first.pop(), source, config)
        first.clear()
        fresh = open_any(source, threads=config.threads)[0] if again is None else again(config.threads)
        return engine_of(fresh, source, config)

    return opens


def _tell_what_holds(known: Calibrated, predictor: Predictor, source: str, config: ServeConfig) -> None:
    """Warn if the calibration's bound does not hold, or images cannot be checked, as ``predict`` does."""
    size = predictor.image_size != known.image_size
    changed = {
        f"at {predictor.image_size} px instead of {known.image_size}": size,
        "with fewer detections": config.max_detections < CALIBRATED_DETECTIONS,
        "with --merge-iou": config.merge_iou is not None,
    }
    reasons = [text for text, applies in changed.items() if applies]
    if config.confidence == CALIBRATED and reasons:
        logger.warning("%s: its bound on missed objects does not hold %s.", source, " and ".join(reasons))
    if known.familiarity and predictor.familiarity is None:
        why = "at another image size than it was calibrated at" if size else "in an exported file, which gives boxes only"
        logger.warning("%s: whether images are unlike its training images is not checked %s.", source, why)


def named_sources(models: Sequence[str | Path]) -> dict[str, str]:
    """Return files or names of models by the names that they are served under: ``NAME=FILE``, or the file's own.

    ``runs/cells/best.safetensors`` and ``exports/cells/model.onnx`` are called ``cells``, since every run has such files.

    Raises:
        ConfigError: there is no model, or two have the same name.
    """
    sources: dict[str, str] = {}
    for model in map(str, models):
        name, equals, source = model.partition("=")
        if not (equals and _NAME.fullmatch(name) and source and not Path(model).exists()):
            name, source = _own_name(model), model
        if name in sources:
            raise ConfigError(
                f"two models would be called {name}: {sources[name]} and {source}; give one a name of its own, as in "
                f"other={source}."
            )
        sources[name] = source
    if not sources:
        raise ConfigError("the server needs a model: a checkpoint, an exported file or a shipped name.")
    return sources


def _own_name(model: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", detector_name(model)).strip("-.")[:100]
    return name or "model"
