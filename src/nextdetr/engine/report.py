"""Reports: run a detector over a split, analyse its detections and write the page; for ``nextdetr report``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from nextdetr.confidence import THRESHOLDS, Thresholds, barely_trained, stored_thresholds, thresholds_metadata
from nextdetr.config import ReportConfig, TrainConfig, ValConfig
from nextdetr.data.joined import sets_text
from nextdetr.data.raw import plural
from nextdetr.data.records import DetectionData
from nextdetr.detector_files import check_not_cached, detector_name, own_folder
from nextdetr.engine.curves import plot_curves
from nextdetr.engine.evaluate import CocoEvaluator, EvalResult
from nextdetr.engine.validate import check_own_weights, examine
from nextdetr.errors import ConfigError, DataError
from nextdetr.files import check_writable, optional_file, write_text_atomic
from nextdetr.inference.exported import OpenedExport
from nextdetr.inference.opened import stored_bits
from nextdetr.inference.speed import read_table
from nextdetr.inference.speed_text import table_lines
from nextdetr.report.analysis import Analysis, analyse
from nextdetr.report.figures import INK, themed
from nextdetr.report.matching import IOUS, match
from nextdetr.report.pages import Facts, page_file, report_page
from nextdetr.report.thresholds import best_thresholds

if TYPE_CHECKING:
    import torch

    from nextdetr.weights.checkpoint import OpenedModel

__all__ = ["ReportResult", "report", "report_target", "thresholds_of", "training_report", "write_page"]

_log = logging.getLogger(__name__)

PAGE = "report.html"

Scored: TypeAlias = tuple[CocoEvaluator, EvalResult]  # the detections on a split, and their scores


@dataclass(frozen=True, slots=True)
class ReportResult:
    """What ``report`` returns; the fields of the JSON result.

    Attributes:
        model, data, split: what was scored, and on what.
        images: number of images.
        output: the HTML file.
        metrics: the twelve COCO metrics, fractions 0 to 1, None if undefined, as in ``val``.
        per_class: by name, ``AP``, ``AP50``, ``AP_small``, ``AP_medium``, ``AP_large`` and the number of ``boxes``.
        thresholds: by name, the confidence with the best F1 on this split; empty if nothing was found.
        confidence: by name, the confidence in use: the detector's own, else ``thresholds``, else the default; the default,
            too, for classes that are barely trained.
        errors: by kind, ``count`` and ``cost``, the AP50 lost to them.
        calibration_error: expected calibration error; None if nothing was found.
        confusion: ``classes`` and ``counts``, rows for true and columns for predicted classes; the last is background.
        without_objects: number of ``images`` without objects, and of ``false_positives`` in them.
        seconds_per_image: means of ``preprocess``, ``model`` and ``postprocess``.
    """

    model: str
    data: str
    split: str
    images: int
    output: str
    metrics: dict[str, float | None]
    per_class: dict[str, dict[str, Any]]
    thresholds: dict[str, float]
    confidence: dict[str, float]
    errors: dict[str, dict[str, float]]
    calibration_error: float | None
    confusion: dict[str, Any]
    without_objects: dict[str, int]
    seconds_per_image: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON result of the command."""
        return {"command": "report", **{name: getattr(self, name) for name in self.__slots__}}


def report(opened: OpenedModel | OpenedExport, config: ReportConfig, *, quiet: bool = False) -> ReportResult:
    """Score a detector on a split, analyse its detections and write the page.

    Args:
        opened: the detector.
        config: the settings; without ``output`` the page is ``report.html`` beside the detector's file. ``output`` may be a
            folder, too.
        quiet: show no progress on standard error.

    Raises:
        DataError: the data set or the split cannot be used.
        ConfigError: thresholds cannot be stored for this detector, or not with these settings.
        WriteError: the page cannot be written there.
    """
    if config.store:
        _check_store(opened, config)
    target = report_target(opened.source) if config.output is None else page_file(config.output, PAGE)
    check_writable(target)
    examined = examine(opened, config, quiet=quiet)
    other = "" if isinstance(opened, OpenedExport) or not opened.given else opened.metadata["source_weights"]
    analysis = write_page(
        target, examined.evaluator, examined.result, model=opened.source, split=config.split, size=examined.image_size,
        metadata=opened.metadata, table=None if other else _metrics_table(opened.source), pictures=config.pictures,
        device=str(examined.device), weights=other,
    )  # fmt: skip
    if config.store:
        _store(opened, analysis, config.split)
    return ReportResult(
        model=opened.source, data=str(config.data), split=config.split, images=examined.result.images, output=str(target),
        seconds_per_image=dict(examined.result.seconds_per_image), **analysis.to_json(),
    )  # fmt: skip


def _check_store(opened: OpenedModel | OpenedExport, config: ReportConfig) -> None:
    """Check that the thresholds of this report are those of the detector as its file has it, and can be stored there.

    Raises:
        ConfigError: it is no checkpoint, or it runs with other weights or settings than ``predict`` would use.
        WriteError: it cannot be written.
    """
    if isinstance(opened, OpenedExport) or Path(opened.source).suffix != ".safetensors":
        raise ConfigError(f"{opened.source}: --store writes into a checkpoint (*.safetensors); name the checkpoint.")
    check_own_weights(opened, "report --store")
    changed = {
        "image-size": config.image_size not in (None, opened.image_size), "queries": config.queries is not None,
        "latency": config.latency is not None, "bits": config.bits not in (None, stored_bits(opened.metadata)),
    }  # fmt: skip
    other = next((name for name, applies in changed.items() if applies), None)
    if other is not None:
        raise ConfigError(
            f"{opened.source}: --store keeps thresholds for the detector's own settings, and --{other} shifts its scores: "
            "leave one of the two out."
        )
    check_not_cached(opened.source, "report --store")
    check_writable(opened.source)


def write_page(
    target: Path,
    evaluator: CocoEvaluator,
    result: EvalResult,
    *,
    model: str,
    split: str,
    size: int,
    metadata: Mapping[str, str],
    table: Path | None = None,
    pictures: int = 12,
    device: str = "cpu",
    weights: str = "",
) -> Analysis:
    """Analyse the detections on a split and write the page atomically.

    Args:
        target: the HTML file.
        evaluator: has the detections, after ``summarize``.
        result: its scores.
        model: name of the detector.
        split: name of the split.
        size: side of the square input in pixels.
        metadata: metadata of the detector's file, with its thresholds and speed table, if any.
        table: the run's ``metrics.csv``.
        pictures: maximum number of images to show.
        device: device that it ran on.
        weights: names of the weights that were given beside the model, if any.
    """
    data = evaluator.data
    own = stored_thresholds(metadata, len(data.classes))
    analysis = analyse(
        data, evaluator.state(), dict(result.metrics), result.per_class, evaluator.precision,
        own=None if own is None else own.usable(), order=evaluator.order(),
    )  # fmt: skip
    speed = read_table(metadata, model)
    training = None
    if table is not None:
        with themed("training", 12, 3.8) as (figure, drawn):
            plotted = plot_curves(figure, table, ink=INK)
        training = drawn[0] if plotted else None
    named = f"model {model}, weights {weights}" if weights else f"model {model}"
    facts = Facts(
        title=f"{detector_name(model)} on {data.name}", stored=own is not None, pictures=pictures, device=device,
        doubt=barely_trained(own or analysis.thresholds, data.classes),
        subtitle=f"split {split}, {plural(result.images, 'image')} at {size} px; {named}",
        seconds=dict(result.seconds_per_image), speed=[] if speed is None else table_lines(speed), training=training,
    )  # fmt: skip
    write_text_atomic(target, report_page(analysis, facts))
    return analysis


def training_report(
    checkpoint: Path,
    data: DetectionData,
    scored: Scored | None,
    config: TrainConfig,
    device: torch.device,
) -> Scored | None:
    """Write the page of a training into its folder, with ``report``; a failure is only a warning.

    Args:
        checkpoint: the best weights.
        data: the split that chose them.
        scored: detections and scores of the best weights; None computes them, as after a resume without improvement.
        config: settings of the training.
        device: device to run on.

    Returns:
        ``scored``, computed if it was None.
    """
    if not checkpoint.is_file():
        return None
    from nextdetr.weights.checkpoint import open_model

    opened = open_model(checkpoint)
    if scored is None:
        asked = ValConfig(data=sets_text(config.data or ""), batch_size=config.batch_size, device=str(device))
        try:
            examined = examine(opened, asked, quiet=True, data=data)
        except DataError as error:  # an image is gone, but the run is complete
            _log.warning("%s The run ends without a report.", error)
            return None
        scored = examined.evaluator, examined.result
    if config.report:
        with optional_file():
            write_page(
                checkpoint.parent / PAGE, *scored, model=str(checkpoint), split=data.split, size=opened.image_size,
                metadata=opened.metadata, table=_metrics_table(str(checkpoint)), device=str(device),
            )  # fmt: skip
    return scored


def thresholds_of(evaluator: CocoEvaluator) -> Thresholds:
    """Return the confidence with the best F1 of each class, from the detections of an evaluator."""
    data = evaluator.data
    return best_thresholds(match(data.records, evaluator.state(), len(data.classes), ious=IOUS[:1]))


def report_target(source: str | Path) -> Path:
    """Return the path of a detector's page: in the folder of its file, or in the working directory (``own_folder``)."""
    return (own_folder(source) or Path()) / PAGE


def _metrics_table(source: str) -> Path | None:
    folder = own_folder(source)
    return folder / "metrics.csv" if folder is not None and (folder / "metrics.csv").is_file() else None


def _store(opened: OpenedModel | OpenedExport, analysis: Analysis, split: str) -> None:
    from nextdetr.weights.checkpoint import extra_metadata, open_model, save_opened

    best = analysis.thresholds
    if not best.values:
        raise ConfigError(f"{opened.source}: nothing was found, so there is no threshold to store.")
    fresh = open_model(opened.source)  # as stored, not as it ran
    extra = {name: text for name, text in extra_metadata(fresh.metadata).items() if name != THRESHOLDS}
    save_opened(opened.source, fresh, extra=extra | thresholds_metadata(best.values, best.f1, split=split))
