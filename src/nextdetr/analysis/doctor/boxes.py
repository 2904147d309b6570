"""Boxes that are too small for the model, doubled on one object, or suspiciously the same in many images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from nextdetr.analysis.doctor.findings import Finding, Mark, Parts, Picture, some
from nextdetr.analysis.doctor.overlap import iou_matrix
from nextdetr.data.raw import plural
from nextdetr.data.records import DetectionData, ImageRecord

__all__ = ["doubled_boxes", "equal_boxes", "small_boxes", "whole_image_boxes"]

_SMALL = 0.05  # fraction of the boxes from which small ones are reported
_LOST = 0.5  # fraction of them below half a cell, too small to learn from
_DOUBLED = 0.9  # IoU of two boxes of one class
_TWO_CLASSES = 0.95  # IoU of two boxes of different classes
_WHOLE = 0.98  # fraction of the image's area
_MOSTLY_WHOLE = 0.5
_REPEATED = (5, 0.02)  # images with the same box: least number, and least fraction
_PLACES = 1000  # positions are compared in thousandths of the image


def small_boxes(parts: Parts, image_size: int, stride: int, model: str) -> list[Finding]:
    """Find boxes that are smaller than a cell of the model's finest level at the training size.

    Args:
        parts: the splits.
        image_size: side of the square input, pixels.
        stride: stride of the finest level.
        model: name of the model.
    """
    train = parts.get("train")
    if train is None:
        return []
    rows = [(record, side, at) for record in train.records for at, side in _sides(record, image_size)]
    small = sorted(((record, side, at) for record, side, at in rows if side < stride), key=lambda row: row[1])
    if not rows or len(small) < max(1.0, _SMALL * len(rows)):
        return []
    lost = sum(side < stride / 2 for _, side, _ in small) / len(rows)
    median = float(np.median([side for _, side, _ in rows]))
    message = (
        f"{len(small):,} of the {plural(len(rows), 'box')} of train ({len(small) / len(rows):.0%}) are smaller than "
        f"{stride} pixels, a cell of the finest level of {model}, at --image-size {image_size} (half of all boxes are "
        f"under {median:.0f}). Train at a larger --image-size, with --model nextdetr-atto-p2, or on images cut into tiles."
    )
    pictures = [_picture(train, record, [at], f"{side:.1f} px") for record, side, at in small]
    images = list(dict.fromkeys(str(record.path) for record, _, _ in small))
    return [Finding("small boxes", "error" if lost > _LOST else "warning", message, images, pictures=pictures)]


def _sides(record: ImageRecord, image_size: int) -> list[tuple[int, float]]:
    """Return the position of each box but crowds, and the square root of its area on the square input, pixels."""
    places = np.flatnonzero(~record.crowd)
    sizes = record.boxes[places].astype(np.float64)
    scale = image_size**2 / max(1, record.width * record.height)
    sides = np.sqrt((sizes[:, 2:] - sizes[:, :2]).clip(min=0).prod(axis=1) * scale)
    return list(zip(places.tolist(), sides.tolist(), strict=True))


def doubled_boxes(parts: Parts) -> list[Finding]:
    """Find objects with two boxes, of one class or of two."""
    same: list[tuple[str, ImageRecord, int, int, float]] = []
    other = same.copy()
    for split, data in parts.items():
        for record in data.records:
            for first, second, overlap in _overlapping(record):
                row = (split, record, first, second, overlap)
                if record.labels[first] == record.labels[second]:
                    same.append(row)
                elif overlap >= _TWO_CLASSES:
                    other.append(row)
    findings = []
    for kind, found, text in (
        ("doubled boxes", same, "two boxes of one class lie on one object, nearly the same"),
        ("box of two classes", other, "two boxes of different classes lie on one object"),
    ):
        if not found:
            continue
        images = list(dict.fromkeys(str(record.path) for _, record, *_ in found))
        message = f"in {plural(len(images), 'image')}, {plural(len(found), 'time')}, {text}: remove one of them."
        details = [
            {"split": split, "image": str(record.path), "boxes": record.boxes[[one, two]].tolist(),
             "classes": [parts[split].classes[record.labels[at]] for at in (one, two)], "iou": round(overlap, 3)}
            for split, record, one, two, overlap in found
        ]  # fmt: skip
        pictures = [
            _picture(parts[split], record, [one, two], f"IoU {overlap:.2f}") for split, record, one, two, overlap in found
        ]
        findings.append(Finding(kind, "warning", message, images, details, pictures))
    return findings


def _overlapping(record: ImageRecord) -> Iterator[tuple[int, int, float]]:
    kept = np.flatnonzero(~record.crowd)
    if len(kept) < 2:
        return
    overlap = np.triu(iou_matrix(record.boxes[kept], record.boxes[kept]), 1)
    for first, second in zip(*np.nonzero(overlap >= _DOUBLED), strict=True):
        yield int(kept[first]), int(kept[second]), float(overlap[first, second])


def whole_image_boxes(parts: Parts) -> list[Finding]:
    """Find out whether most boxes cover the whole image, as in classification data sets."""
    findings = []
    for split, data in parts.items():
        total, whole = 0, []
        for record in data.records:
            areas = (record.boxes[:, 2:] - record.boxes[:, :2]).prod(axis=1)
            total += int((~record.crowd).sum())
            covering = (areas > _WHOLE * record.width * record.height) & ~record.crowd
            whole += [(record, at) for at in np.flatnonzero(covering).tolist()]
        if whole and len(whole) > _MOSTLY_WHOLE * total:
            message = (
                f"{len(whole):,} of the {plural(total, 'box')} of {split} are the whole image: they teach a detector "
                "nothing of where things are."
            )
            images = list(dict.fromkeys(str(record.path) for record, _ in whole))
            pictures = [_picture(data, record, [at], "") for record, at in whole]
            findings.append(Finding("boxes of whole images", "warning", message, images, pictures=pictures))
    return findings


def equal_boxes(parts: Parts) -> list[Finding]:
    """Find boxes that are the same in many images: a tool's default, or labels assigned to the wrong images."""
    places: dict[tuple[int, ...], list[tuple[DetectionData, ImageRecord, int]]] = defaultdict(list)
    total = 0
    for data in parts.values():
        total += len(data.records)
        for record in data.records:
            size = np.array([record.width, record.height] * 2, dtype=np.float64)
            shares = np.rint(_PLACES * record.boxes / size).astype(np.int64)
            for place in {tuple(row): at for at, row in enumerate(shares.tolist()) if not record.crowd[at]}.items():
                places[place[0]].append((data, record, place[1]))
    whole = (0, 0, _PLACES, _PLACES)
    least = max(float(_REPEATED[0]), _REPEATED[1] * total)
    repeated = [(place, found) for place, found in places.items() if len(found) >= least and place != whole]
    if not repeated:
        return []
    repeated.sort(key=lambda item: -len(item[1]))
    _, most = repeated[0]
    data, record, at = most[0]
    corners = ", ".join(f"{value:.0f}" for value in record.boxes[at].tolist())
    also = f"; so have {len(repeated) - 1:,} other boxes" if len(repeated) > 1 else ""
    message = (
        f"the box ({corners}), of {data.classes[record.labels[at]]} in {record.path.name}, is at the same place in "
        f"{plural(len(most), 'image')}{also}: an unmoved default, or a part of the camera?"
    )
    images = list(dict.fromkeys(str(record.path) for _, found in repeated for _, record, _ in found))
    pictures = [_picture(data, record, [at], "") for data, record, at in most]
    details = [{"place": [value / _PLACES for value in place], "images": len(found)} for place, found in repeated]
    return [Finding("equal boxes", "warning", message, images, details, pictures)]


def _picture(data: DetectionData, record: ImageRecord, doubtful: list[int], text: str) -> Picture:
    names = [data.classes[label] for label in record.labels]
    marks = [
        Mark((float(x1), float(y1), float(x2), float(y2)), names[at] if at in doubtful else "", at in doubtful)
        for at, (x1, y1, x2, y2) in enumerate(record.boxes.tolist())
    ]
    caption = ", ".join(part for part in (record.path.name, some(names[at] for at in doubtful), text) if part)
    return Picture(record.path, caption, tuple(sorted(marks, key=lambda mark: mark.doubtful)))
