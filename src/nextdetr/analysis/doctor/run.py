"""Check a data set as a whole for problems that would spoil training."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nextdetr.analysis.doctor.boxes import doubled_boxes, equal_boxes, small_boxes, whole_image_boxes
from nextdetr.analysis.doctor.classes import alike_names, class_splits, rare_classes
from nextdetr.analysis.doctor.copies import Copies, copies_across, copies_with_other_labels, copies_within
from nextdetr.analysis.doctor.findings import NOT_FIXED, DoctorResult, Finding, Parts, order
from nextdetr.analysis.doctor.fix import choose_images, write_fixed
from nextdetr.analysis.doctor.images import odd_images, reading_problems, split_sizes
from nextdetr.analysis.doctor.page import write_page
from nextdetr.config import DoctorConfig, TrainConfig, build_config
from nextdetr.data.candidates import make_thumbnails
from nextdetr.data.duplicates import find_duplicates
from nextdetr.data.records import DetectionData
from nextdetr.data.sources import available_splits, load_data
from nextdetr.data.split import count_aside
from nextdetr.engine.recipe import SET_ASIDE, choose_recipe
from nextdetr.engine.recipe_plan import Recipe
from nextdetr.engine.statistics import describe_data, describe_machine
from nextdetr.errors import ConfigError, DataError
from nextdetr.files import check_writable
from nextdetr.models.graph import available_models, build_skeleton
from nextdetr.tensors import choose_device

__all__ = ["doctor", "examine"]

_OWN = ("train", "val", "test")  # splits that are always checked

Progress = Callable[[str, int, int], None]


def doctor(
    data: str | Path,
    *,
    model: str | Path | None = None,
    weights: str | Path | None = None,
    allow_partial: bool = False,
    output: str | Path | None = None,
    fix: str | Path | None = None,
    image_size: int | None = None,
    device: str | None = None,
    progress: Progress = lambda *_: None,
) -> DoctorResult:
    """Check a data set before training: duplicates and leaks, broken images, odd boxes and classes, doubtful labels.

    Args:
        data: as for ``nextdetr.Detector.train``.
        model: a trained detector, to find label errors; None skips these.
        weights: see ``nextdetr.Detector``.
        allow_partial: see ``nextdetr.Detector``.
        output: an HTML page to write, with thumbnails.
        fix: a dataset YAML to write with the images worth keeping; no other file is changed.
        image_size: side of the square input for training, pixels; by default the choice of ``train``.
        device: device of the detector.
        progress: called with the step, the number done and the total.

    Returns:
        The findings, most serious first; ``passed`` is False if training would be wasted.

    Raises:
        DataError: there is no such data set, or none of its splits can be read.
        ConfigError: the detector has none of the classes, weights lack a model, or a file to write has a wrong suffix.
        WeightsError: the weights do not fit the model.
        WriteError: a file cannot be written.
    """
    values = {
        "model": model, "weights": weights, "allow_partial": allow_partial or None, "output": output, "fix": fix,
        "image_size": image_size, "device": device,
    }  # fmt: skip
    given = {name: str(value) if isinstance(value, Path) else value for name, value in values.items() if value is not None}
    return examine(data, build_config(DoctorConfig, given), progress)


def examine(data: str | Path, config: DoctorConfig, progress: Progress = lambda *_: None) -> DoctorResult:
    """Run ``doctor`` with a configuration."""
    _check_files(config)
    parts, findings = _read(data)
    records = [(split, record) for split, part in parts.items() for record in part.records]
    unique = list(dict.fromkeys(record.path for _, record in records))
    threads = min(8, (os.cpu_count() or 1) + 1)
    thumbnails, readable = make_thumbnails(unique, threads=threads, progress=lambda n: progress("read", n, len(unique)))
    pairs = find_duplicates([record.path for _, record in records], thumbnails=dict(zip(unique, thumbnails, strict=True)),
                            progress=progress)  # fmt: skip
    copies = Copies(records, pairs)
    set_aside = None if "val" in available_splits(data) else SET_ASIDE  # a val that cannot be read is one
    findings += split_sizes(parts, set_aside) + reading_problems(parts)
    findings += odd_images(parts, dict(zip(unique, thumbnails, strict=True)), dict(zip(unique, readable, strict=True)))
    findings += copies_across(parts, copies) + copies_with_other_labels(parts, copies) + copies_within(parts, copies)
    findings += rare_classes(parts) + class_splits(parts) + alike_names(parts)
    recipe = None
    if "train" in parts and parts["train"].classes:
        recipe = _recipe(str(data), parts["train"], config, set_aside)
        name = recipe.config.model
        skeleton = build_skeleton(name)
        finest = min(skeleton.row_infos[-1].strides_read)
        size = recipe.config.image_size or skeleton.image_size
        findings += small_boxes(parts, size, finest, name)
    findings += doubled_boxes(parts) + whole_image_boxes(parts) + equal_boxes(parts)
    if config.model is not None:
        from nextdetr.analysis.doctor.labels import doubt_labels

        findings += doubt_labels(
            parts, config.model, weights=config.weights, allow_partial=config.allow_partial, device=config.device,
            progress=progress,
        )  # fmt: skip
    fixed = None
    if config.fix is not None:
        fixed = config.fix if _fix(data, parts, copies, config.fix, findings) else None
    counts = {
        split: {"images": len(part.records), "boxes": sum(len(record.labels) for record in part.records)}
        for split, part in parts.items()
    }
    result = DoctorResult(
        str(data), next(iter(parts.values())).recognised, counts, order(findings),
        [] if recipe is None else recipe.reasons, None if config.output is None else str(config.output),
        None if fixed is None else str(fixed),
    )  # fmt: skip
    if config.output is not None:
        write_page(result, config.output)
    return result


def _check_files(config: DoctorConfig) -> None:
    if config.output is not None and config.output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{config.output}: the page is HTML; end the name in .html.")
    if config.fix is not None and config.fix.suffix.lower() not in (".yaml", ".yml"):
        raise ConfigError(f"{config.fix}: a dataset YAML is written; end the name in .yaml.")
    if config.fix is not None and config.fix.exists():
        raise ConfigError(f"{config.fix}: it exists already, and is not touched; choose another name.")
    for path in (config.output, config.fix):
        if path is not None:
            check_writable(path)


def _read(data: str | Path) -> tuple[Parts, list[Finding]]:
    """Read all splits; an unreadable one is a finding, unless all are."""
    splits = available_splits(data)
    if not splits:
        raise DataError(f"{data}: no split is named, so there is nothing to check.")
    parts: Parts = {}
    findings: list[Finding] = []
    failed: DataError | None = None
    for split in splits:
        try:
            parts[split] = load_data(data, split)
        except DataError as error:
            failed = error
            grave = split in ("train", "val")
            findings.append(Finding("unreadable split", "error" if grave else "warning", f"{split}: {error}"))
    if not parts and failed is not None:
        raise failed
    for split in [name for name in parts if name not in _OWN]:
        others = {record.path for name, part in parts.items() if name != split for record in part.records}
        if others.issuperset(record.path for record in parts[split].records):  # VOC's trainval
            message = f"all images of {split} are in other splits; it is left out here."
            findings.append(Finding("split of other splits", "note", message))
            del parts[split]
    return parts, findings


def _fix(data: str | Path, parts: Parts, copies: Copies, target: Path, findings: list[Finding]) -> bool:
    """Write the dataset YAML; a failure is a finding, since the others are still worth reading."""
    try:
        write_fixed(data, parts, choose_images(parts, copies), target)
    except DataError as error:
        findings.append(Finding(NOT_FIXED, "error", f"{target} was not written: {error}"))
        return False
    return True


def _recipe(data: str, train: DetectionData, config: DoctorConfig, set_aside: float | None) -> Recipe:
    """Choose what ``train --data`` would choose here."""
    given = {"data": data} if config.image_size is None else {"data": data, "image_size": config.image_size}
    machine = describe_machine(choose_device(config.device))
    return choose_recipe(
        build_config(TrainConfig, given), describe_data(_left_to_train(train, set_aside)), machine,
        models=available_models(), set_aside=set_aside,
    )  # fmt: skip


def _left_to_train(train: DetectionData, set_aside: float | None) -> DetectionData:
    """Return as many images, from all over ``train``, as are left if training sets the others aside as ``val``."""
    if set_aside is None:
        return train
    count = len(train.records)
    aside = count_aside(count, set_aside)
    gone = {number * count // aside for number in range(aside)}
    return replace(train, records=[record for number, record in enumerate(train.records) if number not in gone])
