"""The report as one offline HTML file: the numbers of an ``Analysis`` in the templates of this folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nextdetr.files import path_text
from nextdetr.report.analysis import Analysis
from nextdetr.report.calibration import LEAST
from nextdetr.report.figures import bars, confidence_figure, recall_figure, reliability_figure
from nextdetr.report.pictures import Picture, picture
from nextdetr.report.thresholds import GRID
from nextdetr.report.tide import KINDS

__all__ = ["Facts", "page_file", "render", "report_page"]

MOST_CLASSES = 30  # of a readable matrix
MOST_CONFUSIONS = 12
EXPLAINED = (
    "the place of an object, but the wrong class",
    "the right class, but the box is off (IoU 0.1 to 0.5)",
    "the wrong class, and the box is off",
    "a second detection of the same object",
    "nothing is there (IoU under 0.1 with every object)",
    "an object that no detection comes near",
)


@dataclass(frozen=True, slots=True)
class Facts:
    """Contents of a report besides its analysis.

    Attributes:
        title: title of the page.
        subtitle: data set, split and settings, on one line.
        stored: whether the thresholds in use are the detector's own.
        doubt: what ``barely_trained`` says of these thresholds.
        pictures: maximum number of images.
        device: device that it ran on, for the speed.
        seconds: mean seconds per image by stage; empty if unknown.
        speed: lines of the speed table, if there is one.
        training: SVG of the training's curves, if there is one.
    """

    title: str
    subtitle: str
    stored: bool = False
    doubt: str = ""
    pictures: int = 12
    device: str = "cpu"
    seconds: Mapping[str, float] = field(default_factory=dict)
    speed: Sequence[str] = ()
    training: str | None = None


def report_page(analysis: Analysis, facts: Facts) -> str:
    """Return the report as HTML."""
    classes = analysis.data.classes
    costs = [analysis.tide.costs[name] for name in KINDS]
    sections = [
        ("training", "Training"), ("scores", "Scores"), ("confidence", "Confidence"), ("confusion", "Confusion"),
        ("errors", "Kinds of error"), ("calibration", "Calibration"), ("empty", "Without objects"),
        ("worst", "Worst images"), ("speed", "Speed"),
    ]  # fmt: skip
    absent = {"training": facts.training is None, "speed": not (facts.seconds or facts.speed)}
    return render(
        "report.html",
        title=facts.title, subtitle=facts.subtitle, a=analysis, images=len(analysis.data.records),
        boxes=sum(row["boxes"] for row in analysis.per_class.values()),
        milliseconds=1000 * sum(facts.seconds.values()), seconds=dict(facts.seconds), speed="\n".join(facts.speed),
        device=f"on {facts.device}", training=facts.training,
        sections=[(name, text) for name, text in sections if not absent.get(name)],
        recalls=("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
        thresholds=_threshold_rows(analysis), thresholds_text=_thresholds_text(analysis, facts),
        confidence=confidence_figure(analysis.curves, classes, analysis.least),
        recall=recall_figure(analysis.precision, classes),
        names=[*classes, "background"], matrix=_matrix(analysis), confusions=_confusions(analysis),
        tide_figure=bars("tide", "AP50 lost to each kind of error", KINDS, costs, "AP50"),
        kinds=list(zip(KINDS, EXPLAINED, strict=True)),
        reliability=reliability_figure(analysis.calibration), calibration_least=LEAST, bins=_bins(analysis),
        empty_text=_empty_text(analysis), empty_pictures=_empty_pictures(analysis, facts.pictures),
        worst=[_picture(analysis, place) for place in analysis.worst(facts.pictures)],
    )  # fmt: skip


def page_file(output: Path, name: str) -> Path:
    """Return the file of a page: ``output``, or one called ``name`` in it if it is a folder."""
    return output / name if output.is_dir() else output


def render(template: str, **values: Any) -> str:
    """Fill a template of this folder; all values from data are escaped, also bytes that are not UTF-8."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from nextdetr import __version__

    pages = Environment(
        loader=PackageLoader("nextdetr.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return path_text(pages.get_template(template).render(version=__version__, **values))


def _picture(analysis: Analysis, place: int) -> Picture:
    data = analysis.data
    return picture(data.records[place], analysis.pairs[place], data.classes, data.reading)


def _threshold_rows(analysis: Analysis) -> list[dict[str, Any]]:
    curves, rows = analysis.curves, []
    for index, name in enumerate(analysis.data.classes):
        place = int(np.abs(GRID - analysis.least[index]).argmin())
        rows.append(
            {
                "name": name, "least": float(analysis.least[index]),
                "best": analysis.thresholds.values[index] if analysis.thresholds.values else None,
                "precision": float(curves.precision[index, place]), "recall": float(curves.recall[index, place]),
                "f1": float(curves.f1[index, place]),
            }
        )  # fmt: skip
    return rows


def _thresholds_text(analysis: Analysis, facts: Facts) -> str:
    text = "Nothing was found, so there is no best threshold."
    if facts.stored:
        text = "The detector has its own threshold for each class, which predict uses; the dots mark them."
    elif analysis.thresholds.values:
        text = (
            "The detector has no thresholds of its own: those with the best F1 on this split are used; the dots mark them."
        )
    return f"{text} The detector is {facts.doubt}" if facts.doubt else text


def _matrix(analysis: Analysis) -> list[list[dict[str, Any]]]:
    counts = analysis.confusion
    if len(counts) > MOST_CLASSES + 1:
        return []
    last, rows = len(counts) - 1, []
    for true, row in enumerate(counts):
        total = max(1, int(row.sum()))
        cells = []
        for other, count in enumerate(row.tolist()):
            tone = "--right" if true == other else "--missed" if other == last else "--false" if true == last else "--wrong"
            cells.append(
                {"count": None if true == other == last else count, "tone": tone, "share": round(70 * count / total)}
            )
        rows.append(cells)
    return rows


def _confusions(analysis: Analysis) -> list[tuple[str, str, int]]:
    counts, names = analysis.confusion[:-1, :-1].copy(), analysis.data.classes
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:MOST_CONFUSIONS]
    places = [np.unravel_index(place, counts.shape) for place in order]
    return [(names[true], names[other], int(counts[true, other])) for true, other in places if counts[true, other]]


def _bins(analysis: Analysis) -> list[dict[str, Any]]:
    bins = analysis.calibration
    return [
        {
            "range": f"{low:.1f} to {high:.1f}", "count": int(count), "confidence": float(confidence),
            "precision": float(precision),
        }
        for low, high, count, confidence, precision in zip(
            bins.edges[:-1], bins.edges[1:], bins.counts, bins.confidence, bins.precision, strict=True
        )
    ]  # fmt: skip


def _empty_text(analysis: Analysis) -> str:
    false = analysis.false_positives()
    touched = sum(number > 0 for number in false)
    many = f"{len(false):,} images have no object" if len(false) != 1 else "1 image has no object"
    if not touched:
        return f"{many}, and nothing was found in {'it' if len(false) == 1 else 'any of them'}."
    return f"{many}. {touched:,} of them have false detections: {sum(false):,} in all."


def _empty_pictures(analysis: Analysis, most: int) -> list[Picture]:
    false = sorted(zip(analysis.false_positives(), analysis.empty, strict=True), key=lambda row: -row[0])
    return [_picture(analysis, place) for number, place in false[: most // 2] if number]
