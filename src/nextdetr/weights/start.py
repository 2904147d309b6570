"""Build a detector with weights from the user's arguments (model, weights, backbone weights)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from nextdetr.errors import WeightsError
from nextdetr.installation import to_paste
from nextdetr.models.detection import DetectionModel
from nextdetr.models.graph import build_model, build_skeleton, load_model_file, parse_model_text, skip_backbone, with_memory
from nextdetr.models.modelfile import available_models
from nextdetr.weights.checkpoint import (
    OF_THESE_WEIGHTS,
    Given,
    OpenedModel,
    extra_metadata,
    image_size_of,
    open_model,
    read_detector_metadata,
    stated_model,
)
from nextdetr.weights.folder import EXPORTED, RUN_FILES, is_export
from nextdetr.weights.layouts.table import Identity, identify
from nextdetr.weights.licences import Origin, joined_licences, joined_names, joined_teachers
from nextdetr.weights.load import Part, Plan, fills, open_weights, plan_load
from nextdetr.weights.published import find_published
from nextdetr.weights.reader import WeightsFile, read_tensors
from nextdetr.weights.report import LoadReport
from nextdetr.weights.tensorfile import count_tensors, read_metadata

__all__ = ["Started", "open_detector", "resolve_model", "start_model"]


@dataclass(slots=True)
class Started:
    """A model with its origin.

    Attributes:
        model: the detector.
        classes: C names, in the order of its indices.
        image_size: side of the square input in pixels.
        named: whether the class names are known, rather than numbers.
        reports: one for each loaded file.
        extra: further metadata of the detector file that provided the class heads, such as the ids of the data set and the
            bit depth of its images; see ``extra_metadata``.
    """

    model: DetectionModel
    classes: list[str]
    image_size: int
    named: bool
    reports: list[LoadReport] = field(default_factory=list)
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def origin(self) -> Origin:
        """Licences, names and teachers of all loaded files."""
        taught = joined_teachers(*(report.identity.taught for report in self.reports))
        return Origin(self.weights_licence, self.source_weights, taught)

    @property
    def weights_licence(self) -> str:
        """Licences of all loaded files, ``none`` if there are none."""
        return joined_licences([report.identity.licence for report in self.reports])

    @property
    def source_weights(self) -> str:
        """All loaded files, ``none`` if there are none."""
        return joined_names([report.source for report in self.reports])


def start_model(
    model: str | Path,
    *,
    classes: Sequence[str] | None = None,
    weights: str | Path | None = None,
    backbone_weights: str | Path | None = None,
    allow_partial: bool = False,
    whole: bool = False,
    drop_path: float = 0.0,
) -> Started:
    """Build a detector and load its weights; files that do not fit are refused before the detector is allocated.

    Args:
        model: see ``resolve_model``. A checkpoint's own weights are loaded unless others are given.
        classes: classes of the data; None for those of the weights, or the model file's number.
        weights: a detector's weights in any known layout, or their name (see ``open_weights``). If there are also
            ``backbone_weights``, or weights in the model file's backbone row, and their backbone differs, only the rest is
            loaded.
        backbone_weights: weights of a backbone, or of a detector whose backbone is used.
        allow_partial: accept a load of less than half of the tensors.
        whole: refuse files that leave gaps, unless ``allow_partial``; only training can fill them.
        drop_path: stochastic depth of the backbone's last block, 0 to 1.

    Raises:
        ModelFileError: the model cannot be built.
        WeightsError: a file cannot be read or does not fit.
    """
    source = str(resolve_model(model))
    checkpoint = source.endswith(".safetensors")
    opened = None if weights is None else open_weights(weights)
    if checkpoint:
        with stated_model(source):
            file = parse_model_text(read_detector_metadata(source)["model"], "the file")
        opened = open_weights(source) if opened is None else opened
    else:
        file = load_model_file(source)
    known = classes if classes is not None or opened is None else opened[1].classes
    count = len(known) if known is not None else None if opened is None else opened[1].num_classes
    plans: list[Plan] = []

    def plan(built: DetectionModel, path: Path | tuple[WeightsFile, Identity], **choices: Any) -> None:
        plans.append(plan_load(built, path, allow_partial=allow_partial, **choices))
        plans[-1].report.check(allow_partial=allow_partial, whole=whole)

    # Planned on the meta device first: a tiny checkpoint may state a model of any size.
    ignore = checkpoint or backbone_weights is not None
    tensors = count_tensors(Path(source)) if checkpoint else None
    with stated_model(source) if checkpoint else nullcontext():
        skeleton = build_skeleton(
            file, num_classes=count, drop_path=drop_path, tensors=tensors,
            load_backbone=skip_backbone if ignore else partial(plan, part="backbone"),
        )  # fmt: skip
    if opened is not None:
        part: Part = "head" if (backbone_weights is not None or plans) else "detector"
        new = None if known is None or (opened[1].classes is None and classes is None) else known
        plan(skeleton, opened, part=part, classes_new=new)
    if backbone_weights is not None:
        plan(skeleton, open_weights(backbone_weights), part="backbone")
    if fills(skeleton, plans):
        detector = with_memory(skeleton)
    else:
        detector = build_model(file, num_classes=count, drop_path=drop_path, load_backbone=skip_backbone)
    names = list(known) if known is not None else [f"class_{index}" for index in range(detector.num_classes)]
    reports = [each.apply(detector) for each in plans]
    started = Started(detector, names, detector.image_size, known is not None, reports)
    if opened is not None and opened[1].kind == "nextdetr-detector":
        started.extra = extra_metadata(opened[0].metadata)
        if backbone_weights is not None or opened[0].metadata.get("model") != detector.text:
            for name in OF_THESE_WEIGHTS:  # timings and scores of another model
                started.extra.pop(name, None)
        if "image_size" in opened[0].metadata:
            started.image_size = image_size_of(opened[0].metadata, detector, str(opened[0].path))
    return started


def open_detector(
    model: str | Path,
    *,
    weights: str | Path | None = None,
    backbone_weights: str | Path | None = None,
    allow_partial: bool = False,
) -> tuple[OpenedModel, list[LoadReport]]:
    """Open a detector for use.

    Args:
        model: see ``resolve_model``.
        weights: see ``start_model``.
        backbone_weights: see ``start_model``.
        allow_partial: accept weights that leave part of the model at its initial values; its results mean nothing.

    Returns:
        The detector in evaluation mode, and the reports of the loads; none for a checkpoint, which loads completely or is
        refused.

    Raises:
        ModelFileError: the model cannot be built.
        WeightsError: a file cannot be read or does not fit.
    """
    model = resolve_model(model)
    if str(model).endswith(".safetensors") and weights is None and backbone_weights is None:
        return open_model(model), []
    started = start_model(
        model, weights=weights, backbone_weights=backbone_weights, allow_partial=allow_partial, whole=True
    )  # fmt: skip
    metadata = dict(started.extra)
    if started.reports:
        origin = started.origin
        metadata |= {"weights_licence": origin.licence, "source_weights": origin.file, **origin.taught}
    if weights is not None and started.named:  # its class heads are trained
        metadata |= {
            "classes": json.dumps(started.classes, ensure_ascii=False), "image_size": str(started.image_size),
            "metrics": "{}",
        }  # fmt: skip
    given: Given = "detector" if weights is not None else "backbone" if backbone_weights is not None else ""
    if given == "detector" and not started.named and all(_has_heads(report) for report in started.reports):
        given = "unnamed detector"
    opened = OpenedModel(started.model.eval(), started.classes, started.image_size, str(model), metadata, given)
    return opened, started.reports


def _has_heads(report: LoadReport) -> bool:
    """Whether a file left nothing of the model random, nor class heads that learned no class."""
    return report.complete and not report.identity.without_labels


def resolve_model(model: str | Path) -> str | Path:
    """Return the shipped name, model YAML or checkpoint for the user's argument.

    Args:
        model: one of these; or the folder of a run (its best weights), or one written by ``save_pretrained``.

    Raises:
        WeightsError: it is another file of a training or with weights; the message says what to give instead.
    """
    path = Path(model)
    if str(model) in available_models():
        return model
    if not path.exists():
        entry = find_published(path.as_posix())
        if entry is not None:
            option = "--weights" if entry.part == "detector" else "--backbone-weights"
            name = entry.model.replace("convnextv2-", "nextdetr-")
            raise WeightsError(f"{model}: published weights; name {name} as the model and give it {option} {model}.")
        return model
    if not path.is_dir():
        _refuse_weights(path)
        return model
    for name in (*RUN_FILES, "detector.safetensors", "model.safetensors"):
        file = path / name
        if file.is_file():
            if name != "model.safetensors" or "model" in read_metadata(file):
                return file
            raise WeightsError(f"{path}: weights of another program; {_as_weights(path)}")
    if (path / "backbone.safetensors").is_file():
        backbone = path / "backbone.safetensors"
        raise WeightsError(f"{path}: a backbone's pre-training; name a model and give it --backbone-weights {backbone}.")
    if (path / "last.ckpt").is_file():
        command = to_paste(["nextdetr", "train", "--resume", str(path)])
        raise WeightsError(f"{path}: a run without usable weights yet; continue it with {command}.")
    if is_export(path):
        raise WeightsError(f"{path}: {EXPORTED}")
    raise WeightsError(
        f"{path}: a folder with neither best.safetensors (of a run), model.safetensors (of a detector) nor an export "
        "(model.onnx or model.xml)."
    )


def _refuse_weights(path: Path) -> None:
    """Refuse files that hold weights but are not models, and say what to give instead."""
    if is_export(path):
        raise WeightsError(f"{path}: {EXPORTED}")
    if path.name == "last.ckpt":
        found = next((name for name in RUN_FILES if (path.parent / name).is_file()), None)
        instead = f"name {path.parent / found} to use the detector, or" if found is not None else "to go on,"
        raise WeightsError(f"{path}: the state of a run; {instead} train with --resume {path.parent}.")
    if path.suffix in (".pt", ".pth", ".ckpt", ".bin", ".pkl"):
        raise WeightsError(f"{path}: weights without a model; {_as_weights(path)}")
    if path.suffix == ".safetensors":
        metadata = read_metadata(path)
        if metadata.get("kind") == "backbone":
            raise WeightsError(f"{path}: a backbone alone; name a model and give it --backbone-weights {path}.")
        if "model" not in metadata and "format_version" not in metadata:
            raise WeightsError(f"{path}: not a NextDETR detector: its metadata has no model; {_as_weights(path)}")


def _as_weights(path: Path) -> str:
    """Return which model accepts a file's weights, and how.

    Raises:
        WeightsError: none does, since the layout is unknown.
    """
    try:
        file = read_tensors(path)
    except WeightsError:  # loading it reports why
        return f"name a model and give it --weights {path}."
    identity = identify(file)
    option = "--backbone-weights" if identity.is_backbone else "--weights"
    name = "nextdetr-atto or another model" if identity.is_backbone or identity.model is None else identity.model
    return f"name {name} as the model and give it {option} {path}."
