"""Compare two detectors on the same images: the difference in AP with its interval, and where they differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nextdetr.confidence import least_scores, read_thresholds
from nextdetr.config import CompareConfig, build_config
from nextdetr.data.objects import split_called
from nextdetr.data.raw import plural
from nextdetr.data.records import DetectionData
from nextdetr.data.seen import seen_by, trained_on, why_unknown
from nextdetr.data.sources import available_splits, load_data
from nextdetr.data.split import SetAside
from nextdetr.engine.log import Display
from nextdetr.engine.validate import Examined, examine, load_split
from nextdetr.errors import ConfigError, DataError
from nextdetr.files import check_writable, path_text, write_text_atomic
from nextdetr.inference.exported import OpenedExport, Runtime, is_exported, open_any
from nextdetr.report.bootstrap import enough_images, paired_difference
from nextdetr.report.confusion import Pairs, cost, pair
from nextdetr.report.matching import Matches, match
from nextdetr.report.pages import page_file, render
from nextdetr.report.pictures import picture
from nextdetr.report.thresholds import best_thresholds

if TYPE_CHECKING:
    from nextdetr.weights.checkpoint import OpenedModel

__all__ = ["CompareResult", "compare", "compare_opened", "open_both"]

LISTED = 20  # images in the JSON result
PAGE = "compare.html"  # in a folder that is given for it


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
        enough_images: whether this many images can show at all that one is better: see ``enough_images``.
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
    enough_images: bool
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


def compare(
    a: str | Path, b: str | Path, data: str | Path, *, runtime: Runtime = "auto", quiet: bool = False, **settings: Any
) -> CompareResult:
    """Compare two detectors of the same classes on the same images: AP of ``b`` minus that of ``a``, with its interval.

    Args:
        a: a checkpoint, the folder of a run, or an exported file.
        b: the one to compare it with.
        data: a data set in any supported format: its folder or file.
        runtime: what runs an exported file, as for ``Detector``.
        quiet: show no progress on standard error.
        settings: the options of ``nextdetr compare`` as keywords (``split``, ``resamples``, ``output``, …).

    Raises:
        ConfigError: they do not have the same classes.
        DataError: the data set or the split cannot be used.
        WeightsError: one of them cannot be opened.
    """
    config = build_config(CompareConfig, {"data": str(data), **settings})
    return compare_opened(*open_both(a, b, runtime), config, quiet=quiet)


def open_both(
    a: str | Path, b: str | Path, runtime: Runtime = "auto"
) -> tuple[OpenedModel | OpenedExport, OpenedModel | OpenedExport]:
    """Open two detectors, the exported ones in ``runtime``; without any, ``open_any`` refuses it."""
    exported = [is_exported(name) for name in (a, b)]
    first, second = (
        open_any(name, runtime=runtime if takes_it or not any(exported) else "auto")[0]
        for name, takes_it in zip((a, b), exported, strict=True)
    )
    return first, second


def compare_opened(
    a: OpenedModel | OpenedExport, b: OpenedModel | OpenedExport, config: CompareConfig, *, quiet: bool = False
) -> CompareResult:
    """Compare two opened detectors; see :func:`compare`.

    Args:
        a: the first detector.
        b: the second detector.
        config: the settings; ``output`` is the HTML page, or a folder for it.
        quiet: show no progress on standard error.

    Raises:
        ConfigError: they do not have the same classes.
        DataError: the data set or the split cannot be used.
        WriteError: the page cannot be written there.
    """
    missing = sorted(set(a.classes) ^ set(b.classes))
    if a.trained and b.trained and missing:
        raise ConfigError(
            f"{a.source} and {b.source} have different classes, so their AP means different things: only one has "
            f"{missing[0]!r}."
        )
    output = None if config.output is None else page_file(config.output, PAGE)
    if output is not None:
        check_writable(output)
    first, second = _unseen((a, b), config)
    if first is not None and second is not None:
        only = sorted(set(first.classes) ^ set(second.classes))
        if only:  # one of them names none, and so has those of the data set
            raise ConfigError(f"{config.data}: of {a.source} and {b.source}, only one would be scored on {only[0]!r}.")
        second = replace(second, recognised="", problems=[])  # said of the first
    sides = [_look(opened, config, part, quiet=quiet) for opened, part in ((a, first), (b, second))]
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
        difference.positive, enough_images(len(data.records), config.level),
        {"a": dict(results[0].metrics), "b": dict(results[1].metrics)},
        {name: {"a": results[0].per_class[name]["AP"], "b": results[1].per_class[name]["AP"]} for name in data.classes},
        [
            {"image": path_text(data.records[place].path), "a": float(costs[0][place]), "b": float(costs[1][place])}
            for place in order[:LISTED]
        ],
        None if output is None else str(output),
    )  # fmt: skip
    if output is not None:
        write_text_atomic(output, _page(result, data, sides, order[: config.pictures].tolist()))
    return result


def _unseen(both: Sequence[OpenedModel | OpenedExport], config: CompareConfig) -> Sequence[DetectionData | None]:
    """Return the split with the classes of each detector, without the images that one of them was trained on.

    Without a ``val``, these are what is left of ``train``. If a detector's file does not say what it was trained on, the
    split is used as it is, with a note, and if the training images were asked for. None for each without a data set.

    Raises:
        DataError: no image is left; or see ``load_scored``.
    """
    if config.data is None:
        return [None] * len(both)
    if split_called(config.split) == "train":
        return _whole(both, config)
    known = [trained_on(each.metadata) if each.trained else frozenset[bytes]() for each in both]
    seen = [digests for digests in known if digests is not None]
    if len(seen) < len(both):
        unsure = {each.source: why_unknown(each.metadata) for each, found in zip(both, known, strict=True) if found is None}
        note = "".join(f"; {source} may have been trained on some of it ({why})" for source, why in unsure.items())
        return [replace(part, recognised=part.recognised + note) for part in _whole(both, config)]
    there = available_splits(config.data)
    no_val = config.split == "val" and config.split_off is None and "val" not in there and "train" in there
    parts = [_rest_of_train(opened, both, config) for opened in both] if no_val else _whole(both, config)
    records = parts[0].records
    used = seen_by(records, seen)
    kept = {record.path for record, by in zip(records, used, strict=True) if not any(by)}
    if not kept:
        trained = " or ".join(each.source for each, by in zip(both, zip(*used, strict=True), strict=True) if any(by))
        lack = "there is no val, and " if no_val else ""
        raise DataError(
            f"{config.data}: {lack}{trained} was trained on every image of {parts[0].split}, so none is left to compare "
            "on: label some new images, and name them with --data."
        )
    note = ""
    if no_val or len(kept) < len(records):
        count = f"{len(kept):,} of {plural(len(records), 'image')}"
        note = f"; {'no val, so ' * no_val}the {count} that neither detector was trained on"
    return [
        replace(
            part, split=config.split, records=[record for record in part.records if record.path in kept],
            recognised=part.recognised + note,
        )
        for part in parts
    ]  # fmt: skip


def _whole(both: Sequence[OpenedModel | OpenedExport], config: CompareConfig) -> list[DetectionData]:
    """Read the split with the classes of each detector.

    Raises:
        DataError: each has set other images aside; or see ``load_scored``.
    """
    parts = [load_split(opened, config) for opened in both]
    first, second = ([record.path for record in part.records] for part in parts)
    if first != second and all(SetAside.from_metadata(opened.metadata) for opened in both):
        raise DataError(
            f"{config.data}: there is no val, and {both[0].source} and {both[1].source} set different images of train "
            "aside in training: name another split with --split, or label new images, and name them with --data."
        )
    return parts


def _rest_of_train(
    opened: OpenedModel | OpenedExport, both: Sequence[OpenedModel | OpenedExport], config: CompareConfig
) -> DetectionData:
    """Read ``train`` with the classes of ``opened``, and labels as sure as the trainings of ``both`` asked for."""
    assert config.data is not None
    asides = [SetAside.from_metadata(each.metadata) for each in both]
    limits = [aside.min_confidence for aside in asides if aside is not None and aside.min_confidence is not None]
    return load_data(
        config.data, "train", classes=opened.classes if opened.trained else None, on_bad_data=config.on_bad_data,
        min_confidence=max(limits, default=None),
    )  # fmt: skip


def _look(opened: OpenedModel | OpenedExport, config: CompareConfig, part: DetectionData | None, *, quiet: bool) -> _Side:
    examined = examine(opened, config, quiet=quiet, data=part)
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
