"""From an opened detector to predictions: its methods, where it runs, what looks on, and the ids that results get."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from nextdetr.confidence import CALIBRATED, read_calibrated
from nextdetr.config import PredictConfig, build_config
from nextdetr.errors import ConfigError

if TYPE_CHECKING:
    from nextdetr.identity import Identity
    from nextdetr.inference.camera_report import CameraReport
    from nextdetr.inference.exported import OpenedExport, Runtime
    from nextdetr.inference.opened import Settled
    from nextdetr.inference.predictor import Prediction, Predictor
    from nextdetr.inference.results import Results
    from nextdetr.inference.sources import Sources
    from nextdetr.models.detection import DetectionModel
    from nextdetr.weights.checkpoint import OpenedModel

__all__ = ["Predicting", "predictions"]

logger = logging.getLogger(__name__)


class Predicting:
    """What a detector does with images."""

    source: str
    device: str | None
    runtime: Runtime
    _start: dict[str, Any]

    @property
    def opened(self) -> OpenedModel | OpenedExport:
        """The network and what is known of it."""
        raise NotImplementedError

    def _network(self, purpose: str) -> OpenedModel:
        raise NotImplementedError

    def __call__(self, source: Sources, **settings: Any) -> Results:
        """Do what :meth:`predict` does."""
        return self.predict(source, **settings)

    def predict(self, source: Sources, **settings: Any) -> Results:
        """Find objects: always a list with one result an image, which is a ``supervision.Detections`` that knows its image.

        Boxes are xyxy in pixels of the image. See :class:`nextdetr.inference.results.Result` for ``save``, ``show``,
        ``plot``, ``crops``, ``to_pandas`` and the rest.

        Args:
            source: an image file, a folder, a glob pattern, an address (``https://…``), a PIL image, an RGB array
                [H, W, 3], a tensor [3, H, W], the bytes of an image file or a file object with them, or several of these;
                or a video, an animated GIF, a camera's number or a stream's address, whose frames count as images.
            settings: the options of ``nextdetr predict`` as keywords (``confidence``, ``classes``, ``max_detections``,
                ``merge_iou``, ``queries``, …); with ``output``, what ``save`` names is written there too, and with
                ``features``, pictures of each backbone stage and fusion level there.

        Raises:
            DataError: no image is found, or none of them can be read; one that cannot has a ``problem`` and no detections.
        """
        from nextdetr.inference.results import Result, Results
        from nextdetr.preprocess import is_image_source

        keep = is_image_source(source) or isinstance(source, list | tuple)  # the caller has them in memory anyway
        return Results(Result.of(item, keep=keep) for item in self.stream(source, **settings))

    def track(self, source: Sources, **settings: Any) -> Iterator[Prediction]:
        """Follow objects from image to image: ``stream`` with ``track=True``, and each result as soon as it is there.

        Images that are no frames of a video, such as arrays from a camera of your own, are taken for the frames of one
        sequence, in their order and 30 a second; ``detections.tracker_id`` is -1 while an object has no track yet.

        Args:
            source: as for :meth:`predict`; also a generator, which is drawn from as results are asked for.
            settings: as for :meth:`predict`; ``batch_size`` is 1 unless it is given.

        Raises:
            ConfigError: the package trackers is missing (extra ``track``).
        """
        return self.stream(source, **{"batch_size": 1, **settings, "track": True})

    def stream(
        self,
        source: Sources,
        config: PredictConfig | None = None,
        *,
        skipped: Counter[str] | None = None,
        camera_report: CameraReport | None = None,
        **settings: Any,
    ) -> Iterator[Prediction]:
        """Yield one prediction an image or frame, holding no more than a batch of them in memory.

        With ``output``, what ``save`` names is written there on the way.

        Args:
            source: as for :meth:`predict`.
            config: the settings; without a device of its own it runs on the detector's.
            skipped: counts what is skipped, by kind: ``heic``, ``raw``, ``unreadable`` files, and ``frames``.
            camera_report: counts what was computed with ``static_camera``.
            settings: the settings as keywords, as for :meth:`predict`; they win over those of ``config``.
        """
        given = {} if config is None else {name: getattr(config, name) for name in config.model_fields_set}
        config = build_config(PredictConfig, given | settings)
        config = config.model_copy(update={"device": config.device or self.device})
        return predictions(
            self.opened, source, config, name=self.source, runtime=self.runtime, start=self._start,
            network=self._network, skipped=skipped, camera_report=camera_report,
        )  # fmt: skip


def predictions(
    opened: OpenedModel | OpenedExport,
    source: Sources,
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
        DataError: no image is found, or none of them can be read.
    """
    from nextdetr.inference.opened import settle, warn_of_random_weights, warn_of_training
    from nextdetr.inference.pipeline import file_identity, predict_stream

    settled = settle(
        opened, device=config.device, image_size=config.image_size, bits=config.bits, max_pixels=config.max_pixels,
        tiled=config.tile is not None, latency=config.latency, latency_of=config.latency_of,
    )  # fmt: skip
    warn_of_random_weights(settled.opened, weights=start.get("weights") is not None)
    warn_of_training(opened, config.confidence)
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
        "with fewer detections": config.max_detections < 300, "with --merge-iou": config.merge_iou is not None,
    }  # fmt: skip
    reasons = [text for text, applies in changed.items() if applies]
    if config.confidence == CALIBRATED and reasons:
        logger.warning("%s: its bound on missed objects does not hold %s.", opened.source, " and ".join(reasons))
    if known.familiarity and predictor.familiarity is None:
        why = "in an exported file, which gives boxes only"
        if not isinstance(opened, OpenedExport):
            why = "with --static-camera" if config.static_camera else "at another image size than it was calibrated at"
        logger.warning("%s: whether images are unlike those of its training is not checked %s.", opened.source, why)
