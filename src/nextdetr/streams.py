"""From an opened detector to a stream of predictions: where it runs, what looks on, and the ids that results get."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nextdetr.confidence import CALIBRATED, read_calibrated
from nextdetr.config import PredictConfig
from nextdetr.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from nextdetr.identity import Identity
    from nextdetr.inference.camera_report import CameraReport
    from nextdetr.inference.exported import OpenedExport, Runtime
    from nextdetr.inference.opened import Settled
    from nextdetr.inference.predictor import Prediction, Predictor
    from nextdetr.models.detection import DetectionModel
    from nextdetr.weights.checkpoint import OpenedModel

    Source = str | Path | Image.Image | np.ndarray

__all__ = ["predictions"]

logger = logging.getLogger(__name__)


def predictions(
    opened: OpenedModel | OpenedExport,
    source: Source | Iterable[Source],
    config: PredictConfig,
    *,
    name: str,
    runtime: Runtime = "auto",
    start: Mapping[str, Any],
    network: Callable[[str], OpenedModel],
    skipped: Counter[str] | None = None,
    camera_report: CameraReport | None = None,
) -> Iterator[Prediction]:
    """Yield one prediction an image or frame; see ``Detector.stream``.

    Args:
        opened: the detector.
        source: see ``Detector.predict``.
        config: the settings.
        name: what the user called the detector.
        runtime: what runs an exported file.
        start: the weights that the detector was opened with, as arguments of ``open_any``.
        network: returns the detector as a module of torch, or refuses what it is to do, as an exported file cannot.
        skipped: see ``Detector.stream``.
        camera_report: likewise.

    Raises:
        ConfigError: a setting cannot go with this detector.
        DataError: no image is found, or one cannot be read.
    """
    from nextdetr.inference.opened import settle, warn_of_random_weights
    from nextdetr.inference.pipeline import file_identity, predict_stream

    settled = settle(
        opened, device=config.device, image_size=config.image_size, bits=config.bits, max_pixels=config.max_pixels,
        tiled=config.tile is not None, latency=config.latency, latency_of=config.latency_of,
    )  # fmt: skip
    warn_of_random_weights(settled.opened, weights=start.get("weights") is not None)
    recorder = None
    if config.features is not None:
        if config.engine == "ray":
            raise ConfigError("--features draws what this process looks at: leave --engine ray out.")
        model = network("show its maps").model
        from nextdetr.inference.pytorch.recorder import FeatureRecorder

        recorder = FeatureRecorder(model)
    camera = None
    if config.static_camera:
        network("compute only what has changed (--static-camera)")
        from nextdetr.inference.pytorch.static_camera import StaticCamera

        camera = StaticCamera(cast("DetectionModel", settled.opened.model), config.full_every, camera_report)
    predictor = settled.predictor(recorder=recorder, camera=camera)
    _tell_what_holds(settled, predictor, config)
    if skipped is not None:
        predictor.skipped = skipped
    found = predict_stream(
        predictor, source, config, model=file_identity(settled.opened.source),
        opens={"model": name, "runtime": runtime, **start}, identity=_identity(opened, config),
    )  # fmt: skip
    if config.features is None:
        return found
    from nextdetr.inference.features import save_features

    return save_features(found, config.features)


def _identity(opened: OpenedModel | OpenedExport, config: PredictConfig) -> Identity:
    """Return the ids that results get: those of a COCO file, else those that the opened file carries."""
    from nextdetr.identity import Identity

    if config.annotations is None:
        return Identity.from_metadata(opened.metadata)
    from nextdetr.data.identity import coco_identity

    return coco_identity(config.annotations, opened.classes)


def _tell_what_holds(settled: Settled, predictor: Predictor, config: PredictConfig) -> None:
    """Log where a calibrated detector runs so that what its calibration says does not hold, or cannot be checked."""
    from nextdetr.inference.exported import OpenedExport

    opened = settled.opened
    known = read_calibrated(opened.metadata)
    if known is None:
        return
    changed = {
        f"at {settled.image_size} px instead of {known.image_size}": settled.image_size != known.image_size,
        "with other queries": config.queries is not None, "with --latency": config.latency is not None,
        "in tiles": config.tile is not None, "with --static-camera": config.static_camera,
        "with fewer detections": config.max_detections < 300,
    }  # fmt: skip
    reasons = [text for text, applies in changed.items() if applies]
    if config.confidence == CALIBRATED and reasons:
        logger.warning("%s: its bound on missed objects does not hold %s.", opened.source, " and ".join(reasons))
    if known.familiarity and predictor.familiarity is None:
        why = "in an exported file, which gives boxes only"
        if not isinstance(opened, OpenedExport):
            why = "with --static-camera" if config.static_camera else "at another image size than it was calibrated at"
        logger.warning("%s: whether images are unlike those of its training is not checked %s.", opened.source, why)
