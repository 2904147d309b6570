"""Check every image and box before training: whatever is unusable is reported with file and place, never skipped silently.

Rules:

- A box that is not finite, has no area, or lies outside its image is dropped; one that extends beyond it is clipped. Up to
  one pixel counts as rounding and is clipped without a report: annotation tools round to whole pixels or a few decimals.
- An image that is missing or cannot be decoded is dropped with its boxes. One whose size differs from the declared one
  keeps its true size, and its boxes are unchanged: only the owner knows which size they were made for.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from nextdetr.data.confidence import CONFIDENCE_KIND, sift
from nextdetr.data.listing import FileFinder
from nextdetr.data.raw import RawImage, RawSplit, plural
from nextdetr.data.records import DetectionData, ImageRecord, Problem
from nextdetr.data.units import check_units, doubt_corners
from nextdetr.errors import DataError
from nextdetr.preprocess import image_size, is_turned, load_image

__all__ = ["ImageReport", "finish", "inspect_images", "require_boxes", "summarize_problems"]

_MISSING = "missing image"
_ROUNDING = 1.0  # pixels
_DECODE_ALL = 5000  # images; in larger sets, only files without a proper end are decoded


@dataclass(frozen=True, slots=True)
class ImageReport:
    """Result of checking an image file.

    Attributes:
        width, height: pixels as displayed (with the EXIF orientation applied); 0 if the file is unusable.
        kind, message: as in ``Problem``; empty if the file is good.
    """

    width: int
    height: int
    kind: str = ""
    message: str = ""


def finish(
    raw: RawSplit,
    *,
    name: str,
    split: str,
    on_bad_data: Literal["warn", "error"] = "warn",
    check_images: bool = True,
    min_confidence: float | None = None,
) -> DetectionData:
    """Check what a reader found, and build the records.

    Args:
        raw: the split as read from its files.
        name: name of the data set.
        split: name of the split.
        on_bad_data: "warn" drops what is unusable and lists it in ``problems``; "error" refuses the data set.
        check_images: decode every image; otherwise only headers are read.
        min_confidence: drop boxes with a lower confidence; None uses the data set's own limit.

    Raises:
        DataError: no image is usable, or ``on_bad_data`` is "error" and there is a problem.
    """
    if not raw.images and not raw.problems:
        raise DataError(f"{raw.source}: the split {split} is empty; it lists no image.")
    check_units(raw)
    raw = sift(raw, raw.min_confidence if min_confidence is None else min_confidence)
    reports = _look(raw, decode=check_images)
    count = np.bincount(raw.box_image, minlength=len(raw.images))
    problems = list(raw.problems)
    for image, report, boxes in zip(raw.images, reports, count.tolist(), strict=True):
        problem = _image_problem(image, report, boxes)
        if problem is not None:
            problems.append(problem)
    records, box_problems = _build_records(raw, reports)
    problems += box_problems
    bad = [problem for problem in problems if problem.kind != CONFIDENCE_KIND]
    if not records:
        raise DataError(f"{raw.source}: no image of the split {split} can be used: {_clauses(bad, 3)}.")
    if bad and on_bad_data == "error":
        raise DataError(
            f"{raw.source}, split {split}: {plural(len(bad), 'problem')}: {_clauses(bad, 5)}. Fix the data, or "
            "drop what is bad with --on-bad-data warn."
        )
    return DetectionData(name, split, raw.classes, raw.category_ids, records, problems, raw.own_ids)


def require_boxes(data: DetectionData) -> None:
    """Check that there is something to learn from.

    Raises:
        DataError: the split has only crowds, which training ignores, or no box; the message says what became of others.
    """
    crowds = sum(int(np.count_nonzero(record.crowd)) for record in data.records)
    if sum(len(record.labels) for record in data.records) > crowds:
        return
    if crowds:
        cause = f": all {crowds:,} are crowds (iscrowd: 1), which training leaves out. Write iscrowd: 0 for single objects."
    elif data.problems:
        kinds = Counter(problem.kind for problem in data.problems).most_common()
        told = ", ".join(f"{kind} ({count:,})" for kind, count in kinds)
        cause = f"; dropped were {told}, such as {_describe(data.problems[0])}."
    else:
        cause = ": every image is background. Are the annotations where they are expected?"
    raise DataError(f"{data.name}: the split {data.split} has no box to learn from{cause}")


def _look(raw: RawSplit, *, decode: bool) -> list[ImageReport]:
    """Inspect the images of a split; a missing one may be spelt differently (``a.JPG`` for ``a.jpg``)."""
    reports = inspect_images([image.path for image in raw.images], decode=decode)
    _mark_doubles(raw, reports)
    missing = [position for position, report in enumerate(reports) if report.kind == _MISSING]
    if not missing:
        return reports
    finder, taken = FileFinder(), {image.path for image in raw.images}
    found = {position: finder.find(raw.images[position].path) for position in missing}
    found = {position: path for position, path in found.items() if path not in taken}
    for (position, path), report in zip(found.items(), inspect_images(list(found.values()), decode=decode), strict=True):
        raw.images[position] = replace(raw.images[position], path=path)
        reports[position] = report
    _mark_doubles(raw, reports)  # a.JPG and A.jpg may both mean a.jpg
    return reports


def _mark_doubles(raw: RawSplit, reports: list[ImageReport]) -> None:
    """Drop repeated images: two annotation files may name the same one, and it is unknown which is right."""
    first: dict[Path, RawImage] = {}
    for position, image in enumerate(raw.images):
        other = first.setdefault(image.path, image)
        if other is not image and reports[position].width:
            place = ", ".join(part for part in (other.file, other.where) if part)
            reports[position] = ImageReport(0, 0, "image listed twice", f"it is named before, in {place}")


def summarize_problems(problems: Sequence[Problem], limit: int = 10) -> str:
    """Return a text of several lines: the number of problems of each kind, and up to ``limit`` of them in full.

    Every kind is represented if there is room; empty without problems.
    """
    if not problems:
        return ""
    kinds = Counter(problem.kind for problem in problems)
    totals = ", ".join(f"{kind} ({count:,})" for kind, count in kinds.most_common())
    shown = _select(problems, limit)
    lines = [f"{plural(len(problems), 'problem')} in the data: {totals}"]
    lines += [f"  {_describe(problem)}" for problem in shown]
    if len(problems) > len(shown):
        lines.append(f"  … and {len(problems) - len(shown):,} more")
    return "\n".join(lines)


def inspect_images(paths: Sequence[Path], *, decode: bool = True) -> list[ImageReport]:
    """Read the size of every image, and optionally check that its pixels can be decoded.

    Args:
        paths: image files.
        decode: decode the pixels too. In sets of more than 5,000 images, only files whose last bytes are not the end that
            the format requires.
    """
    quick = len(paths) > _DECODE_ALL

    def inspect(path: Path) -> ImageReport:
        return _inspect(path, decode=decode, quick=quick)

    pool = ThreadPoolExecutor(max_workers=min(8, (os.cpu_count() or 1) + 1))
    try:
        return list(pool.map(inspect, paths))
    finally:
        pool.shutdown(cancel_futures=True)


def _inspect(path: Path, *, decode: bool, quick: bool) -> ImageReport:
    if not _exists(path):
        return ImageReport(0, 0, _MISSING, "there is no such image file")
    try:
        width, height = image_size(path)
    except DataError as error:
        return ImageReport(0, 0, "not an image", _without_path(error, path))
    if decode and not (quick and _has_end(path)):
        try:
            _decode(path)
        except DataError as error:
            return ImageReport(0, 0, "damaged image", _without_path(error, path))
    return ImageReport(width, height)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for the file system
        return False


def _decode(path: Path) -> None:
    """Decode the pixels: a JPEG at an eighth of its size, which reads every byte in half the time; others in full."""
    try:
        with Image.open(path, formats=("JPEG",)) as image:
            image.draft("L", (1, 1))
            image.load()
    except UnidentifiedImageError:  # another format, or damaged at its start
        load_image(path)
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise DataError(f"{path} cannot be read: {str(error).rstrip('. ')}.") from error


def _has_end(path: Path) -> bool:
    """Whether the file ends as JPEG, PNG or WebP files do; False for other formats, and if padding follows."""
    with path.open("rb") as file:
        start = file.read(12)
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - 12))
        end = file.read()
    if start.startswith(b"\xff\xd8"):
        return end.endswith(b"\xff\xd9")
    if start.startswith(b"\x89PNG"):
        return end[4:8] == b"IEND"
    if start.startswith(b"RIFF") and start[8:] == b"WEBP":
        return int.from_bytes(start[4:8], "little") + 8 <= length
    return False


def _without_path(error: DataError, path: Path) -> str:
    return str(error).removeprefix(str(path)).lstrip(": ").rstrip(".")


def _image_problem(image: RawImage, report: ImageReport, boxes: int) -> Problem | None:
    place = ", ".join(part for part in (image.file, image.where) if part)
    if report.kind:
        named = f" (named in {place})" if place else ""
        also = f" with its {plural(boxes, 'box')}" if boxes else ""
        return Problem(str(image.path), "", f"{report.message}{named}; the image is dropped{also}", report.kind)
    if image.size is None:
        return None
    if image.size == (float(report.width), float(report.height)):
        return None
    turned = image.size == (float(report.height), float(report.width))
    declared = f"{image.size[0]:g}x{image.size[1]:g}"
    shown = f"{report.width}x{report.height}"
    if turned and _is_turned(image.path):
        message = (
            f"the annotations declare {declared}, the image as it is stored; its EXIF orientation turns it to {shown}, and "
            "the boxes are taken to fit the turned image: check them"
        )
        return Problem(str(image.path), "", message, "EXIF orientation ignored by annotations")
    message = f"{image.path.name} is {shown}, not {declared} as declared; the true size is used, boxes are not scaled"
    return Problem(image.file or str(image.path), image.where, message, "image of another size")


def _is_turned(path: Path) -> bool:
    """Whether the EXIF orientation swaps the width and height of an image."""
    try:
        with Image.open(path) as image:
            return is_turned(image)
    except OSError:
        return False


def _build_records(raw: RawSplit, reports: Sequence[ImageReport]) -> tuple[list[ImageRecord], list[Problem]]:
    """Check and clip the boxes of the usable images, and sort them by image."""
    sizes = np.array([(report.width, report.height) for report in reports], dtype=np.float64).reshape(-1, 2)
    limits = np.tile(sizes[raw.box_image], 2)  # [M, 4]
    boxes = raw.boxes * limits if raw.fractions else raw.boxes
    usable = limits[:, 0] > 0
    clipped, verdicts = _judge_boxes(boxes, limits)
    keep = usable.copy()
    problems = doubt_corners(raw, limits)
    for row in np.flatnonzero(usable & (verdicts > 0)).tolist():
        file, where = raw.where(row)
        kind, clause = _VERDICTS[int(verdicts[row])]
        corners = ", ".join(f"{value:.6g}" for value in boxes[row].tolist())
        size = f"{limits[row, 0]:.0f}x{limits[row, 1]:.0f}"
        problems.append(Problem(file, where, clause.format(box=f"({corners})", size=size), kind))
        keep[row] = verdicts[row] == _CLIPPED
    first = _first_equal(raw)
    for row in np.flatnonzero(keep & (first != np.arange(len(first)))).tolist():
        (file, where), (other, place) = raw.where(row), raw.where(int(first[row]))
        place = place if other == file else f"{other}, {place}"
        place = f"at {place}" if (other, place) != (file, where) else "under the same id"
        message = f"the same box of the same class stands {place} already; counted once"
        problems.append(Problem(file, where, message, "box given twice"))
        keep[row] = False
    order = np.flatnonzero(keep)
    order = order[np.argsort(raw.box_image[order], kind="stable")]  # by image, in file order within it
    kept = clipped[order].astype(np.float32)
    labels, crowd = raw.labels[order], raw.crowd[order]
    extents = clipped[order, 2:] - clipped[order, :2]
    given = raw.areas[order]
    areas = np.where(np.isfinite(given) & (given > 0), given, extents[:, 0] * extents[:, 1]).astype(np.float32)
    bounds = np.searchsorted(raw.box_image[order], np.arange(len(reports) + 1)).tolist()
    sure = None if raw.confidence is None else raw.confidence[order].astype(np.float32)
    records = [
        ImageRecord(
            image.path, image.image_id, report.width, report.height,
            kept[start:stop], labels[start:stop], crowd[start:stop], areas[start:stop],
            None if sure is None or np.isnan(sure[start:stop]).all() else sure[start:stop],
        )
        for image, report, start, stop in zip(raw.images, reports, bounds[:-1], bounds[1:], strict=True)
        if report.width
    ]  # fmt: skip
    return records, problems


_CLIPPED = 4
_VERDICTS = {
    1: ("box not finite", "the box {box} is not made of finite numbers; dropped"),
    2: ("box without area", "the box {box} has no area; dropped"),
    3: ("box outside image", "the box {box} lies outside its image of {size}; dropped"),
    _CLIPPED: ("box partly outside image", "the box {box} extends beyond its image of {size}; clipped to it"),
}


def _judge_boxes(boxes: NDArray[np.float64], limits: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Clip xyxy boxes [M, 4] to ``limits`` [M, 4] (width, height, width, height), and number the problems; 0 is none."""
    clipped = np.clip(boxes, 0, limits)
    with np.errstate(over="ignore"):  # numbers too large for float32 become infinite and are clipped
        single, single_clipped = boxes.astype(np.float32), clipped.astype(np.float32)
    overhang = np.maximum(-boxes, boxes - limits).max(axis=1, initial=-np.inf)
    verdicts = np.where(overhang > _ROUNDING, _CLIPPED, 0)
    verdicts[_without_area(single_clipped)] = 3
    verdicts[_without_area(single)] = 2
    verdicts[~np.isfinite(boxes).all(axis=1)] = 1
    return clipped, verdicts


def _first_equal(raw: RawSplit) -> NDArray[np.int64]:
    """Return for each box the number of its first exact duplicate in image, class, crowd and corners; [M]."""
    table = np.column_stack((raw.boxes, raw.box_image, raw.labels, raw.crowd)).astype(np.float64) + 0.0  # no minus zero
    key = np.zeros(len(table), dtype=np.uint64)
    for column in np.ascontiguousarray(table.T).view(np.uint64):
        key = (key ^ column) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    order = np.argsort(key, kind="stable")
    equal = np.zeros(len(table), dtype=bool)
    equal[1:] = (key[order[1:]] == key[order[:-1]]) & (table[order[1:]] == table[order[:-1]]).all(axis=1)
    start = np.maximum.accumulate(np.where(equal, 0, np.arange(len(table))))
    first = np.arange(len(table))
    first[order] = order[start]
    return first


def _without_area(boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.logical_or(boxes[:, 2] <= boxes[:, 0], boxes[:, 3] <= boxes[:, 1])


def _select(problems: Sequence[Problem], limit: int) -> list[Problem]:
    """Choose up to ``limit`` problems in their order, the first of every kind before the second of any."""
    seen: Counter[str] = Counter()
    ranked = []
    for position, problem in enumerate(problems):
        ranked.append((seen[problem.kind], position))
        seen[problem.kind] += 1
    return [problems[position] for position in sorted(position for _, position in sorted(ranked)[: max(0, limit)])]


def _describe(problem: Problem) -> str:
    return ": ".join(part for part in (problem.file, problem.where, problem.message) if part)


def _clauses(problems: Sequence[Problem], limit: int) -> str:
    shown = _select(problems, limit)
    text = "; ".join(_describe(problem) for problem in shown)
    return text + (f"; and {len(problems) - len(shown):,} more" if len(problems) > len(shown) else "")
