"""A confidence threshold that bounds the missed objects, and detection of unfamiliar images; ``nextdetr calibrate``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextdetr.confidence import CALIBRATION, Calibrated, thresholds_split
from nextdetr.config import CalibrateConfig, ValConfig
from nextdetr.data.joined import is_part_of, name_of
from nextdetr.data.leak import same_files
from nextdetr.data.objects import split_called
from nextdetr.data.raw import plural
from nextdetr.data.records import DetectionData, ImageRecord
from nextdetr.data.seen import is_seen, trained_on
from nextdetr.data.sources import available_splits, load_data
from nextdetr.detector_files import check_not_cached
from nextdetr.engine.log import Display
from nextdetr.engine.validate import Examined, check_own_weights, examine
from nextdetr.errors import ConfigError, DataError
from nextdetr.files import check_writable
from nextdetr.inference.exported import OpenedExport
from nextdetr.inference.familiarity import Familiarity, conformal_limit, fit_space
from nextdetr.inference.pytorch.embed import embed_images
from nextdetr.models.detection import DetectionModel
from nextdetr.report.guarantee import Threshold, control_risk, found_objects
from nextdetr.report.matching import match
from nextdetr.weights.checkpoint import FAMILIARITY, OpenedModel, extra_metadata, open_model, save_opened

__all__ = ["CalibrateResult", "calibrate"]

logger = logging.getLogger(__name__)

CHUNK = 128  # images per update of the progress bar
CHOSEN_BY = {"train": "the weights were learned from it", "val": "the best weights and their thresholds were chosen on it"}


@dataclass(frozen=True, slots=True)
class CalibrateResult:
    """What ``calibrate`` returns; the fields of the JSON result.

    Attributes:
        model: the checkpoint.
        data: the data set.
        split: the split that was used.
        images: number of images with objects, from which the threshold is computed (n).
        images_without_objects: number of the others, which only ``unlike`` uses.
        recall: the requested recall, 0 to 1.
        iou: least IoU at which an object counts as found.
        threshold: the stored confidence; None if the recall cannot be reached.
        missed: mean fraction of missed objects per image here, at the threshold, or with all detections.
        bound: upper bound on its expectation for a new image.
        highest_recall: the highest recall that these images can guarantee.
        unlike: ``limit`` on the distance from the training images, the largest ``share`` of ordinary images that exceeds
            it, and the number of ``training_images``; None if unknown.
        unlike_reason: why it is unknown, a sentence.
        passed: whether a threshold was found and stored.
    """

    model: str
    data: str
    split: str
    images: int
    images_without_objects: int
    recall: float
    iou: float
    threshold: float | None
    missed: float
    bound: float
    highest_recall: float
    unlike: dict[str, float] | None
    unlike_reason: str | None
    passed: bool

    def to_json(self) -> dict[str, Any]:
        """Return the JSON result of the command."""
        return {"command": "calibrate", **{name: getattr(self, name) for name in self.__slots__}}


def calibrate(opened: OpenedModel | OpenedExport, config: CalibrateConfig, *, quiet: bool = False) -> CalibrateResult:
    """Find the highest confidence that bounds the fraction of missed objects, and store it in the checkpoint.

    If the recall cannot be reached, nothing is stored and ``passed`` is False.

    Args:
        opened: the detector, from its checkpoint.
        config: the settings.
        quiet: show no progress on standard error.

    Raises:
        ConfigError: the detector is not a writable checkpoint with its own weights, or the split chose its weights or
            thresholds.
        DataError: the data set or the split cannot be used, has no objects, or has images of the training or of val.
        WriteError: the checkpoint cannot be written.
    """
    if config.data is None:
        raise ConfigError("a calibration needs a data set: give --data with a folder or a YAML.")
    check_own_weights(opened, "calibrate")
    if not (isinstance(opened, OpenedModel) and Path(opened.source).suffix == ".safetensors"):
        raise ConfigError(
            f"{opened.source}: calibrate writes into a trained checkpoint (*.safetensors): name that, and export it again."
        )
    check_not_cached(opened.source, "calibrate")
    check_writable(opened.source)
    data, training = _read(opened, config)
    asked = ValConfig(data=config.data, split=config.split, batch_size=config.batch_size, device=config.device)
    examined = examine(opened, asked, quiet=quiet, data=data)
    data = examined.data
    matches = match(data.records, examined.evaluator.state(), len(data.classes), ious=np.array([config.iou]))
    objects = found_objects(matches)
    if not len(objects.count):
        raise DataError(f"{config.data}: no image of the split {config.split} has an object, so nothing can be missed.")
    found = control_risk(objects, config.recall)
    familiarity, reason, count = None, None, 0
    if found.threshold is not None:
        with Display(enabled=not quiet) as display:
            familiarity, reason, count = _familiarity(examined, training, config, display)
        _store(opened, config, found, familiarity)
    unlike = None if familiarity is None else {
        "limit": familiarity.limit, "share": familiarity.share, "training_images": count,
    }  # fmt: skip
    return CalibrateResult(
        opened.source, str(config.data), config.split, found.images, len(data.records) - found.images, config.recall,
        config.iou, found.threshold, found.missed, found.bound, found.highest_recall, unlike, reason,
        found.threshold is not None,
    )  # fmt: skip


def _read(opened: OpenedModel, config: CalibrateConfig) -> tuple[DetectionData, DetectionData | None]:
    """Return the split, and the training images if the data set is the one that the detector was trained on.

    Raises:
        ConfigError: the split chose weights or thresholds.
        DataError: there is no such split, or some of its images chose weights or thresholds.
    """
    assert config.data is not None
    there = available_splits(config.data)
    own = is_part_of(str(config.data), opened.metadata.get("data", ""))
    if own:
        chosen = {_plain(thresholds_split(opened.metadata)): "the thresholds were chosen on it"} | CHOSEN_BY
        reason = chosen.get(_plain(config.split))
        if reason is not None:
            raise ConfigError(
                f"{config.data}: the bound would not hold on the split {config.split}, as {reason}: set "
                "images aside that played no part in training, and name them with --split (default: test)."
            )
    if config.split not in there:
        raise DataError(
            f"{config.data}: there is no split {config.split}; available: {', '.join(there)}. A calibration needs images "
            "that chose neither weights nor thresholds: set some aside as test, or name a split of them with --split."
        )
    data = load_data(config.data, config.split, classes=opened.classes, on_bad_data=config.on_bad_data)
    if not own:
        _refuse_seen(opened, data, config)
        if opened.metadata.get("data", "none") != "none":
            logger.warning(
                "%s was trained on %s: the bound on %s holds only if no image of it chose its weights or thresholds.",
                opened.source, opened.metadata["data"], name_of(str(config.data)),
            )  # fmt: skip
        return data, None
    others = {
        split: load_data(config.data, split, classes=opened.classes, check_images=False)
        for split in CHOSEN_BY if split in there
    }  # fmt: skip
    for split, other in others.items():
        shared = sum(path is not None for path in same_files(other.records, data.records))
        if shared:
            raise DataError(
                f"{config.data}: {shared:,} of the {len(data.records):,} images of the split {config.split} are in {split} "
                f"too, so the bound would not hold, as {CHOSEN_BY[split]}: take them out (nextdetr doctor finds them)."
            )
    _refuse_seen(opened, data, config)  # by a detector that it started from
    return data, others.get("train")


def _plain(split: str) -> str:
    """Return train, val or test for another spelling of one of them; other names are unchanged."""
    return split_called(split) or split


def _refuse_seen(opened: OpenedModel, data: DetectionData, config: CalibrateConfig) -> None:
    """Refuse images that the detector, its teacher, or one that it started from was trained on, as far as its file says.

    Raises:
        DataError: there are such images.
    """
    known = trained_on(opened.metadata)
    count = sum(is_seen(data.records, known)) if known else 0
    if count:
        raise DataError(
            f"{config.data}: {opened.source}, its teacher, or a detector that it started from, was trained on {count:,} of "
            f"the {plural(len(data.records), 'image')} of the split {config.split}, so the bound would not hold: set "
            "images aside that played no part in training, and name them with --data and --split."
        )


def _familiarity(
    examined: Examined, training: DetectionData | None, config: CalibrateConfig, display: Display
) -> tuple[Familiarity | None, str | None, int]:
    """Return the model of familiar images, or why there is none, and the number of training images behind it."""
    if training is None:
        return None, "the training images are not in this data set, so images unlike them are not told", 0
    records = training.records
    if len(records) > config.training_images:
        chosen = np.random.default_rng(0).choice(len(records), config.training_images, replace=False)
        records = [records[place] for place in sorted(chosen.tolist())]
    space = fit_space(_vectors(examined, records, config, display))
    if space is None:
        return None, "there are too few training images, or they do not differ, so images unlike them are not told", 0
    distances = space.distances(_vectors(examined, examined.data.records, config, display))
    limit = conformal_limit(distances, config.unlike)
    if limit is None or limit <= 0:
        return None, f"the split has too few images for --unlike {config.unlike:g}, so unlike images are not told", 0
    return Familiarity(space, limit, config.unlike, examined.image_size), None, len(records)


def _vectors(
    examined: Examined, records: Sequence[ImageRecord], config: CalibrateConfig, display: Display
) -> NDArray[np.float32]:
    """Return the features [N, C] of the readable images."""
    model, parts = examined.opened.model, []
    assert isinstance(model, DetectionModel)
    for start in range(0, len(records), CHUNK):
        display.update("comparing with training", start / len(records), f"{start}/{len(records)} images")
        found = embed_images(
            model, [record.path for record in records[start : start + CHUNK]], image_size=examined.image_size,
            batch_size=config.batch_size, device=examined.device, reading=examined.data.reading,
        )  # fmt: skip
        parts.append(found.embeddings)
    vectors = np.concatenate(parts)
    return vectors[np.isfinite(vectors).all(axis=1)]


def _store(opened: OpenedModel, config: CalibrateConfig, found: Threshold, familiarity: Familiarity | None) -> None:
    assert found.threshold is not None
    entry = Calibrated(
        found.threshold, config.recall, round(found.bound, 6), config.iou, found.images, name_of(str(config.data)),
        config.split, opened.image_size, familiarity is not None,
    )  # fmt: skip
    fresh = open_model(opened.source)  # as stored, not as it ran
    extra = {key: text for key, text in extra_metadata(fresh.metadata).items() if key not in (CALIBRATION, FAMILIARITY)}
    known = {} if familiarity is None else familiarity.to_metadata()
    save_opened(opened.source, fresh, extra=extra | entry.to_metadata() | known)
