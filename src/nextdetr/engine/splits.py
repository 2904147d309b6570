"""The training and validation splits, read and checked; without a ``val``, part of ``train`` is set aside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from nextdetr.config import TrainConfig
from nextdetr.data.check import require_boxes, summarize_problems
from nextdetr.data.joined import DataSets, sets_of, sets_text
from nextdetr.data.leak import shared_images
from nextdetr.data.raw import plural
from nextdetr.data.records import DetectionData, read_as
from nextdetr.data.sources import load_data, require_splits
from nextdetr.data.split import SetAside, split_off
from nextdetr.engine.recipe import SET_ASIDE
from nextdetr.engine.resume import check_classes
from nextdetr.errors import ConfigError, DataError
from nextdetr.files import write_text_atomic
from nextdetr.preprocess import Reading

__all__ = ["Splits", "load_splits", "set_aside_metadata", "write_set_aside"]


@dataclass(frozen=True, slots=True)
class Splits:
    """The images to learn from, and those that choose the best weights.

    Attributes:
        train, val: the images; both have the same classes.
        set_aside: fraction of train that became val; None if the data set has its own.
    """

    train: DetectionData
    val: DetectionData
    set_aside: float | None


def load_splits(config: TrainConfig, tell: Callable[[str], None], classes: Sequence[str] | None = None) -> Splits:
    """Read and check the training and validation splits, and report problems.

    Args:
        config: settings with the data set.
        tell: prints a line for the user.
        classes: classes of a run to resume.
    """
    assert config.data is not None
    named = sets_text(config.data)
    read = partial(load_data, config.data, on_bad_data=config.on_bad_data, min_confidence=config.min_confidence)
    gone = [] if classes is None else [path for path in sets_of(config.data) if not path.exists()]
    if gone:
        raise DataError(f"{gone[0]}: the data set of the run no longer exists; if it has moved, name it with --data.")
    aside = _set_aside(config)
    train_data = read("train")
    if classes is not None and config.resume is not None:
        reread = partial(read, "train", classes=classes)
        train_data = check_classes(train_data, classes, named, config.resume, reread)
    for line in (read_as(train_data.recognised), *train_data.notes):
        tell(line)
    if aside is None:
        val_data = read("val", classes=train_data.classes)
    else:
        parts = split_off(train_data, aside, config.seed)
        train_data, val_data = parts.train, parts.val
        tell(parts.text)
    for data in (train_data, val_data):
        boxes = [len(record.labels) for record in data.records]
        empty = f", {boxes.count(0)} of them without a box" if 0 in boxes else ""
        counts = [plural(sum(boxes), "box"), plural(len(data.classes), "class")]
        tell(f"{data.split}: {plural(len(boxes), 'image')}{empty}, {', '.join(counts)}")
        if data.problems:
            tell(summarize_problems(data.problems))
    reading = Reading(bits=config.bits or 16)
    train_data, val_data = replace(train_data, reading=reading), replace(val_data, reading=reading)
    if not train_data.classes:
        raise DataError(f"{named}: no class is defined, so there is nothing to learn.")
    require_boxes(train_data)
    if not sum(int((~record.crowd).sum()) for record in val_data.records):
        tell("val has no box to find, so nothing can be scored; the last epoch counts as the best one")
    shared = shared_images(train_data, val_data)
    if shared and config.on_bad_data == "error":
        raise DataError(f"{shared[0].file}: {shared[0].message}. Take them out of one of the splits.")
    if shared:
        tell(summarize_problems(shared))
    return Splits(train_data, val_data, aside)


def _set_aside(config: TrainConfig) -> float | None:
    """Return the fraction of train that becomes val; None if the data set has its own.

    A resumed run keeps what it set aside.

    Raises:
        DataError: there is no train.
        ConfigError: the data set has a val, but a fraction is given.
    """
    assert config.data is not None
    has_val = require_splits(config.data)
    if has_val and config.split_off is not None and config.resume is None:
        raise ConfigError(f"{sets_text(config.data)}: it has a val of its own; leave --split-off out.")
    return None if has_val and config.split_off is None else config.split_off or SET_ASIDE


def set_aside_metadata(config: TrainConfig, val: DetectionData) -> dict[str, str]:
    """Metadata of a detector's file about the images set aside; empty if the data set has a ``val``."""
    if config.split_off is None:
        return {}
    return SetAside.of(val, config.split_off, config.seed, config.min_confidence).to_metadata()


def write_set_aside(data: DetectionData, source: DataSets, directory: Path) -> None:
    """Write the images that were set aside to the run's ``val.txt``.

    They are named by their paths in the data set ``source``; by their whole paths, if it is several.
    """
    root, *others = sets_of(source)
    root = root if root.is_dir() else root.parent
    paths = [record.path.absolute() if others else record.path for record in data.records]
    names = [(path.relative_to(root) if not others and path.is_relative_to(root) else path).as_posix() for path in paths]
    write_text_atomic(directory / "val.txt", "".join(f"{name}\n" for name in names))
