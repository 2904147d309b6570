"""Setup of pre-training before its first step, and default settings that depend on the number of images.

The published recipe (arXiv 2301.00808, appendix A: 800 or 1600 epochs of 1.28 million images, batch 4096, rate 2.4e-3) does
not transfer to 200 images as it is. The defaults here:

- batch: a 25th of the images, rounded to a power of two, from 8 to 64 on a CPU and to 256 elsewhere, so that an epoch has
  enough steps; on 205 images, a batch of 8 learns more in the same time than one of 32 (docs/experiments.md);
- rate: the published one times the square root of (total batch / 4096), Adam's rule (arXiv 2205.10287), but at least
  2.5e-4, which was better there than the higher rates tried, at batch 8 and 32; the published linear rule would give a
  batch of 32 a rate of 1.9e-5, too low for a short run;
- length: 800 epochs, but at least 5,000 steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from nextdetr.config import PretrainConfig
from nextdetr.data.records import DetectionData
from nextdetr.engine.optim import undecayed
from nextdetr.engine.resume import Contract, merge_resumed, tell_differences, write_config
from nextdetr.engine.run_folder import open_directory
from nextdetr.engine.state import Cursor, read_state
from nextdetr.engine.unlabelled_run import BACKBONES, backbone_size, find_images, stored_origin, tell_images
from nextdetr.errors import ConfigError, DataError, WeightsError
from nextdetr.models.convnextv2 import SIZES, ConvNeXtV2, convnextv2
from nextdetr.models.fcmae import FCMAE, check_image_size
from nextdetr.models.graph import build_skeleton
from nextdetr.models.modelfile import available_models, load_model_file
from nextdetr.weights.gate import fill
from nextdetr.weights.layouts.table import backbone_tensors
from nextdetr.weights.licences import Origin
from nextdetr.weights.load import open_weights

__all__ = [
    "EPOCHS",
    "Pretraining",
    "backbone_of",
    "build_pretraining_optimizer",
    "detector_of",
    "head_size",
    "images_of",
    "prepare_pretraining",
    "resolve_pretrain",
    "run_folder",
    "sufficient_side",
]

EPOCHS, LEAST_STEPS = 800, 5000
SMALLEST_BATCH, LARGEST_BATCH_CPU, LARGEST_BATCH = 8, 64, 256
PEAK_RATE, PUBLISHED_BATCH, LEAST_RATE = 2.4e-3, 4096, 2.5e-4


@dataclass(slots=True)
class Pretraining:
    """Everything that pre-training works on.

    Attributes:
        config: the settings, with batch size and rate resolved.
        directory: the run's folder.
        data: the images.
        model: encoder and decoder with their initial weights.
        cursor: starting position.
        state: state to resume from, empty for a new run.
        contract: conditions that a resumed run must meet.
        started_from: origin of the initial weights.
    """

    config: PretrainConfig
    directory: Path
    data: DetectionData
    model: FCMAE
    cursor: Cursor
    state: dict[str, Any]
    contract: Contract
    started_from: Origin


def resolve_pretrain(config: PretrainConfig) -> PretrainConfig:
    """Merge the settings of a resumed run with those given now.

    Raises:
        ConfigError: unknown backbone, ``resume`` with a setting that would change the run, or no such run.
        DataError: no images are given.
    """
    if config.resume is not None:
        return merge_resumed(config, config.resume)
    check_image_size(config.image_size, None, config.patch_size)
    if not config.images:
        raise DataError("there is nothing to pre-train on: give a folder of images.")
    backbone_of(config)
    return config


def detector_of(config: PretrainConfig) -> str:
    """Return the detector of a run with ``detector``: ``model``, or the shipped one with this backbone.

    Raises:
        ConfigError: none is shipped.
    """
    size = backbone_size(config.model)
    if size is None:
        return config.model
    name = f"nextdetr-{size}"
    if name not in available_models():
        raise ConfigError(f"--model {config.model}: no detector is shipped with this backbone; name a detector.")
    return name


def backbone_of(config: PretrainConfig) -> str:
    """Return the size of the backbone that a run pre-trains: ``atto`` and so on.

    Raises:
        ConfigError: it is not a ConvNeXt V2, or the model is a detector, but ``detector`` is not set.
        ModelFileError: there is no such detector.
    """
    if not config.detector:
        size = backbone_size(config.model)
        if size is None:
            raise ConfigError(
                f"--model {config.model}: give a backbone, one of {BACKBONES}, or a detector with --detector."
            )
        return size
    name = detector_of(config)
    size = load_model_file(name).rows[0].name.removeprefix("convnextv2_")
    if size not in SIZES:
        raise ConfigError(f"--model {name}: its backbone is not a ConvNeXt V2, which pretrain requires.")
    return size


def head_size(config: PretrainConfig) -> int:
    """Return the side of the head's square input in pixels.

    Raises:
        ConfigError: the detector does not accept this size.
        ModelFileError: the detector cannot be built.
    """
    size = config.head_image_size or config.image_size
    build_skeleton(detector_of(config)).check_size(size)
    return size


def images_of(config: PretrainConfig) -> DetectionData:
    """List the images of a run; see :func:`nextdetr.engine.unlabelled_run.find_images`."""
    return find_images(config.images, config.bits or 16)


def run_folder(config: PretrainConfig, held: ExitStack) -> Path:
    """Create the run's folder, or return the resumed one's; see :func:`nextdetr.engine.run_folder.open_directory`."""
    return open_directory(config.output, Path("runs") / f"pretrain-{Path(config.model).stem}", config.resume, held)


def prepare_pretraining(
    config: PretrainConfig, directory: Path, tell: Callable[[str], None], *, cpu: bool, world: int, first: bool = True
) -> Pretraining:
    """Load images, model and initial weights, and fill in the settings that are open.

    Args:
        config: result of ``resolve_pretrain``.
        directory: the run's folder.
        tell: prints a line for the user.
        cpu: whether the run uses a CPU.
        world: number of processes.
        first: whether this process writes files.

    Raises:
        DataError: no image can be used.
        WeightsError: initial weights or a resumed state cannot be read.
    """
    cursor, state = (Cursor(), {}) if config.resume is None else read_state(directory / "last.ckpt")
    data = images_of(config)
    tell_images(data, "to pre-train on", tell)
    if config.detector and config.resume is None and not _normalises(config):
        tell(
            f"note: the backbone is pre-trained on pixels normalised as ImageNet's, and {detector_of(config)} does not say "
            "normalize: imagenet in its model file, so that it will see others in the detector."
        )
    encoder = convnextv2(backbone_of(config), grn=config.grn)
    started_from = stored_origin(state, directory / "last.ckpt")
    if started_from is None:  # a resumed run no longer needs the weights
        started_from = Origin() if config.weights is None else _load_encoder(encoder, config.weights)
    model = FCMAE(
        encoder, mask_ratio=config.mask_ratio, patch_size=config.patch_size, decoder_depth=config.decoder_depth,
        decoder_width=config.decoder_width, normalise_target=config.normalise_target,
    )  # fmt: skip
    if config.resume is None:
        config = _filled(config, len(data.records), cpu=cpu, world=world)
    assert config.batch_size is not None
    contract = Contract([])
    if first:
        write_config(config, directory)
        contract = Contract.of(data, together=config.batch_size * world)
        tell_differences(contract, state, directory / "last.ckpt", tell)
    return Pretraining(config, directory, data, model, cursor, state, contract, started_from)


def _normalises(config: PretrainConfig) -> bool:
    """Whether the detector of a run normalises pixels as the pre-training of its backbone does."""
    return load_model_file(detector_of(config)).mapping.get("normalize") == "imagenet"


def _filled(config: PretrainConfig, images: int, *, cpu: bool, world: int) -> PretrainConfig:
    batch = config.batch_size or default_batch(images, cpu=cpu, world=world)
    rate = config.learning_rate or max(LEAST_RATE, PEAK_RATE * math.sqrt(batch * world / PUBLISHED_BATCH))
    epochs = config.epochs
    if epochs is None and config.minutes is None:
        epochs = max(EPOCHS, math.ceil(LEAST_STEPS / math.ceil(images / (batch * world))))
    return config.model_copy(update={"batch_size": batch, "learning_rate": rate, "epochs": epochs})


def default_batch(images: int, *, cpu: bool, world: int = 1) -> int:
    """Return the batch size per process for a number of images."""
    wanted = max(1 << round(math.log2(max(1.0, images / 25))), SMALLEST_BATCH)
    return min(max(1, wanted // world), LARGEST_BATCH_CPU if cpu else LARGEST_BATCH)


def sufficient_side(config: PretrainConfig) -> int:
    """Return the shorter side, in pixels, at which the smallest and narrowest crop still has the input's size."""
    return math.ceil(config.image_size / math.sqrt(config.crop_min * 3 / 4))


def build_pretraining_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float, *, fused: bool = True
) -> torch.optim.Optimizer:
    """AdamW with the betas of masked autoencoders (0.9, 0.95); norms, GRN, biases and the mask token have no decay.

    ``fused`` as for :func:`nextdetr.engine.optim.build_optimizer`.
    """
    spared = undecayed(model)
    groups: list[dict[str, Any]] = []
    for exempt in (False, True):
        parameters = [p for p in model.parameters() if (id(p) in spared) is exempt]
        decay = 0.0 if exempt else weight_decay
        groups.append({"params": parameters, "lr": learning_rate, "peak_rate": learning_rate, "weight_decay": decay})
    return AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=fused)


def _load_encoder(encoder: ConvNeXtV2, path: Path) -> Origin:
    """Load all tensors of the encoder; return the origin of the weights."""
    file, identity = open_weights(path)
    if not identity.is_backbone:
        raise WeightsError(f"{path}: a {identity.kind} file; pretrain --weights takes a backbone file.")
    state = backbone_tensors(file, identity)
    own = encoder.state_dict()
    if any(".grn." in name and name not in own and bool(tensor.any()) for name, tensor in state.items()):
        raise WeightsError(f"{path}: these weights have GRN, without which they are of no use; leave --no-grn out.")
    unfit = [name for name, tensor in own.items() if name not in state or state[name].shape != tensor.shape]
    if unfit:
        raise WeightsError(
            f"{path}: weights of size {identity.size} do not fit --model: {len(unfit)} tensors are missing or of another "
            f"shape, such as {unfit[0]}."
        )
    fill(own, {name: state[name] for name in own}, str(path))
    return Origin(identity.licence, str(file.path), identity.taught)
