"""Set part of the training images aside, for a data set without ``val``.

Images that look alike stay on one side, or the score would include training images: frames of one video, near duplicates,
also cropped or mirrored (see ``duplicates.py``), and Roboflow's augmented copies of one source. Two images also look alike
if their thumbnails of 16 x 16 grey cells correlate by 0.9: in BCCD that is one pair (0.99; all others stay below 0.76),
among the first 600 images of Facemask twelve.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nextdetr.data.duplicates import Groups, find_duplicates
from nextdetr.data.joined import DataSets, sets_text
from nextdetr.data.near_copies import small_pictures
from nextdetr.data.raw import plural
from nextdetr.data.records import DetectionData
from nextdetr.data.sources import available_splits, load_data, require_splits
from nextdetr.errors import DataError

__all__ = ["SetAside", "SplitOff", "count_aside", "load_scored", "load_split_off", "split_off"]

_ALIKE = 0.9  # correlation of two thumbnails from which they look alike
_BLOCK = 256  # images compared with all others at once
_MOST_SEARCHED = 20_000  # images; at this number the search for crops and mirrored copies takes a few minutes
_DRAWS = 32  # random draws; the one whose class distribution is closest to the whole is used
_COPY = re.compile(r"(.+)\.rf\.[0-9A-Za-z]{8,}")  # Roboflow's names for copies of one source


@dataclass(frozen=True, slots=True)
class SplitOff:
    """Two parts of a split.

    Attributes:
        train: images left to learn from.
        val: images set aside.
        text: a one-line description.
    """

    train: DetectionData
    val: DetectionData
    text: str


def split_off(data: DetectionData, share: float, seed: int) -> SplitOff:
    """Set about ``share`` of the images aside; deterministic for the same images, share and seed.

    Args:
        data: the training split.
        share: 0 to 1; each side gets at least one image.
        seed: seed of the choice, 0 or above.

    Raises:
        DataError: there is only one image.
    """
    count = len(data.records)
    if count < 2:
        raise DataError(f"{data.name}: one image alone cannot be split into train and val.")
    target = count_aside(count, share)
    found = _groups(data)
    groups, cut = _cut(found, target)
    chosen = _choose(data, groups, target, seed)
    train = replace(data, records=[record for record, aside in zip(data.records, chosen, strict=True) if not aside])
    val = replace(
        data,
        split="val",
        problems=[],
        records=[record for record, aside in zip(data.records, chosen, strict=True) if aside],
    )
    what = f"{len(val.records):,} of {plural(count, 'image')}"
    text = f"val: {what} set aside from {data.split} (--split-off {share:g} --seed {seed})"
    alike = count - int(found.max()) - 1
    if cut:
        text += f"; {plural(cut, 'image')} look alike, as frames of one video do, and are split in blocks of their order"
    elif alike:
        text += f"; {plural(alike, 'image')} like another, on the same side as that one"
    return SplitOff(train, val, text)


def count_aside(images: int, share: float) -> int:
    """Return how many images :func:`split_off` sets aside, at most."""
    return min(max(1, round(share * images)), images - 1)


def load_split_off(
    path: DataSets,
    split: str,
    share: float,
    seed: int,
    *,
    classes: Sequence[str] | None = None,
    on_bad_data: Literal["warn", "error"] = "warn",
    min_confidence: float | None = None,
) -> DetectionData:
    """Read ``train`` or ``val`` of a data set without ``val``, split as in training; see :func:`split_off`.

    The labels count in the choice of the images, so ``min_confidence`` must be that of the training, too.

    Raises:
        DataError: see ``load_data``; or the data set has a ``val``, or ``split`` is another one.
    """
    if require_splits(path):
        raise DataError(f"{sets_text(path)}: it has a val of its own; leave --split-off out.")
    if split not in ("train", "val"):
        raise DataError(f"{sets_text(path)}: --split-off makes a val of train, and no {split}; leave it out.")
    train = load_data(path, "train", classes=classes, on_bad_data=on_bad_data, min_confidence=min_confidence)
    parts = split_off(train, share, seed)
    return parts.val if split == "val" else parts.train


@dataclass(frozen=True, slots=True)
class SetAside:
    """How a training split its images, as stored in its detector's file (metadata ``set_aside``, JSON).

    Attributes:
        share, seed: as in :func:`split_off`.
        min_confidence: as in ``load_data``.
        images: digest of the ids of the images that were set aside.
    """

    share: float
    seed: int
    min_confidence: float | None
    images: str

    @classmethod
    def of(cls, val: DetectionData, share: float, seed: int, min_confidence: float | None = None) -> SetAside:
        """Describe the images that were set aside."""
        return cls(share, seed, min_confidence, _digest(val))

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata entry."""
        return {"set_aside": json.dumps(asdict(self))}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> SetAside | None:
        """Parse what ``to_metadata`` wrote; None if there is nothing usable."""
        try:
            values = json.loads(metadata["set_aside"])
            share, seed, least = float(values["share"]), int(values["seed"]), values["min_confidence"]
            found = cls(share, seed, None if least is None else float(least), str(values["images"]))
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            return None
        return found if 0 < found.share < 1 and found.seed >= 0 else None

    def load(
        self, path: DataSets, *, classes: Sequence[str] | None = None, on_bad_data: Literal["warn", "error"] = "warn"
    ) -> DetectionData:
        """Read the images that were set aside from a data set without ``val``.

        Raises:
            DataError: see ``load_data``; or they are not the images that training set aside.
        """
        train = load_data(path, "train", classes=classes, on_bad_data=on_bad_data, min_confidence=self.min_confidence)
        val = split_off(train, self.share, self.seed).val
        if _digest(val) != self.images:
            raise DataError(
                f"{sets_text(path)}: there is no split val, and it is not what the detector was trained on, or has changed "
                "since, so the images that training set aside are not known. The run's val.txt lists them: write val with "
                "include: val.txt into a dataset YAML, or name another split with --split. A run on several data sets has "
                "a data.yaml that lists them."
            )
        count = f"{len(val.records):,} of {plural(len(train.records), 'image')}"
        return replace(val, recognised=f"{val.recognised}; no val, so the {count} that training set aside")


def load_scored(
    path: DataSets,
    split: str,
    metadata: Mapping[str, str],
    *,
    classes: Sequence[str] | None = None,
    on_bad_data: Literal["warn", "error"] = "warn",
    can_split_off: bool = False,
) -> DetectionData:
    """Read a split to score a detector on; without a ``val``, the images that its training set aside.

    Args:
        path: the data set.
        split: name of the split.
        metadata: metadata of the detector's file.
        classes: as in ``load_data``.
        on_bad_data: as in ``load_data``.
        can_split_off: whether the command has ``--split-off``, for its message.

    Raises:
        DataError: see ``load_data`` and :meth:`SetAside.load`.
    """
    aside = SetAside.from_metadata(metadata)
    if aside is not None and split == "val" and "val" not in available_splits(path):
        return aside.load(path, classes=classes, on_bad_data=on_bad_data)

    def advice(there: Sequence[str]) -> str:
        aside = ", or score a part of train with --split-off, as in --split-off 0.2"
        return f"Name one of these with --split{aside * (can_split_off and split == 'val' and 'train' in there)}."

    return load_data(path, split, classes=classes, on_bad_data=on_bad_data, advice=advice)


def _digest(data: DetectionData) -> str:
    names = "\0".join(sorted(str(record.image_id) for record in data.records))
    return hashlib.blake2b(names.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _groups(data: DetectionData) -> NDArray[np.int64]:
    """Return the number of each image's group of similar images, in order of appearance; [N]."""
    joined = Groups(len(data.records))
    first: dict[str, int] = {}
    for position, record in enumerate(data.records):
        match = _COPY.fullmatch(record.path.stem)
        if match:
            joined.join(first.setdefault(match[1], position), position)
    paths = [record.path for record in data.records]
    if len(paths) <= _MOST_SEARCHED:
        for pair in find_duplicates(paths, data.reading):
            joined.join(pair.first, pair.second)
    pictures = small_pictures(paths)
    for start in range(0, len(pictures), _BLOCK):
        block = pictures[start : start + _BLOCK]
        for row, alike in enumerate(block @ pictures[start:].T >= _ALIKE):
            for other in np.flatnonzero(alike[row + 1 :]).tolist():
                joined.join(start + row, start + row + 1 + other)
    return joined.numbers()


def _cut(groups: NDArray[np.int64], target: int) -> tuple[NDArray[np.int64], int]:
    """Split groups larger than the part to set aside into blocks of its length; also return their number of images."""
    cut = 0
    groups = groups.copy()
    following = int(groups.max()) + 1
    for number in np.flatnonzero(np.bincount(groups) > target).tolist():
        members = np.flatnonzero(groups == number)
        cut += len(members)
        for start in range(target, len(members), target):
            groups[members[start : start + target]] = following
            following += 1
    return groups, cut


def _choose(data: DetectionData, groups: NDArray[np.int64], target: int, seed: int) -> NDArray[np.bool_]:
    """Draw groups until the part is full, several times; return the draw with the best class distribution, [N]."""
    sizes = np.bincount(groups)
    labels = np.concatenate([record.labels[~record.crowd] for record in data.records])
    image_of = np.repeat(np.arange(len(data.records)), [int((~record.crowd).sum()) for record in data.records])
    totals = np.bincount(labels, minlength=len(data.classes)).astype(np.float64)
    generator = np.random.default_rng(seed)
    best, chosen = np.inf, np.zeros(len(groups), dtype=np.bool_)
    for _ in range(_DRAWS):
        taken = np.zeros(len(sizes), dtype=np.bool_)
        room = target
        for group in generator.permutation(len(sizes)).tolist():
            if sizes[group] <= room:
                taken[group] = True
                room -= int(sizes[group])
            if not room:
                break
        aside = taken[groups]
        inside = np.bincount(labels[aside[image_of]], minlength=len(totals))
        distance = room / target + _unlike(inside[totals > 0], totals[totals > 0], target / len(groups))
        if aside.any() and distance < best:
            best, chosen = distance, aside
    return chosen


def _unlike(inside: NDArray[np.int64], totals: NDArray[np.float64], share: float) -> float:
    """Return how far the classes are from their share; infinite if one is missing from training or validation."""
    if not len(totals):
        return 0.0
    lost = 2.0 * (inside == totals) + 1.0 * ((inside == 0) & (totals > 1))
    return float((np.abs(inside / totals - share) + lost).mean())
