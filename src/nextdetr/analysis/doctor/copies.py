"""Duplicate images: within a split, and across splits, where they invalidate the score."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from nextdetr.analysis.doctor.findings import Finding, Parts, Picture, some
from nextdetr.data.duplicates import Groups, Pair
from nextdetr.data.raw import plural
from nextdetr.data.records import DetectionData, ImageRecord

__all__ = ["Copies", "copies_across", "copies_with_other_labels", "copies_within"]

_WASTED = 0.1  # fraction of a split seen in training from which its score is meaningless
_HELD_OUT = ("val", "test")


@dataclass(frozen=True, slots=True)
class Copies:
    """The images of all splits, and which of them show the same picture.

    Attributes:
        images: split and record of each image; an image in two splits occurs twice.
        pairs: pairs of positions, enough to connect each group.
    """

    images: list[tuple[str, ImageRecord]]
    pairs: list[Pair]

    def groups(self, *, exact: bool = False) -> list[list[int]]:
        """Return the positions of each group of two or more; ``exact`` joins only identical files."""
        joined = Groups(len(self.images))
        for pair in self.pairs:
            if pair.exact or not exact:
                joined.join(pair.first, pair.second)
        return joined.members()


def copies_across(parts: Parts, copies: Copies) -> list[Finding]:
    """Find images with a copy in another split."""
    findings = []
    groups = copies.groups()
    names = sorted(parts, key=lambda name: (name != "train", name))
    for number, split in enumerate(names):
        for other in names[:number]:
            shared = []
            for group in groups:
                mine = [at for at in group if copies.images[at][0] == split]
                theirs = [at for at in group if copies.images[at][0] == other]
                if theirs:
                    shared += [(at, theirs[0]) for at in mine]
            if shared:
                findings.append(_across(parts, copies, (split, other), shared))
    return findings


def _across(parts: Parts, copies: Copies, splits: tuple[str, str], shared: list[tuple[int, int]]) -> Finding:
    split, other = splits
    total = len(parts[split].records)
    share = len(shared) / total
    wasted = other == "train" and split in _HELD_OUT and share >= _WASTED
    verb = "has" if len(shared) == 1 else "have"
    message = (
        f"{len(shared):,} of the {plural(total, 'image')} of {split} ({share:.0%}) {verb} a copy in {other}"
        + (", so its score says little about new images" if other == "train" else "")
        + ". Leave one of each two out (--fix does)."
    )
    exact = {(pair.first, pair.second) for pair in copies.pairs if pair.exact}
    changes = {frozenset((pair.first, pair.second)): pair.change for pair in copies.pairs}
    details, pictures = [], []
    for at, copy in shared:
        record, twin = copies.images[at][1], copies.images[copy][1]
        change = changes.get(frozenset((at, copy)), "")
        same = (at, copy) in exact or (copy, at) in exact
        details.append(
            {split: str(record.path), other: str(twin.path), "change": "same file" if same else change or "same picture"}
        )
        pictures += [Picture(record.path, f"{split}: {record.path.name}"), Picture(twin.path, f"{other}: {twin.path.name}")]
    images = [str(copies.images[at][1].path) for at, _ in shared]
    return Finding("image in two splits", "error" if wasted else "warning", message, images, details, pictures)


def copies_within(parts: Parts, copies: Copies) -> list[Finding]:
    """Find images with a copy in the same split, identical files separately."""
    findings = []
    equal = copies.groups(exact=True)
    together = {at: number for number, group in enumerate(equal) for at in group}
    for split in parts:
        same = [[at for at in group if copies.images[at][0] == split] for group in equal]
        same = [group for group in same if len(group) > 1]
        near = []
        for group in copies.groups():
            mine = [at for at in group if copies.images[at][0] == split]
            first_of = {together.get(at, -1 - at): at for at in reversed(mine)}  # one of each file
            if len(first_of) > 1:
                near.append(sorted(first_of.values()))
        for kind, found, text in (
            ("same file twice", same, "are exact copies of other files: each counts twice in training"),
            ("near duplicates", near, "are copies of others, cropped, mirrored, brightened or re-encoded"),
        ):
            if not found:
                continue
            extra = sum(len(group) - 1 for group in found)
            message = f"{extra:,} of the {plural(len(parts[split].records), 'image')} of {split} {text}."
            records = [[copies.images[at][1] for at in group] for group in found]
            images = [str(record.path) for group in records for record in group]
            details = [{"split": split, "images": [str(record.path) for record in group]} for group in records]
            pictures = [Picture(record.path, record.path.name) for group in records for record in group[:2]]
            findings.append(Finding(kind, "warning" if found is same else "note", message, images, details, pictures))
    return findings


def copies_with_other_labels(parts: Parts, copies: Copies) -> list[Finding]:
    """Find uncropped copies with a different number of boxes of some class."""
    found = []
    for pair in copies.pairs:
        if "cropped" in pair.change:
            continue
        (split, one), (other, two) = copies.images[pair.first], copies.images[pair.second]
        counts = _counts(parts[split], one), _counts(parts[other], two)
        if counts[0] != counts[1]:
            found.append(((split, one, counts[0]), (other, two, counts[1])))
    if not found:
        return []
    (_, one, first), (_, two, second) = found[0]
    message = (
        f"{plural(len(found), 'pair')} of copies do not have the same boxes, such as {one.path.name} ({_listed(first)}) "
        f"and {two.path.name} ({_listed(second)}): one of each pair is wrong."
    )
    images = [str(record.path) for pair in found for _, record, _ in pair]
    details = [
        {"images": [str(record.path) for _, record, _ in pair], "boxes": [dict(counts) for *_, counts in pair]}
        for pair in found
    ]
    pictures = [
        Picture(record.path, f"{record.path.name}: {_listed(counts)}") for pair in found for _, record, counts in pair
    ]
    return [Finding("copies with other labels", "warning", message, images, details, pictures)]


def _counts(data: DetectionData, record: ImageRecord) -> Counter[str]:
    return Counter(data.classes[label] for label in record.labels)


def _listed(counts: Counter[str]) -> str:
    return some((f"{count} {name}" for name, count in sorted(counts.items())), 4) or "no box"
