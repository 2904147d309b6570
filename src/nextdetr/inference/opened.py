"""Where, at what size and from what pixels an opened detector runs: decided here, once, for every use of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from nextdetr.confidence import AUTO, barely_trained, read_calibrated, read_thresholds, stored_thresholds
from nextdetr.errors import ConfigError
from nextdetr.inference.exported import OpenedExport
from nextdetr.inference.familiarity import Familiarity, read_familiarity
from nextdetr.inference.predictor import Predictor
from nextdetr.inference.speed import Setting, SpeedPoint, read_points, read_table
from nextdetr.inference.times import pick, retimed
from nextdetr.memory import keep_freed_memory
from nextdetr.pictures import MAX_PIXELS
from nextdetr.preprocess import Reading

if TYPE_CHECKING:
    import torch

    from nextdetr.confidence import Confidence
    from nextdetr.weights.checkpoint import OpenedModel
    from nextdetr.weights.report import LoadReport

__all__ = [
    "Settled", "at_latency", "bits_metadata", "point_at", "settle", "stored_bits", "warn_of_gaps", "warn_of_random_weights",
    "warn_of_training",
]  # fmt: skip

logger = logging.getLogger(__name__)
_told: WeakKeyDictionary[object, str] = WeakKeyDictionary()  # what was said of the training of each model
_told_random: WeakKeyDictionary[object, set[bool]] = WeakKeyDictionary()  # whether random weights were, of what use

#: Key of a detector's metadata: significant bits of the 16-bit grey pictures that it was trained on.
BITS = "bits"
_ALLOWED = frozenset(str(bits) for bits in range(8, 17))
#: How many times more pixels a picture may have that is looked at in tiles.
TILED = 4


@dataclass(frozen=True, slots=True)
class Settled:
    """An opened detector, and all that is to be decided before it runs.

    Attributes:
        opened: the network, on ``device`` and in evaluation mode, and what is known of it.
        device: where it runs.
        image_size: side of its square input in pixels.
        reading: how picture files are read for it.
        queries: object queries, where a latency has chosen them; None leaves them to the model.
    """

    opened: OpenedModel | OpenedExport
    device: str
    image_size: int
    reading: Reading
    queries: int | None = None

    @property
    def thresholds(self) -> list[float] | None:
        """The detector's own least score of each class; None where its file has none."""
        return read_thresholds(self.opened.metadata, len(self.opened.classes))

    @property
    def calibrated(self) -> float | None:
        """The detector's own threshold of ``nextdetr calibrate``; None where its file has none."""
        found = read_calibrated(self.opened.metadata)
        return None if found is None else found.threshold

    @property
    def familiarity(self) -> Familiarity | None:
        """Detects images unlike the training images; None if the file has none, or none for this size."""
        found = read_familiarity(self.opened.metadata)
        if found is None or isinstance(self.opened, OpenedExport):
            return None
        from nextdetr.inference.pytorch.opening import fits

        return found if fits(self.opened, found, self.image_size) else None

    def predictor(self, **more: Any) -> Predictor:
        """Return what finds objects with it; ``more`` goes to ``Predictor``."""
        return Predictor(
            self.opened.model, self.opened.classes, self.image_size, device=self.device, reading=self.reading,
            queries=self.queries, thresholds=self.thresholds, calibrated=self.calibrated,
            familiarity=self.familiarity, **more
        )  # fmt: skip


def settle(
    opened: OpenedModel | OpenedExport,
    *,
    device: str | torch.device | None = None,
    image_size: int | None = None,
    bits: int | None = None,
    max_pixels: int | None = None,
    tiled: bool = False,
    latency: float | None = None,
    latency_of: str | Path | None = None,
) -> Settled:
    """Decide where and how a detector runs, and put it there.

    Args:
        opened: from ``open_any``.
        device: by default the best there is; an exported file runs on the processor.
        image_size: by default what the detector was trained, or exported, with.
        bits: of 16-bit grey pictures; by default what the detector was trained with, else 16.
        max_pixels: of a picture; by default what Pillow allows, and four times as many with ``tiled``.
        tiled: whether pictures are looked at in tiles.
        latency: milliseconds that an image may take; size, queries and decoder layers are then the detector's own choice.
        latency_of: a file of ``nextdetr benchmark`` with the times to go by; by default those in the detector's file.

    Raises:
        ConfigError: there is no such device, an exported file is to run on another one than the processor, the detector
            takes no images of that size, or nothing of it keeps the latency.
    """
    queries = None
    if latency is not None:
        opened, queries = at_latency(opened, latency, latency_of)
    size = image_size or opened.image_size
    opened.model.check_size(size)
    chosen = _place(opened, device)
    if chosen == "cpu":
        keep_freed_memory()
    if bits is None:
        bits = stored_bits(opened.metadata)
    limit = max_pixels or MAX_PIXELS * (TILED if tiled else 1)
    return Settled(opened, chosen, size, Reading(bits, limit), queries)


def _place(opened: OpenedModel | OpenedExport, device: str | torch.device | None) -> str:
    """Put a detector where it is to run, and return the device's name."""
    if not isinstance(opened, OpenedExport):
        from nextdetr.inference.pytorch.opening import place

        return place(opened, device)
    if device is not None and str(device) != "cpu":
        raise ConfigError(
            f"{opened.source}: an exported file runs on the processor: leave the device out, or name the checkpoint."
        )
    return "cpu"


def point_at(opened: OpenedModel | OpenedExport, latency: float, times: str | Path | None = None) -> SpeedPoint:
    """Return the point with which a detector keeps a latency; an exported file has only one, which must keep it.

    Raises:
        ConfigError: it has no table of speeds, or no point of it is that fast; the message says what is possible.
    """
    point = pick(opened.metadata, latency, opened.source, times)
    if not isinstance(opened, OpenedExport):
        return point
    contract = opened.model.contract
    own = Setting(contract.image_size, contract.queries, int(contract.details.get("decoder_layers", "0")))
    table = read_table(opened.metadata, opened.source)
    assert table is not None
    points = table.points if times is None else retimed(table.points, read_points(times))
    mine = next((known for known in points if known.setting == own), None)
    if mine is None or mine.latency_ms > latency:
        takes = f"was exported with {own.text}" + ("" if mine is None else f", which takes {mine.latency_ms:.1f} ms")
        raise ConfigError(
            f"{opened.source}: it {takes}, and a file has one speed: export the checkpoint with --latency {latency:g}."
        )
    return mine


def at_latency(
    opened: OpenedModel | OpenedExport, latency: float, times: str | Path | None = None
) -> tuple[OpenedModel | OpenedExport, int | None]:
    """Return a detector as it keeps a latency, at the size and with the decoder layers for it, and the number of queries.

    An exported file is returned as it is. Errors are those of ``point_at``.
    """
    point = point_at(opened, latency, times)
    if isinstance(opened, OpenedExport):
        return opened, None
    from nextdetr.inference.pytorch.opening import shortened

    return shortened(opened, point.layers, point.image_size), point.queries


def stored_bits(metadata: Mapping[str, str]) -> int:
    """Return the bits of the 16-bit grey pictures that a detector was trained on; 16 where nothing is said."""
    stated = metadata.get(BITS, "")
    return int(stated) if stated in _ALLOWED else 16


def bits_metadata(bits: int) -> dict[str, str]:
    """Return what a detector's file says of its bits: nothing of 16, which is the rule."""
    return {} if bits == 16 else {BITS: str(bits)}


def warn_of_training(opened: OpenedModel | OpenedExport, confidence: Confidence) -> None:
    """Log a warning where classes are barely trained, and so have another threshold than their own with ``auto``.

    It comes once for each opened detector, however often that is used.
    """
    doubt = barely_trained(stored_thresholds(opened.metadata, len(opened.classes)), opened.classes)
    if doubt and isinstance(confidence, str) and confidence == AUTO:
        if _told.get(opened.model) != doubt:
            logger.warning("%s is %s", opened.source, doubt)
        _told[opened.model] = doubt


def warn_of_gaps(reports: Iterable[LoadReport]) -> None:
    """Log what weights did not have, for commands whose output has no place for a report of a complete load."""
    for report in reports:
        if not report.complete:
            logger.warning("%s", report.text())


def warn_of_random_weights(opened: OpenedModel | OpenedExport, *, weights: bool, maps_only: bool = False) -> None:
    """Log a warning where what a detector says means nothing, as no weights were trained.

    It comes once for each opened detector and kind of use, as that of ``warn_of_training``.

    Args:
        opened: the detector.
        weights: whether weights of a detector were given beside it.
        maps_only: only its maps are used, for which a trained backbone is enough.
    """
    known = bool(opened.metadata) if maps_only else opened.trained or weights
    if not isinstance(opened, OpenedExport) and not known and maps_only not in _told_random.setdefault(opened.model, set()):
        _told_random[opened.model].add(maps_only)
        logger.warning(
            "%s: random weights, so the result means nothing: train it first, or give it weights.", opened.source
        )
