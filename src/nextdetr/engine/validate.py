"""Scoring of a detector on a split, for ``nextdetr val`` and analyses of its detections; no torch of its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from nextdetr.config import ValConfig
from nextdetr.data.check import summarize_problems
from nextdetr.data.records import DetectionData, read_as
from nextdetr.data.split import SetAside, load_scored, load_split_off
from nextdetr.engine.evaluate import CocoEvaluator, EvalResult, evaluate
from nextdetr.engine.log import Display
from nextdetr.errors import ConfigError
from nextdetr.inference.exported import OpenedExport
from nextdetr.inference.notebook import html_table, html_text
from nextdetr.inference.opened import settle

if TYPE_CHECKING:
    from nextdetr.weights.checkpoint import OpenedModel

__all__ = ["Examined", "ValResult", "check_own_weights", "examine", "load_split", "score_detector"]


@dataclass(frozen=True, slots=True)
class ValResult:
    """What ``val`` returns; the fields of the JSON result.

    Attributes:
        model, data, split: what was scored, and on what.
        images: number of images.
        metrics: the twelve COCO metrics, fractions 0 to 1, None where undefined.
        per_class: by name, ``AP``, ``AP50`` and the number of ``boxes``.
        seconds_per_image: means of ``preprocess``, ``model`` and ``postprocess``.
    """

    model: str
    data: str
    split: str
    images: int
    metrics: dict[str, float | None]
    per_class: dict[str, dict[str, Any]]
    seconds_per_image: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON result of the command."""
        return {"command": "val", **asdict(self)}

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the metrics of all classes, and those of each."""
        title = f"<p>{html_text(self.model)} on {html_text(self.data)}, {self.split}: {self.images:,} images</p>"
        classes = [(name, row["AP"], row["AP50"], row["boxes"]) for name, row in self.per_class.items()]
        every = html_table(tuple(self.metrics), [tuple(self.metrics.values())])
        return title + every + html_table(("class", "AP", "AP50", "boxes"), classes, most=100)


def load_split(opened: OpenedModel | OpenedExport, config: ValConfig, *, can_split_off: bool = True) -> DetectionData:
    """Read the split to score; without a ``val``, the images that the detector's training set aside."""
    assert config.data is not None
    classes = opened.classes if opened.trained else None
    if config.split_off is not None:
        aside = SetAside.from_metadata(opened.metadata)
        return load_split_off(
            config.data, config.split, config.split_off, config.seed, classes=classes, on_bad_data=config.on_bad_data,
            min_confidence=None if aside is None else aside.min_confidence,
        )  # fmt: skip
    return load_scored(
        config.data, config.split, opened.metadata, classes=classes, on_bad_data=config.on_bad_data,
        can_split_off=can_split_off,
    )  # fmt: skip


def check_own_weights(opened: OpenedModel | OpenedExport, command: str) -> None:
    """Refuse to write into the file of a detector that runs with other weights than those in it.

    Args:
        opened: the detector.
        command: what would write.

    Raises:
        ConfigError: weights were given beside it.
    """
    if not isinstance(opened, OpenedExport) and opened.given:
        raise ConfigError(
            f"{opened.source}: {command} writes into the checkpoint, but other weights were given beside it: save it first "
            '(in Python, detector.save("FILE.safetensors")), and name that file.'
        )


@dataclass(frozen=True, slots=True)
class Examined:
    """A detector's scores and detections on a split.

    Attributes:
        opened: the detector, as it ran.
        data: the split.
        evaluator: has the detections of all images.
        result: the scores.
        image_size: side of the square input in pixels.
        device: device that it ran on.
    """

    opened: OpenedModel | OpenedExport
    data: DetectionData
    evaluator: CocoEvaluator
    result: EvalResult
    image_size: int
    device: str


def score_detector(
    opened: OpenedModel | OpenedExport,
    config: ValConfig,
    *,
    quiet: bool = False,
    data: DetectionData | None = None,
    describe: bool = True,
    can_split_off: bool = True,
) -> ValResult:
    """Score an opened detector; the arguments and errors are those of :func:`examine`."""
    examined = examine(opened, config, quiet=quiet, data=data, describe=describe, can_split_off=can_split_off)
    result = examined.result
    return ValResult(
        opened.source, str(config.data), config.split, result.images, dict(result.metrics), dict(result.per_class),
        dict(result.seconds_per_image),
    )  # fmt: skip


def examine(
    opened: OpenedModel | OpenedExport,
    config: ValConfig,
    *,
    quiet: bool = False,
    data: DetectionData | None = None,
    describe: bool = True,
    can_split_off: bool = True,
) -> Examined:
    """Run an opened detector over a split and score it.

    Args:
        opened: the detector.
        config: the settings.
        quiet: show no progress on standard error.
        data: the split, if it was already read.
        describe: report the format of the data set, its problems, and random weights; commands that score a detector on it
            several times do so once.
        can_split_off: whether the command has ``--split-off``, for the message if there is no such split.

    Raises:
        DataError: the data set or split cannot be used, or has none of the detector's classes.
        ConfigError: there is no such device.
    """
    if config.data is None:
        raise ConfigError("scoring needs a data set: give --data with a folder or a YAML.")
    settled = settle(
        opened, device=config.device, image_size=config.image_size, bits=config.bits, latency=config.latency,
        latency_of=config.latency_of,
    )  # fmt: skip
    if data is None:
        data = load_split(opened, config, can_split_off=can_split_off)
    data = replace(data, reading=settled.reading)
    evaluator = CocoEvaluator(data)
    with Display(enabled=not quiet) as display:
        if describe and data.recognised:
            display.line(read_as(data.recognised))
        if describe and data.problems:
            display.line(summarize_problems(data.problems))
        if describe and not opened.trained:
            display.line(_untrained_line(opened, data))
        result = evaluate(
            settled.opened.model, data, image_size=settled.image_size, batch_size=config.batch_size, device=settled.device,
            queries=config.queries or settled.queries, evaluator=evaluator,
            progress=lambda done, total: display.update("scoring", done / max(1, total), f"{done}/{total} images"),
        )  # fmt: skip
    return Examined(settled.opened, data, evaluator, result, settled.image_size, settled.device)


def _untrained_line(opened: OpenedModel | OpenedExport, data: DetectionData) -> str:
    """Return what the user has to know of the scores of a detector without class names of its own."""
    if isinstance(opened, OpenedExport) or opened.given != "unnamed detector":
        return f"{opened.source}: random weights, so the scores mean nothing."
    number, own = opened.model.num_classes, len(data.classes)
    text = f"{opened.source}: its weights name no classes, so those of the data set are used, in its order"
    if number != own:
        rest = "detections of the others are left out" if number > own else "its last ones are never found"
        text += f"; the weights have {number} and the data set {own}, so {rest}"
    return f"{text}."
