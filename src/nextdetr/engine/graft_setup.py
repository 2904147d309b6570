"""Setup of a graft, before its first step: the old detector, the new one, images and settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from nextdetr.config import GraftConfig
from nextdetr.data.dataset import SampleKey
from nextdetr.data.records import DetectionData
from nextdetr.data.seen import TRAINED_ON, trained_on, trained_on_metadata
from nextdetr.data.unlabelled import UnlabelledDataset
from nextdetr.engine.fine_tune import seen_by_weights
from nextdetr.engine.optim import undecayed
from nextdetr.engine.resume import Contract, merge_resumed, stored_contract, tell_differences, write_config
from nextdetr.engine.run_folder import open_directory
from nextdetr.engine.state import Cursor, read_state
from nextdetr.engine.teacher import Teacher, open_trained
from nextdetr.engine.unlabelled_run import BACKBONES, backbone_size, find_images, stored_origin, tell_images
from nextdetr.errors import ConfigError, DataError
from nextdetr.inference.opened import stored_bits
from nextdetr.models.detection import DetectionModel
from nextdetr.models.fuse import fuse
from nextdetr.models.graft import Graft, build_graft, match_statistics, plan_graft
from nextdetr.weights.checkpoint import OF_THESE_WEIGHTS, OpenedModel, extra_metadata
from nextdetr.weights.licences import Origin, joined_licences, joined_names, joined_teachers
from nextdetr.weights.load import load_into
from nextdetr.weights.published import start_for
from nextdetr.weights.remote import plain_name
from nextdetr.weights.tensorfile import read_metadata

__all__ = ["Grafting", "build_graft_optimizer", "graft_folder", "prepare_graft", "resolve_graft"]

SHOWN = 20_000  # images shown if the user gives no length; not measured
LOOKED_AT = 8  # images that the mean and variance of the old detector's maps are taken from


@dataclass(slots=True)
class Grafting:
    """Everything that a graft works on.

    Attributes:
        config: the settings, with image size and length filled in.
        directory: the run's folder.
        data: the images.
        graft: the new model file, and which of its parts correspond to the old one's.
        model: the grafted detector.
        teacher: the old detector, folded.
        cursor: starting position.
        state: state to resume from, empty for a new run.
        contract: conditions that a resumed run must meet.
        started_from: origin of the weights of both sources.
        seen: metadata about the images that both sources were trained on; empty if that is not known.
    """

    config: GraftConfig
    directory: Path
    data: DetectionData
    graft: Graft
    model: DetectionModel
    teacher: Teacher
    cursor: Cursor
    state: dict[str, Any]
    contract: Contract
    started_from: Origin
    seen: dict[str, str]

    @property
    def classes(self) -> list[str]:
        """Classes of the old detector, which the new one keeps."""
        return self.teacher.opened.classes

    @property
    def extra(self) -> dict[str, str]:
        """Other metadata of the old detector that holds for the new one: ids of the data set, bits of its images."""
        known = extra_metadata(self.teacher.opened.metadata)
        kept = {key: value for key, value in known.items() if key not in (*OF_THESE_WEIGHTS, TRAINED_ON)}
        return {**kept, **self.seen, **self.started_from.taught}


def resolve_graft(config: GraftConfig) -> GraftConfig:
    """Merge the settings of a resumed run with those given now.

    Raises:
        ConfigError: a detector, backbone or size is missing or unknown; ``resume`` comes with a setting that would change
            the run; or there is no such run.
        DataError: no images are given.
    """
    if config.resume is not None:
        return merge_resumed(config, config.resume)
    if config.detector is None:
        raise ConfigError("a graft needs a detector: give a checkpoint or a name.")
    if config.backbone is None:
        raise ConfigError("a graft needs a backbone: give --backbone convnextv2-atto=WEIGHTS, or another size.")
    name, _, weights = config.backbone.partition("=")
    if backbone_size(name) is None or (weights == "" and "=" in config.backbone):
        raise ConfigError(f"--backbone {config.backbone}: give one of {BACKBONES}, with =WEIGHTS where it has weights.")
    if not config.images:
        raise DataError("a graft is aligned on images: give --images with a folder; no labels are needed.")
    return config


def graft_folder(config: GraftConfig, held: ExitStack) -> Path:
    """Create the run's folder, or return the resumed one's; see :func:`nextdetr.engine.run_folder.open_directory`."""
    name = f"graft-{str(config.backbone).partition('=')[0]}"
    return open_directory(config.output, Path("runs") / name, config.resume, held)


def prepare_graft(config: GraftConfig, directory: Path, tell: Callable[[str], None]) -> Grafting:
    """Open the old detector, build the new one, and fill in the settings that are open.

    Args:
        config: result of ``resolve_graft``.
        directory: the run's folder.
        tell: prints a line for the user.

    Raises:
        NextDETRError: a detector or weights cannot be read, do not fit, or differ from those of a resumed run; no image can
            be used; the model does not accept the image size.
    """
    assert config.detector is not None
    assert config.backbone is not None
    cursor, state = (Cursor(), {}) if config.resume is None else read_state(directory / "last.ckpt")
    opened, digest = _open(config, state, directory)
    name, _, weights = config.backbone.partition("=")
    size = backbone_size(name)
    assert size is not None
    graft = plan_graft(opened.model, size, plain_name(config.detector))
    torch.manual_seed(config.seed)
    model = build_graft(graft, opened.model)
    model.check_size(config.image_size or opened.image_size)
    started_from = stored_origin(state, directory / "last.ckpt") or _load(model, opened, weights, name, tell)
    data = find_images(config.images, stored_bits(opened.metadata))
    tell_images(data, "to learn from", tell)
    if config.resume is None:
        epochs = config.epochs or (None if config.minutes else max(1, math.ceil(SHOWN / len(data.records))))
        config = config.model_copy(update={"image_size": config.image_size or opened.image_size, "epochs": epochs})
    write_config(config, directory)
    contract = Contract.of(data, together=config.batch_size, teacher=digest)
    tell_differences(contract, state, directory / "last.ckpt", tell)
    teacher = _teacher(opened, graft, opened.source, digest)
    if not state:
        stride, side = opened.model.stride, config.image_size or opened.image_size
        images = _some_images(data, max(1, round(side / stride)) * stride)
        match_statistics(graft, opened.model.eval(), model, images)
    seen = _seen(config, opened, weights, directory / "last.safetensors")
    return Grafting(config, directory, data, graft, model, teacher, cursor, state, contract, started_from, seen)


def _seen(config: GraftConfig, opened: OpenedModel, weights: str, written: Path) -> dict[str, str]:
    """Return the metadata about the images that both sources were trained on, or that the file of a resumed run has."""
    if config.resume is not None and written.is_file():
        known = trained_on(read_metadata(written))
    else:
        detector = opened.source if opened.source.endswith(".safetensors") else str(config.detector)
        known = seen_by_weights(Path(detector).expanduser(), weights or None)
    return {} if known is None else trained_on_metadata([], known)


def _some_images(data: DetectionData, size: int) -> Tensor:
    """Return a few whole images from all over the data, [B, 3, S, S] float32 RGB, 0 to 1."""
    dataset, count = UnlabelledDataset(data), len(data.records)
    places = sorted({count * number // LOOKED_AT for number in range(LOOKED_AT)})
    return torch.stack([dataset[SampleKey(0, place, size, strong=False)][0] for place in places])


def _open(config: GraftConfig, state: dict[str, Any], directory: Path) -> tuple[OpenedModel, str]:
    """Open the old detector; in a resumed run it must be the same one."""
    opened, digest = open_trained(str(config.detector), option="graft")
    if not isinstance(opened, OpenedModel):
        raise ConfigError(
            f"{config.detector}: an exported file cannot be grafted; name the checkpoint that it was made from."
        )
    if state and stored_contract(state, directory / "last.ckpt").teacher != digest:
        raise ConfigError(
            f"{config.detector}: not the detector of the run {directory}: its content differs; give the same one, or "
            "start a new run."
        )
    return opened, digest


def _load(model: DetectionModel, opened: OpenedModel, weights: str, name: str, tell: Callable[[str], None]) -> Origin:
    """Load the backbone's weights; return the licences and names of both sources."""
    metadata, taught = opened.metadata, joined_teachers(opened.metadata)
    licences = [metadata.get("weights_licence", "none")]
    sources = [metadata.get("source_weights", "none") if not opened.source.endswith(".safetensors") else opened.source]
    if weights:
        report = load_into(model, weights, part="backbone")
        tell(report.text())
        licences.append(report.identity.licence)
        sources.append(report.source)
        taught = joined_teachers(taught, report.identity.taught)
    else:
        entry = start_for(name, backbone_size(name))
        hint = "" if entry is None else f" Published weights: --backbone {name}={entry.name} (licence {entry.licence})."
        tell(f"The backbone starts from random weights: --backbone gives none.{hint}")
    return Origin(joined_licences(licences), joined_names(sources), taught)


def _teacher(opened: OpenedModel, graft: Graft, source: str, digest: str) -> Teacher:
    """Fold the old detector, and record the maps that have a counterpart."""
    folded = OpenedModel(fuse(opened.model), opened.classes, opened.image_size, opened.source, opened.metadata)
    teacher = Teacher(folded, source, digest, maps={key: old for key, (old, _) in enumerate(graft.pairs)})
    teacher.for_classes(opened.classes)
    return teacher


def build_graft_optimizer(
    model: DetectionModel, fresh: Sequence[nn.Module], config: GraftConfig, *, fused: bool = True
) -> torch.optim.Optimizer:
    """AdamW: the backbone and the new layers at the full rate, the old head at a fraction of it or frozen.

    Args:
        model: the grafted detector; parameters of a frozen head no longer get gradients.
        fresh: the backbone and the new layers.
        config: the settings.
        fused: as for :func:`nextdetr.engine.optim.build_optimizer`.
    """
    new = {id(parameter) for module in fresh for parameter in module.parameters()}
    spared = undecayed(model)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if id(parameter) not in new and config.head_rate_factor == 0:
            parameter.requires_grad_(False)
        else:
            groups.setdefault((id(parameter) in new, id(parameter) in spared), []).append(parameter)
    result = []
    for (is_new, no_decay), parameters in groups.items():
        rate = config.learning_rate * (1.0 if is_new else config.head_rate_factor)
        decay = 0.0 if no_decay else config.weight_decay
        result.append({"params": parameters, "lr": rate, "peak_rate": rate, "weight_decay": decay, "backbone": False})
    return AdamW(result, lr=config.learning_rate, betas=(0.9, 0.999), fused=fused)
