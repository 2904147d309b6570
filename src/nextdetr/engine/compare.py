"""Compare two detectors on the same images: the difference in AP with its interval, and where they differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nextdetr.confidence import least_scores, read_thresholds
from nextdetr.config import CompareConfig, build_config
from nextdetr.data.raw import plural
from nextdetr.data.records import DetectionData
from nextdetr.engine.log import Display
from nextdetr.engine.validate import Examined, examine
from nextdetr.errors import ConfigError, DataError
from nextdetr.files import path_text, write_text_atomic
from nextdetr.inference.exported import OpenedExport, open_any
from nextdetr.report.bootstrap import paired_difference
from nextdetr.report.confusion import Pairs, cost, pair
from nextdetr.report.matching import Matches, match
from nextdetr.report.pages import render
from nextdetr.report.pictures import picture
from nextdetr.report.thresholds import best_thresholds

if TYPE_CHECKING:
    from nextdetr.weights.checkpoint import OpenedModel

__all__ = ["CompareResult", "compare", "compare_opened"]

LISTED = 20  # images in the JSON result


@dataclass(frozen=True, slots=True)
class CompareResult:
    """What ``compare`` returns; the fields of the JSON result.

    Attributes:
        a, b: names of the detectors.
        data, split: what they were scored on.
        images: number of images.
        difference: ``AP`` of ``b`` minus that of ``a``, with the bounds ``low`` and ``high`` of its interval; None if
            undefined.
        level: fraction of the resamples within the interval.
        resamples: number of them.
        b_better: fraction of the resamples in which ``b`` is better.
        metrics: the twelve COCO metrics of ``a`` and of ``b``.
        per_class: AP of ``a`` and ``b`` by class name.
        most_different: the images whose errors differ most: ``image``, and the cost of its errors for ``a`` and ``b`` (1
            per missed object; the confidence of each false or misclassified detection).
        output: the HTML file; None without one.
    """

    a: str
    b: str
    data: str
    split: str
    images: int
    difference: dict[str, float | None]
    level: float
    resamples: int
    b_better: float
    metrics: dict[str, dict[str, float | None]]
    per_class: dict[str, dict[str, float | None]]
    most_different: list[dict[str, Any]]
    output: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON result of the command."""
        return {"command": "compare", **{name: getattr(self, name) for name in self.__slots__}}


@dataclass(frozen=True, slots=True)
class _Side:
    """One detector: its detections, matched with the boxes."""

    examined: Examined
    matches: Matches
    pairs: list[Pairs]

    @property
    def costs(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """[I] cost of the errors in each image."""
        return np.array([cost(image) for image in self.pairs])


def compare(a: str | Path, b: str | Path, data: str | Path, *, quiet: bool = False, **settings: Any) -> CompareResult:
    """Compare two detectors of the same classes on the same images: AP of ``b`` minus that of ``a``, with its interval.

    Args:
        a: a checkpoint, the folder of a run, or an exported file.
        b: the one to compare it with.
        data: a data set in any supported format: its folder or file.
        quiet: show no progress on standard error.
        settings: the options of ``nextdetr compare`` as keywords (``split``, ``resamples``, ``output``, …).

    Raises:
        ConfigError: they do not have the same classes.
        DataError: the data set or the split cannot be used.
        WeightsError: one of them cannot be opened.
    """
    config = build_config(CompareConfig, {"data": str(data), **settings})
    return compare_opened(open_any(a)[0], open_any(b)[0], config, quiet=quiet)


def compare_opened(
    a: OpenedModel | OpenedExport, b: OpenedModel | OpenedExport, config: CompareConfig, *, quiet: bool = False
) -> CompareResult:
    """Compare two opened detectors; see :func:`compare`.

    Args:
        a: the first detector.
        b: the second detector.
        config: the settings; ``output`` is the HTML page.
        quiet: show no progress on standard error.

    Raises:
        ConfigError: they do not have the same classes.
        DataError: the data set or the split cannot be used.
    """
    missing = sorted(set(a.classes) ^ set(b.classes))
    if a.trained and b.trained and missing:
        raise ConfigError(
            f"{a.source} and {b.source} have different classes, so their AP means different things: only one has "
            f"{missing[0]!r}."
        )
    sides = [_look(opened, config, quiet=quiet, describe=place == 0) for place, opened in enumerate((a, b))]
    data = sides[0].examined.data
    if [record.path for record in data.records] != [record.path for record in sides[1].examined.data.records]:
        raise DataError(f"{config.data}: the images changed during the comparison; run it again.")
    with Display(enabled=not quiet) as display:
        difference = paired_difference(
            sides[0].matches, sides[1].matches, resamples=config.resamples, level=config.level, seed=config.seed,
            progress=lambda done, total: display.update("resampling", done / total, f"{done}/{total}"),
        )  # fmt: skip
    costs = [side.costs for side in sides]
    order = np.argsort(-np.abs(costs[1] - costs[0]), kind="stable")
    order = order[np.abs(costs[1] - costs[0])[order] > 0]
    values = {"AP": difference.value, "low": difference.low, "high": difference.high}
    results = [side.examined.result for side in sides]
    result = CompareResult(
        a.source, b.source, str(config.data), config.split, len(data.records),
        {name: None if np.isnan(value) else value for name, value in values.items()}, config.level, config.resamples,
        difference.positive, {"a": dict(results[0].metrics), "b": dict(results[1].metrics)},
        {name: {"a": results[0].per_class[name]["AP"], "b": results[1].per_class[name]["AP"]} for name in data.classes},
        [
            {"image": path_text(data.records[place].path), "a": float(costs[0][place]), "b": float(costs[1][place])}
            for place in order[:LISTED]
        ],
        None if config.output is None else str(config.output),
    )  # fmt: skip
    if config.output is not None:
        write_text_atomic(config.output, _page(result, data, sides, order[: config.pictures].tolist()))
    return result


def _look(opened: OpenedModel | OpenedExport, config: CompareConfig, *, quiet: bool, describe: bool) -> _Side:
    examined = examine(opened, config, quiet=quiet, describe=describe)
    data, found = examined.data, examined.evaluator.state()
    classes = len(data.classes)
    matches = match(data.records, found, classes, order=examined.evaluator.order())
    own = read_thresholds(opened.metadata, classes)
    least = least_scores("auto", own if own is not None else best_thresholds(matches).usable() or None, classes)
    return _Side(examined, matches, list(pair(data.records, found, least)))


def _page(result: CompareResult, data: DetectionData, sides: Sequence[_Side], places: Sequence[int]) -> str:
    pictures = [
        [picture(data.records[place], side.pairs[place], side.examined.data.classes, data.reading) for side in sides]
        for place in places
    ]
    return render(
        "compare.html", title=f"Two detectors on {data.name}", r=result, pictures=pictures,
        subtitle=f"split {result.split}, {plural(result.images, 'image')}",
    )  # fmt: skip
