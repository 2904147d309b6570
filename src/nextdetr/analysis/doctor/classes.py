"""Classes that are rare, in only one split, or have similar names."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations

from nextdetr.analysis.doctor.findings import Finding, Parts, Severity, some
from nextdetr.data.raw import plural
from nextdetr.data.records import DetectionData

__all__ = ["alike_names", "class_splits", "rare_classes"]

_RARE = 20  # boxes
_LONG_NAME = 5  # least length of a name in which one letter may be a typo


def _counts(data: DetectionData) -> Counter[str]:
    counts = Counter(dict.fromkeys(data.classes, 0))
    for record in data.records:
        counts.update(data.classes[label] for label in record.labels[~record.crowd])
    return counts


def rare_classes(parts: Parts) -> list[Finding]:
    """Find classes with few boxes in train, or with none although they are named."""
    if "train" not in parts:
        return []
    counts = _counts(parts["train"])
    if not any(counts.values()):
        return []
    named = {name: sum(_counts(data)[name] for data in parts.values()) for name in counts}
    findings = []
    rare = sorted((count, name) for name, count in counts.items() if 0 < count < _RARE)
    if rare:
        listed = some((f"{name} ({count})" for count, name in rare), 6)
        message = f"{_classes(len(rare))} fewer than {_RARE} boxes in train: {listed}. Label more, or join classes."
        details = [{"class_name": name, "boxes": count} for count, name in rare]
        findings.append(
            Finding("rare class", "warning", message, _images(parts["train"], {name for _, name in rare}), details)
        )
    unused = [name for name, count in named.items() if not count]
    if unused:
        message = f"{_classes(len(unused))} no box anywhere: {some(unused, 6)}. Take them out of the list of classes."
        findings.append(Finding("class without boxes", "note", message, details=[{"class_name": name} for name in unused]))
    return findings


def class_splits(parts: Parts) -> list[Finding]:
    """Find classes that are scored but cannot be learnt, or learnt but not scored."""
    if "train" not in parts or len(parts) < 2:
        return []
    findings = []
    learnt = {name for name, count in _counts(parts["train"]).items() if count}
    for split, data in parts.items():
        scored = {name for name, count in _counts(data).items() if count}
        if split == "train" or not learnt or not scored:
            continue
        unknown = sorted(scored - learnt)
        if unknown:
            message = (
                f"{_classes(len(unknown))} boxes in {split} and none in train: {some(unknown, 6)}. Nothing can find them."
            )
            severity: Severity = "error" if unknown == sorted(scored) else "warning"
            details = [{"split": split, "class_name": name} for name in unknown]
            findings.append(Finding("class not in train", severity, message, _images(data, set(unknown)), details))
        missing = sorted(learnt - scored)
        if missing:
            message = f"{_classes(len(missing))} no box in {split}, which says nothing of them: {some(missing, 6)}."
            details = [{"split": split, "class_name": name} for name in missing]
            severity = "warning" if split == "val" else "note"
            findings.append(Finding(f"class not in {split}", severity, message, details=details))
    return findings


def alike_names(parts: Parts) -> list[Finding]:
    """Find names that may mean the same class: spelt differently, in the plural, or with a typo."""
    counts: Counter[str] = Counter()
    for data in parts.values():
        counts.update(_counts(data))
    pairs = [pair for pair in combinations(sorted(counts), 2) if _alike(*pair)]
    if not pairs:
        return []
    shown = some((f"{one!r} ({counts[one]:,}) and {two!r} ({counts[two]:,})" for one, two in pairs), 4)
    message = f"{plural(len(pairs), 'pair')} of classes have names that are nearly the same, with their boxes: {shown}."
    images = list(dict.fromkeys(image for data in parts.values() for image in _images(data, {n for p in pairs for n in p})))
    return [Finding("names nearly alike", "warning", message, images, [{"class_names": list(pair)} for pair in pairs])]


def _alike(first: str, second: str) -> bool:
    one, two = (re.sub(r"[\W_]+", "", name.casefold()) for name in (first, second))
    if one == two or (one and two and (one + "s" == two or two + "s" == one)):
        return True
    digits = re.sub(r"\d+", "", one), re.sub(r"\d+", "", two)
    if digits != (one, two) or min(len(one), len(two)) < _LONG_NAME:  # "type 1" and "type 2" are different on purpose
        return False
    return _one_letter_apart(one, two)


def _one_letter_apart(one: str, two: str) -> bool:
    """Whether one letter was omitted, inserted or replaced, or two adjacent ones swapped."""
    short, long = sorted((one, two), key=len)
    if len(long) - len(short) > 1:
        return False
    at = next((place for place, pair in enumerate(zip(short, long, strict=False)) if pair[0] != pair[1]), len(short))
    if len(short) < len(long):
        return short[at:] == long[at + 1 :]
    swapped = long[at + 1 : at + 2] + long[at : at + 1] + long[at + 2 :]
    return short[at + 1 :] == long[at + 1 :] or short[at:] == swapped


def _classes(count: int) -> str:
    return "1 class has" if count == 1 else f"{count:,} classes have"


def _images(data: DetectionData, names: set[str]) -> list[str]:
    """Return the images with a box of any of these classes."""
    labels = {at for at, name in enumerate(data.classes) if name in names}
    return [str(record.path) for record in data.records if labels & set(record.labels.tolist())]
