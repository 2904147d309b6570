"""Settings of the two trainings; import them from ``nextdetr.config``, like those of other commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_serializer, field_validator, model_validator

from nextdetr.config_base import (
    Accelerator,
    Bits,
    ClipNorm,
    CommandConfig,
    CropMin,
    DataSets,
    Device,
    Devices,
    Flat,
    Flip,
    ImageFolders,
    LeastConfidence,
    Log,
    Minutes,
    OnBadData,
    Paths,
    Precision,
    Resume,
    Warmup,
    WeightDecay,
)  # fmt: skip

__all__ = ["PretrainConfig", "TrainConfig"]

_LENGTH_AND_PLACE = (
    frozenset({"epochs", "minutes"}), frozenset({"device", "devices"}), frozenset({"device", "accelerator"}),
)  # fmt: skip
_START = (frozenset({"start", "weights"}), frozenset({"start", "backbone_weights"}))


class TrainConfig(CommandConfig):
    """Settings of ``nextdetr train``."""

    alternatives, latency_chooses = (*_LENGTH_AND_PLACE, *_START), False
    #: What the recipe chooses from the data and the machine unless it is given, so that the defaults below are for few.
    chosen: ClassVar[frozenset[str]] = frozenset(
        {
            "augmentation", "auto_turn", "backbone_rate_factor", "batch_size", "cache", "cache_gigabytes", "copy_paste",
            "drop_path", "epochs", "flip_horizontal", "freeze_backbone_epochs", "freeze_norms", "image_size",
            "learning_rate", "model", "mosaic", "optimizer", "split_off", "unlabelled_batch", "unlabelled_from", "workers",
        }
    )  # fmt: skip

    data: DataSets = None
    model: str = Field("nextdetr-atto", description="Name, model YAML or checkpoint to start from.")
    weights: Path | None = Field(None, description="Detector to start from: file, folder or name.")
    backbone_weights: Path | None = Field(None, description="Backbone weights to start from: file, folder or name.")
    start: str | None = Field(
        None,
        description="Published weights to start from: auto (the best for this data and machine), or a name from nextdetr "
        "weights list; none: random ones, as by default, without a hint at what would fit.",
    )
    allow_partial: bool = Field(False, description="Accept weights of which less than half fit, or of another backbone.")
    teacher: Path | None = Field(
        None,
        description="Trained detector, usually a larger one, to learn from: checkpoint, exported file, weights or name.",
    )
    teacher_weight: float = Field(
        1.0, ge=0, description="Weight of the losses for the teacher's classes, boxes and edges; 0: off."
    )
    teacher_maps: float = Field(1.0, ge=0, description="Weight of the loss for the teacher's feature maps; 0: off.")
    teacher_until: float = Field(1.0, gt=0, le=1, description="Share of the run after which the teacher is no longer used.")
    unlabelled: Paths = Field((), description="Folders of images without labels to learn from.")
    unlabelled_from: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of the run after which the unlabelled images join: usually 0.6, and 0 with --teacher.",
    )
    unlabelled_until: float = Field(
        1.0, gt=0, le=1, description="Share of the run after which the unlabelled images are no longer used."
    )
    unlabelled_batch: int | None = Field(
        None, ge=1, description="Unlabelled images in each batch, in place of labelled ones: usually half of them."
    )
    unlabelled_weight: float = Field(1.0, gt=0, description="Weight of the losses for the unlabelled images.")
    epochs: int | None = Field(None, ge=1, description="Passes over the images.")
    minutes: Minutes = None
    image_size: int | None = Field(None, ge=1, description="Square input size, pixels.")
    latency: float | None = Field(
        None,
        gt=0,
        description="Milliseconds that an image may take on this machine's CPU: chooses the input size, and stores faster "
        "and slower settings for predict --latency.",
    )
    latency_of: Path | None = Field(
        None, description="Times of the machine that --latency is about, if not this one: a file of nextdetr benchmark."
    )
    batch_size: int = Field(8, ge=1, description="Images per step and process.")
    accumulate: int = Field(1, ge=1, description="Batches whose gradients are averaged for one step of the optimiser.")
    seed: int = Field(0, ge=0, lt=2**63, description="Random seed of initialisation, order and augmentation.")
    output: Path | None = Field(None, description="Folder of the run (default: runs/MODEL-DATA).")
    resume: Resume = None
    devices: Devices = 1
    accelerator: Accelerator = "auto"
    device: Device = None
    precision: Precision = "32-true"
    bits: Bits = None
    on_bad_data: OnBadData = "warn"
    min_confidence: LeastConfidence = None
    split_off: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of train to set aside as val, if the data set has no val: usually 0.2; --seed decides which.",
    )
    workers: int = Field(1, ge=0, description="Processes that load and augment images; 0: the main process.")
    cache: Literal["auto", "off", "full", "shrunk"] = Field(
        "auto", description="Keep decoded training images in memory: full size, or shrunk to twice --image-size."
    )
    cache_gigabytes: float = Field(
        2.0, ge=0, description="Memory per process for decoded images; used only if all of them fit."
    )
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="AdamW, or Muon for the matrices of hidden layers, with AdamW for the rest."
    )
    learning_rate: float = Field(4e-4, gt=0, description="Peak learning rate at the given batch size.")
    backbone_rate_factor: float | None = Field(
        None,
        gt=0,
        description="Learning rate of the backbone, as a factor: 0.1 from weights trained with labels, else 1.",
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Layer-wise decay: factor of the learning rate from each backbone block to the one before it.",
    )
    freeze_backbone_epochs: int = Field(0, ge=0, description="Epochs at the start that train only the head.")
    freeze_stages: int = Field(0, ge=0, description="Number of backbone stages to freeze, from the first, with the stem.")
    freeze_norms: bool = Field(False, description="Freeze the backbone's BatchNorms, including their statistics.")
    weight_decay: WeightDecay = 1e-4
    clip_norm: ClipNorm = 0.1
    class_loss: Literal["varifocal", "matchability"] = Field(
        "varifocal", description="Classification loss: RT-DETR's varifocal, or DEIM's matchability-aware."
    )
    fine_grained_weight: float = Field(
        0.15, ge=0, description="Weight of the fine-grained localization loss of D-FINE decoders; 0: off."
    )
    distillation_weight: float = Field(
        1.5, ge=0, description="Weight of the decoupled distillation focal loss of D-FINE decoders; 0: off."
    )
    dense_weight: float = Field(1.0, ge=0, description="Weight of the loss of the decoder's dense head, if it has one.")
    warmup: Warmup = 0.05
    flat: Flat = 0.5
    strong_until: float = Field(
        0.85, ge=0, le=1, description="Share of the run after which strong augmentation and varying sizes end."
    )
    multi_scale: bool = Field(
        True,
        description="Vary the input size from 0.75 to 1.25 of --image-size, by steps of 32 (the model's largest stride).",
    )
    augmentation: Literal["mild", "full"] = Field(
        "mild", description="Zoom-out, crops, colours: mild, or full (RT-DETR's)."
    )
    mosaic: float = Field(0.0, ge=0, le=1, description="Share of strongly augmented samples made of four images in a grid.")
    mixup: float = Field(0.0, ge=0, le=1, description="Share of strongly augmented samples blended with another image.")
    copy_paste: float = Field(
        0.0, ge=0, le=1, description="Share of strongly augmented samples into which boxes are pasted."
    )
    balance: bool = Field(False, description="Show images of rare classes more often.")
    flip_horizontal: bool = Field(True, description="Mirror half of the images left to right.")
    flip_vertical: bool = Field(False, description="Also mirror top to bottom (aerial and microscope images).")
    rotate90: bool = Field(False, description="Also rotate by quarter turns (aerial and microscope images).")
    auto_turn: bool = Field(
        False,
        description="Test early in the run whether the detector finds turned objects; if so, turn images from then on.",
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="Stochastic depth rate of the backbone's last block.")
    ema_decay: float = Field(
        0.9999, ge=0, lt=1, description="Maximum decay of the averaged weights (EMA), which are validated."
    )
    report: bool = Field(True, description="Write report.html at the end of the run: scores, errors and images.")
    log: Log = None
    profile: bool = Field(False, description="Measure the parts of a training step; shown after 20 steps and at the end.")
    patience: int | None = Field(None, ge=1, description="Stop after this many validations without a better AP.")
    val_every: int | None = Field(
        None, ge=1, description="Epochs between validations (default: chosen so that they take a tenth of the time)."
    )

    @field_validator("cache", mode="before")
    @classmethod
    def _off_of_a_file(cls, value: Any) -> Any:
        """Take ``cache: off``, which YAML reads as false."""
        return "off" if value is False else value

    @field_serializer("data")
    def _one_as_text(self, data: tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        return data[0] if data is not None and len(data) == 1 else data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.start not in (None, "none") and (self.weights is not None or self.backbone_weights is not None):
            raise ValueError("--start chooses the weights; leave --weights and --backbone-weights out, or --start")
        fields = type(self).model_fields
        about = [name for name in fields if name.startswith("unlabelled_") and getattr(self, name) != fields[name].default]
        if about and not self.unlabelled and self.resume is None:
            option = "--" + about[0].replace("_", "-")
            raise ValueError(f"{option} is about unlabelled images: give their folders with --unlabelled too")
        about = [name for name in fields if name.startswith("teacher_") and getattr(self, name) != fields[name].default]
        if about and self.teacher is None and self.resume is None:
            raise ValueError(f"--{about[0].replace('_', '-')} is about a teacher: name it with --teacher too")
        if self.unlabelled_from is not None and self.unlabelled_from >= self.unlabelled_until:
            raise ValueError("--unlabelled-from must be less than --unlabelled-until, or no image is ever learnt from")
        if self.teacher is not None and not self.teaches and not self.unlabelled:
            raise ValueError("--teacher-weight and --teacher-maps are both 0, so that --teacher teaches nothing")
        return self

    @property
    def teaches(self) -> bool:
        """Whether the teacher is also used on labelled images, not only for the boxes of unlabelled ones."""
        return self.teacher is not None and (self.teacher_weight > 0 or self.teacher_maps > 0)


class PretrainConfig(CommandConfig):
    """Settings of ``nextdetr pretrain``."""

    alternatives = (*_LENGTH_AND_PLACE, frozenset({"head_epochs", "minutes"}))

    images: ImageFolders = ()
    model: str = Field(
        "convnextv2-atto",
        description="Backbone, such as convnextv2-atto (zepto, atto, femto, pico, nano, …); with --detector a detector.",
    )
    weights: Path | None = Field(None, description="Backbone weights to continue from: file, folder or name.")
    epochs: int | None = Field(
        None,
        ge=1,
        description="Passes over the images (default: 800, or as many as 5,000 steps take, unless --minutes is given).",
    )
    minutes: Minutes = None
    detector: bool = Field(False, description="Also prepare the head: --model is a detector, such as nextdetr-atto.")
    head_share: float = Field(0.6, gt=0, lt=1, description="Share of --minutes for the head, with --detector.")
    head_epochs: int | None = Field(
        None,
        ge=1,
        description="Passes over the images for the head (default: as many as 3,000 steps take, at most --epochs).",
    )
    head_image_size: int | None = Field(
        None, ge=1, description="Side of the square input for the head, pixels (default: --image-size)."
    )
    head_batch_size: int | None = Field(None, ge=1, description="Images per step and process for the head (default: 8).")
    proposals: Literal["mixed", "pasted", "found"] = Field(
        "mixed",
        description="What the head learns to find: segments pasted onto other images, segments found in images, or both.",
    )
    mask_ratio: float = Field(0.6, gt=0, lt=1, description="Share of the patches that is masked.")
    patch_size: int = Field(32, ge=32, description="Side of a masked patch, pixels; a multiple of 32.")
    image_size: int = Field(224, ge=1, description="Side of the square crops, pixels; a multiple of --patch-size.")
    batch_size: int | None = Field(
        None, ge=1, description="Images per step and process (default: a 25th of the images, at least 8)."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Random seed of initialisation, order, crops and masks.")
    output: Path | None = Field(None, description="Folder of the run (default: runs/pretrain-MODEL).")
    resume: Resume = None
    devices: Devices = 1
    accelerator: Accelerator = "auto"
    device: Device = None
    precision: Precision = "32-true"
    bits: Bits = None
    workers: int = Field(1, ge=0, description="Processes that load and crop images; 0: the main process.")
    cache_gigabytes: float = Field(2.0, ge=0, description="Memory for decoded images; used only if all of them fit.")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Peak learning rate of AdamW (default: 2.4e-3 times the square root of the whole batch / 4096, and at "
        "least 2.5e-4).",
    )
    weight_decay: WeightDecay = 0.05
    clip_norm: ClipNorm = 5.0
    warmup: Warmup = 0.05
    crop_min: CropMin = 0.2
    flip: Flip = 0.5
    grn: bool = Field(True, description="Use GRN in the backbone; --no-grn is for comparisons.")
    decoder_depth: int = Field(1, ge=1, description="ConvNeXt V2 blocks of the decoder.")
    decoder_width: int | None = Field(
        None, ge=1, description="Channels of the decoder (default: half of the last stage's, at most 512)."
    )
    normalise_target: bool = Field(True, description="Normalise each target patch to mean 0 and variance 1.")
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="Maximum decay of the averaged weights (EMA) to keep; 0 keeps the last weights."
    )
    log: Log = None
    picture_every: int | None = Field(
        None, ge=1, description="Epochs between pictures of reconstructions (default: a tenth of the run)."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.head_epochs is not None and self.minutes is not None:
            raise ValueError("--head-epochs and --minutes both set the length of the run; give one of them")
        if self.detector and not self.grn:
            raise ValueError("--no-grn is for comparing backbones; a detector's have GRN: leave it out, or --detector")
        of_head = [name for name in type(self).model_fields if name.startswith("head_") or name == "proposals"]
        given = [name for name in of_head if getattr(self, name) != type(self).model_fields[name].default]
        if given and not self.detector and self.resume is None:
            raise ValueError(f"--{given[0].replace('_', '-')} is for the head: give --detector too")
        if self.patch_size % 32:
            raise ValueError(
                f"--patch-size must be a multiple of 32, the stride at which the mask is drawn (given: {self.patch_size})"
            )
        return self

    @property
    def backbone_minutes(self) -> float | None:
        """Minutes of the backbone's part of the run."""
        return None if self.minutes is None else self.minutes * (1 - self.head_share if self.detector else 1)

    @property
    def head_minutes(self) -> float | None:
        """Minutes of the head's part of the run."""
        return None if self.minutes is None else self.minutes * self.head_share
