"""Labels that a trained detector disagrees with, most doubtful first.

The kinds are those of ObjectLab (Tkachenko, Thyagarajan and Mueller, arXiv 2309.00832): overlooked objects, wrong classes,
and wrong positions; and in addition boxes in which the detector sees nothing. The scores are our own: a detection
contradicts a label only if it is as confident as half of the detections of its class that agree with one. A detector
trained on these labels has learnt some of their errors; another one finds more.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nextdetr.analysis.doctor.findings import Finding, Mark, Parts, Picture, Severity
from nextdetr.analysis.doctor.overlap import iou_matrix
from nextdetr.data.records import DetectionData, ImageRecord
from nextdetr.errors import ConfigError
from nextdetr.inference.exported import open_any
from nextdetr.inference.opened import settle, warn_of_gaps, warn_of_random_weights
from nextdetr.report.matching import box_ious

__all__ = ["Found", "compare_labels", "doubt_labels"]

_LEAST = 0.05  # least confidence of the detections considered
_SURE = 0.3  # least confidence of a detection that may contradict a label
_AGREES = 0.5  # IoU of a detection that agrees with a label
_SAME_OBJECT = 0.6  # IoU of a detection of the same object as a label of another class
_NEAR = 0.3  # IoU below which a detection has no label
_INSIDE = 0.5  # fraction of a detection in a crowd, from which it is of an object that has no box of its own
_TOUCHES = 0.1  # IoU below which a label has no detection
_PLACED = 0.65  # IoU from which a label is well placed
_SEEN = 0.9  # fraction of the boxes of a size with a detection, from which boxes without one are doubtful
_MANY = 0.02  # fraction of the boxes from which it is a warning
_WEAK = 0.2  # fraction of the boxes from which the detector is more likely wrong
_TOLD = 200  # maximum doubtful labels to list

_KINDS = {
    "no label": ("missing box", "missing boxes"),
    "another class": ("box of another class", "boxes of another class"),
    "another place": ("box in another place", "boxes in another place"),
    "nothing there": ("box where nothing is seen", "boxes where nothing is seen"),
}


@dataclass(frozen=True, slots=True)
class Found:
    """Detections in an image.

    Attributes:
        boxes: [N, 4] xyxy, pixels.
        scores: [N], 0 to 1, best first.
        labels: [N], indices of the data set's classes.
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Doubt:
    kind: str
    score: float
    split: str
    record: ImageRecord
    answer: Found
    label: int | None  # position of the box
    found: int | None  # position of the detection


def doubt_labels(
    parts: Parts,
    model: str,
    *,
    weights: Path | None = None,
    allow_partial: bool = False,
    device: str | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> list[Finding]:
    """Run a detector over all images, and compare its detections with the labels.

    Args:
        parts: the splits.
        model: a checkpoint, an exported file, or a model for ``weights``.
        weights: see ``open_detector``.
        allow_partial: see ``open_detector``.
        device: device to run on.
        progress: called with the step, the number of images done and the total.

    Raises:
        ConfigError: the detector has none of the data set's classes.
    """
    opened, reports = open_any(model, weights=weights, allow_partial=allow_partial)
    warn_of_gaps(reports)
    settled = settle(opened, device=device)
    warn_of_random_weights(settled.opened, weights=weights is not None)
    names = dict.fromkeys(name for data in parts.values() for name in data.classes)
    if not names.keys() & set(opened.classes):
        raise ConfigError(
            f"{model}: it has none of the classes of the data set; give a detector that was trained for them."
        )
    total = sum(len(data.records) for data in parts.values())
    done, found = 0, {}
    for split, data in parts.items():
        paths = [str(record.path) for record in data.records]
        predictions = settled.predictor().stream(paths, confidence=_LEAST, animations=False)
        answers = []
        for prediction in predictions:
            if prediction.frame:  # of animated images only the first frame counts, as in training
                continue
            detections = prediction.found
            known = [at for at, name in enumerate(detections.data.get("class_name", ())) if name in data.classes]
            labels = [data.classes.index(str(detections.data["class_name"][at])) for at in known]
            scores = np.zeros(0) if detections.confidence is None else detections.confidence[known].astype(np.float64)
            answers.append(Found(detections.xyxy[known].astype(np.float64), scores, np.array(labels, dtype=np.int64)))
            done += 1
            progress("detect", done, total)
        found[split] = answers
    return compare_labels(parts, found, set(opened.classes))


def compare_labels(parts: Parts, found: Mapping[str, list[Found]], known: set[str]) -> list[Finding]:
    """Compare labels with detections.

    Args:
        parts: the splits.
        found: the detections in each image of each split.
        known: classes that the detector knows; boxes of others are not checked.
    """
    doubts: list[_Doubt] = []
    sure, seen = _sure(parts, found), _seen(parts, found)
    for split, data in parts.items():
        for record, answer in zip(data.records, found[split], strict=True):
            doubts += _of_image(split, data, record, answer, sure, seen, known)
    boxes = sum(len(record.labels) for data in parts.values() for record in data.records)
    doubts.sort(key=lambda doubt: -doubt.score)
    weak = len(doubts) > _WEAK * boxes
    advice = "this many suggest a weak detector rather than wrong labels." if weak else "the detector may be wrong."
    findings = []
    for kind, text in _KINDS.items():
        told = [doubt for doubt in doubts if doubt.kind == kind]
        if not told:
            continue
        what = f"{len(told):,} {text[1] if len(told) > 1 else text[0]}"
        message = f"{what}, according to the detector, most likely errors first. Check them: {advice}"
        images = list(dict.fromkeys(str(doubt.record.path) for doubt in told))
        details = [_detail(parts[doubt.split], doubt) for doubt in told[:_TOLD]]
        pictures = [_picture(parts[doubt.split], doubt) for doubt in told[:_TOLD]]
        severity: Severity = "warning" if len(told) > _MANY * boxes and not weak else "note"
        findings.append(Finding(f"label error: {kind}", severity, message, images, details, pictures))
    return findings


def _sure(parts: Parts, found: Mapping[str, list[Found]]) -> dict[str, float]:
    """Return for each class the median confidence of the detections that agree with a label."""
    scores: dict[str, list[float]] = defaultdict(list)
    for split, data in parts.items():
        for record, answer in zip(data.records, found[split], strict=True):
            overlap = iou_matrix(answer.boxes, record.boxes)
            overlap[answer.labels[:, None] != record.labels] = 0
            for at in range(len(record.labels)):
                agreeing = answer.scores[overlap[:, at] >= _AGREES]
                if len(agreeing):
                    scores[data.classes[record.labels[at]]].append(float(agreeing.max()))
    return {name: max(_SURE, float(np.median(values))) for name, values in scores.items()}


def _seen(parts: Parts, found: Mapping[str, list[Found]]) -> dict[int, float]:
    """Return the fraction of the boxes of each size with any detection: most detectors miss many small ones."""
    counts: dict[int, list[bool]] = defaultdict(list)
    for split, data in parts.items():
        for record, answer in zip(data.records, found[split], strict=True):
            touched = iou_matrix(answer.boxes, record.boxes).max(axis=0, initial=0) >= _TOUCHES
            for at in np.flatnonzero(~record.crowd).tolist():
                counts[_octave(record, at)].append(bool(touched[at]))
    return {octave: float(np.mean(values)) for octave, values in counts.items()}


def _octave(record: ImageRecord, at: int) -> int:
    """Return the size class of a box in the image, each with twice the area of the previous one."""
    x1, y1, x2, y2 = record.boxes[at].tolist()
    return math.floor(math.log2(max((x2 - x1) * (y2 - y1) / (record.width * record.height), 1e-9)))


def _of_image(
    split: str,
    data: DetectionData,
    record: ImageRecord,
    answer: Found,
    sure: Mapping[str, float],
    seen: Mapping[int, float],
    known: set[str],
) -> Iterator[_Doubt]:
    overlap = iou_matrix(answer.boxes, record.boxes)
    same = answer.labels[:, None] == record.labels
    limits = np.array([sure.get(data.classes[label], 1.0) for label in answer.labels])
    certain = answer.scores >= limits
    alone = (overlap.max(axis=1, initial=0) < _NEAR) & ~_in_crowd(record, answer)
    taken: list[int] = []
    for at in np.flatnonzero(certain & alone).tolist():
        if not taken or iou_matrix(answer.boxes[[at]], answer.boxes[taken]).max() < _AGREES:
            taken.append(at)
            yield _Doubt("no label", float(answer.scores[at]), split, record, answer, None, at)
    for at in np.flatnonzero(~record.crowd).tolist():
        if data.classes[record.labels[at]] not in known:
            continue
        near = overlap[:, at]
        own = answer.scores[same[:, at] & (near >= _AGREES)].max(initial=0.0)
        others = np.flatnonzero(certain & ~same[:, at] & (near >= _SAME_OBJECT))
        rivals = [one for one in others.tolist() if not (same[one] & (overlap[one] >= _AGREES)).any()]
        if rivals and answer.scores[rivals[0]] > 2 * own:
            yield _Doubt("another class", float(answer.scores[rivals[0]] - own), split, record, answer, at, rivals[0])
        elif not (near >= _TOUCHES).any():
            score = seen.get(_octave(record, at), 0.0)
            if score >= _SEEN:
                yield _Doubt("nothing there", score, split, record, answer, at, None)
        elif near[same[:, at]].max(initial=0.0) < _PLACED:
            close = np.flatnonzero(certain & same[:, at] & (near >= _NEAR))
            mine = [one for one in close.tolist() if overlap[one].argmax() == at]
            if mine:
                score = float(answer.scores[mine[0]] * (1 - near[mine[0]]))
                yield _Doubt("another place", score, split, record, answer, at, mine[0])


def _in_crowd(record: ImageRecord, answer: Found) -> NDArray[np.bool_]:
    """Return whether each detection lies in a crowd of its class, whose objects have no boxes of their own; [N].

    Ignored regions of other formats are crowds of every class.
    """
    same = answer.labels[:, None] == record.labels[record.crowd]
    crowds = record.boxes[record.crowd]
    inside = box_ious(answer.boxes, crowds, np.ones(len(crowds), dtype=np.bool_)) >= _INSIDE
    return np.asarray((inside & same).any(axis=1))


def _detail(data: DetectionData, doubt: _Doubt) -> dict[str, object]:
    answer, at, one = doubt.answer, doubt.label, doubt.found
    return {
        "split": doubt.split, "image": str(doubt.record.path), "score": round(doubt.score, 4),
        "box": None if at is None else doubt.record.boxes[at].tolist(),
        "class_name": None if at is None else data.classes[doubt.record.labels[at]],
        "found": None if one is None else [round(value, 1) for value in answer.boxes[one].tolist()],
        "found_class_name": None if one is None else data.classes[answer.labels[one]],
        "found_confidence": None if one is None else round(float(answer.scores[one]), 4),
    }  # fmt: skip


def _picture(data: DetectionData, doubt: _Doubt) -> Picture:
    answer = doubt.answer
    marks = [Mark(_corners(box)) for at, box in enumerate(doubt.record.boxes) if at != doubt.label]
    if doubt.label is not None:
        name = data.classes[doubt.record.labels[doubt.label]]
        marks.append(Mark(_corners(doubt.record.boxes[doubt.label]), f"label: {name}"))
    caption = f"{doubt.record.path.name}, {doubt.split}"
    if doubt.found is not None:
        name, score = data.classes[answer.labels[doubt.found]], answer.scores[doubt.found]
        marks.append(Mark(_corners(answer.boxes[doubt.found]), f"{name} {score:.2f}", doubtful=True))
    elif doubt.label is not None:
        marks[-1] = Mark(marks[-1].box, marks[-1].text, doubtful=True)
    return Picture(doubt.record.path, caption, tuple(marks))


def _corners(box: NDArray[np.floating]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(value) for value in box)
    return x1, y1, x2, y2
