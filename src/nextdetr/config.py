"""One typed configuration per command; the command line, the YAML files and the Python keywords all derive from it.

Defaults stand here and nowhere else. Unknown keys are refused with the closest valid name.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, PositiveInt, ValidationError, field_validator, model_validator

from nextdetr.config_base import CommandConfig
from nextdetr.errors import ConfigError

__all__ = [
    "BenchmarkConfig",
    "CommandConfig",
    "EmbedConfig",
    "ExportConfig",
    "PredictConfig",
    "PretrainConfig",
    "ProbeConfig",
    "QuickstartConfig",
    "TrainConfig",
    "ValConfig",
    "build_config",
    "explain",
]

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


_LENGTH_AND_PLACE = (frozenset({"epochs", "minutes"}), frozenset({"device", "devices"}))


class TrainConfig(CommandConfig):
    """Settings of ``nextdetr train``."""

    alternatives = _LENGTH_AND_PLACE

    data: str | None = Field(None, description="Data set: a VOC or COCO folder, a YOLO data.yaml, or a dataset YAML.")
    model: str = Field("nextdetr-atto", description="A shipped name, a model YAML, or a checkpoint to go on from.")
    weights: Path | None = Field(None, description="Detector weights to start from: ours, RT-DETR's, or transformers'.")
    backbone_weights: Path | None = Field(None, description="File whose weights the backbone starts from.")
    allow_partial: bool = Field(False, description="Accept weights of which under half fit, or of another backbone.")
    epochs: int | None = Field(None, ge=1, description="Passes over the training images (default: the recipe's).")
    minutes: float | None = Field(None, gt=0, description="Wall-clock budget that the whole schedule fits itself to.")
    image_size: int | None = Field(None, ge=1, description="Side of the square input, pixels (default: the recipe's).")
    batch_size: int = Field(8, ge=1, description="Images a step and process.")
    accumulate: int = Field(1, ge=1, description="Steps whose gradients are summed before the optimiser moves.")
    seed: int = Field(0, ge=0, description="Seed of initialisation, order and augmentation.")
    output: Path | None = Field(None, description="Folder of the run (default: runs/<model>-<data>).")
    resume: Path | None = Field(None, description="Folder of a run to go on with, exactly where it stopped.")
    devices: int = Field(1, ge=1, description="Processes, one device each.")
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Kind of device.")
    device: str | None = Field(None, description="Where one process runs: cpu, cuda:1, … (default: by --accelerator).")
    precision: Precision = Field("32-true", description="Arithmetic of the model; losses are always 32-bit.")
    bits: int | None = Field(None, ge=8, le=16, description="Significant bits of 16-bit grey pictures (default: 16).")
    on_bad_data: Literal["warn", "error"] = Field("warn", description="Drop unusable boxes and images, or refuse to start.")
    workers: int = Field(1, ge=0, description="Processes that load and augment images; 0 loads in the main process.")
    cache: Literal["auto", "off", "full", "shrunk"] = Field(
        "auto", description="Keep decoded training images: as they are, or shrunk to twice --image-size."
    )
    cache_gigabytes: float = Field(2.0, ge=0, description="Memory for them, a process; used if all of them fit.")
    learning_rate: float = Field(4e-4, gt=0, description="Peak rate of AdamW at the given batch size.")
    backbone_rate_factor: float | None = Field(
        None, gt=0, description="Backbone's rate as a factor (default: 0.1 with weights; 1 without, and after pretrain)."
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Factor of the rate from each block of the backbone to the one before it."
    )
    freeze_backbone_epochs: int = Field(0, ge=0, description="Epochs at the start in which only the head is trained.")
    weight_decay: float = Field(1e-4, ge=0, description="Decay of matrices and kernels; norms, GRN and biases have none.")
    clip_norm: float = Field(0.1, ge=0, description="Largest norm of the gradient; 0 switches clipping off.")
    class_loss: Literal["varifocal", "matchability"] = Field(
        "varifocal", description="Loss of the classes: RT-DETR's varifocal, or DEIM's matchability-aware loss."
    )
    fine_grained_weight: float = Field(0.15, ge=0, description="Weight of the edges' FGL loss (DFINEDecoder); 0: none.")
    distillation_weight: float = Field(1.5, ge=0, description="Weight of the layers' DDF loss (DFINEDecoder); 0: none.")
    dense_weight: float = Field(1.0, ge=0, description="Weight of the losses of a decoder's dense head, if it has one.")
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of the run in which the rate rises, at most 2,000 steps.")
    flat: float = Field(0.5, ge=0, le=1, description="Share of the run after which the rate falls as a cosine.")
    strong_until: float = Field(0.85, ge=0, le=1, description="Share of the run with strong augmentation and varying size.")
    multi_scale: bool = Field(
        True,
        description="Vary the input size from 0.75 to 1.25 of --image-size, by steps of 32 (the model's largest stride).",
    )
    augmentation: Literal["mild", "full"] = Field("mild", description="Zoom-out, crops, colours: mild, or RT-DETR's own.")
    mosaic: float = Field(0.0, ge=0, le=1, description="Share of the strong samples that show four pictures in a grid.")
    mixup: float = Field(0.0, ge=0, le=1, description="Share of the strong samples that are blended with another picture.")
    copy_paste: float = Field(0.0, ge=0, le=1, description="Share of the strong samples into which boxes are pasted.")
    balance: bool = Field(False, description="Show images of rare classes more often.")
    flip_horizontal: bool = Field(True, description="Mirror half of the pictures left to right.")
    flip_vertical: bool = Field(False, description="Also mirror top to bottom (aerial and microscope pictures).")
    rotate90: bool = Field(False, description="Also turn by quarter turns (aerial and microscope pictures).")
    drop_path: float = Field(0.0, ge=0, lt=1, description="Stochastic depth of the backbone's last block.")
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="Largest decay of the averaged weights that are validated.")
    profile: bool = Field(False, description="Measure the parts of a step; shown after 20 steps and at the end.")
    patience: int | None = Field(None, ge=1, description="Stop after so many validations without a better AP.")
    val_every: int | None = Field(
        None, ge=1, description="Epochs from one validation to the next (default: a tenth of the time)."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.epochs is not None and self.minutes is not None:
            raise ValueError("--epochs and --minutes both set the length of the run; give one of them")
        return self


class PretrainConfig(CommandConfig):
    """Settings of ``nextdetr pretrain``."""

    alternatives = _LENGTH_AND_PLACE

    images: tuple[str, ...] = Field((), description="Folders of images, with their subfolders, or data sets.")
    model: str = Field("convnextv2-atto", description="Backbone: convnextv2- and atto, femto, pico, nano, tiny, base, …")
    weights: Path | None = Field(None, description="Backbone weights to go on from, of any known layout.")
    epochs: int | None = Field(
        None, ge=1, description="Passes over the images (800, or what makes 5,000 steps, unless --minutes is given)."
    )
    minutes: float | None = Field(None, gt=0, description="Wall-clock budget that the whole schedule fits itself to.")
    mask_ratio: float = Field(0.6, gt=0, lt=1, description="Share of the patches that is hidden.")
    patch_size: int = Field(32, ge=32, description="Side of a patch in pixels, a multiple of 32.")
    image_size: int = Field(224, ge=1, description="Side of the square crops in pixels, a multiple of the patch size.")
    batch_size: int | None = Field(None, ge=1, description="Images a step and process (default: by the number of images).")
    seed: int = Field(0, ge=0, description="Seed of initialisation, order, crops and masks.")
    output: Path | None = Field(None, description="Folder of the run (default: runs/pretrain-<model>).")
    resume: Path | None = Field(None, description="Folder of a run to go on with, exactly where it stopped.")
    devices: int = Field(1, ge=1, description="Processes, one device each.")
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Kind of device.")
    device: str | None = Field(None, description="Where one process runs: cpu, cuda:1, … (default: by --accelerator).")
    precision: Precision = Field("32-true", description="Arithmetic of the model; the loss is always 32-bit.")
    workers: int = Field(1, ge=0, description="Processes that load and crop images; 0 loads in the main process.")
    cache_gigabytes: float = Field(2.0, ge=0, description="Memory for decoded images, if all of them fit.")
    learning_rate: float | None = Field(
        None, gt=0, description="Peak rate of AdamW (default: 2.4e-3 times the square root of the whole batch / 4096)."
    )
    weight_decay: float = Field(0.05, ge=0, description="Decay of matrices and kernels; norms, GRN and biases have none.")
    clip_norm: float = Field(5.0, ge=0, description="Largest norm of the gradient; 0 switches clipping off.")
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of the run in which the rate rises, at most 2,000 steps.")
    crop_min: float = Field(0.2, gt=0, le=1, description="Smallest share of an image's area that a crop takes.")
    flip: float = Field(0.5, ge=0, le=1, description="Probability of mirroring left to right.")
    grn: bool = Field(True, description="GRN in the backbone; without it, for comparison, a detector has to start its own.")
    decoder_depth: int = Field(1, ge=1, description="ConvNeXt V2 blocks of the decoder.")
    decoder_width: int | None = Field(
        None, ge=1, description="Channels of the decoder (default: half of the backbone's last stage, at most 512)."
    )
    normalise_target: bool = Field(True, description="Score against patches of mean 0 and variance 1.")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="Largest decay of averaged weights to keep; 0 keeps the last.")
    picture_every: int | None = Field(
        None, ge=1, description="Epochs from one picture of reconstructions to the next (default: a tenth of the run)."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.epochs is not None and self.minutes is not None:
            raise ValueError("--epochs and --minutes both set the length of the run; give one of them")
        if self.patch_size % 32:
            raise ValueError(
                f"--patch-size must be a multiple of 32, the stride at which the mask is drawn (given: {self.patch_size})"
            )
        return self

    @field_validator("images", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (str(value),) if isinstance(value, str | Path) else tuple(str(item) for item in value)


class ValConfig(CommandConfig):
    """Settings of ``nextdetr val``."""

    data: str | None = Field(None, description="Data set: a VOC or COCO folder, a YOLO data.yaml, or a dataset YAML.")
    split: str = Field("val", description="Which part of the data set to score.")
    image_size: int | None = Field(None, ge=1, description="Side of the square input, pixels (default: the checkpoint's).")
    batch_size: int = Field(8, ge=1, description="Images a step.")
    queries: int | None = Field(None, ge=1, description="Object queries (default: the model file says).")
    on_bad_data: Literal["warn", "error"] = Field("warn", description="Drop unusable boxes and images, or refuse to start.")
    bits: int | None = Field(
        None, ge=8, le=16, description="Significant bits of 16-bit grey pictures (default: as in training, else 16)."
    )
    device: str | None = Field(None, description="Where to run: cpu, cuda, cuda:1, mps (default: the best there is).")


class PredictConfig(CommandConfig):
    """Settings of ``nextdetr predict``."""

    confidence: float = Field(0.3, ge=0, le=1, description="Detections below this score are left out.")
    classes: tuple[str, ...] | None = Field(None, description="Only these classes, by name.")
    max_detections: int = Field(300, ge=1, description="Most detections an image.")
    queries: int | None = Field(None, ge=1, description="Object queries, fewer or more than the model was trained with.")
    image_size: int | None = Field(None, ge=1, description="Side of the square input, pixels (default: the checkpoint's).")
    batch_size: int = Field(8, ge=1, description="Images a step.")
    tile: int | None = Field(None, ge=32, description="Look at large images in tiles of this side, pixels, and as a whole.")
    max_pixels: int | None = Field(
        None, ge=1, description="Most pixels of a picture (default: 178,956,970, with --tile four times as many)."
    )
    overlap: float = Field(0.2, ge=0, le=0.9, description="Share of a tile that its neighbour covers too.")
    track: bool = Field(False, description="Follow objects through videos: each gets a number (pip install '.[track]').")
    line: tuple[str, ...] = Field((), description="Count tracks that cross this line: x1,y1,x2,y2 in pixels.")
    zone: tuple[str, ...] = Field((), description="Count objects in this polygon: x1,y1,x2,y2,x3,y3,…")
    engine: Literal["local", "ray"] = Field("local", description="Make a table here, or over Ray Data (extra ray).")
    workers: int = Field(2, ge=1, description="Processes that look at images with --engine ray.")
    save: tuple[Literal["images", "json", "yolo"], ...] = Field(
        ("images",), description="What to write: annotated pictures, COCO results, YOLO label files."
    )
    annotations: Path | None = Field(None, description="COCO file whose category and image ids --save json is to write.")
    features: Path | None = Field(None, description="Folder for pictures of each backbone stage and fusion level.")
    output: Path | None = Field(
        None, description="Folder for what is written (default: runs/predict), or a table NAME.parquet of all predictions."
    )
    bits: int | None = Field(
        None, ge=8, le=16, description="Significant bits of 16-bit grey pictures (default: as in training, else 16)."
    )
    device: str | None = Field(None, description="Where to run: cpu, cuda, cuda:1, mps (default: the best there is).")

    @property
    def is_table(self) -> bool:
        """Whether ``output`` is a Parquet table rather than a folder."""
        return self.output is not None and self.output.suffix.lower() == ".parquet"

    @model_validator(mode="after")
    def _consistent_output(self) -> Self:
        if self.engine == "ray" and not self.is_table:
            raise ValueError("--engine ray writes a table: give --output NAME.parquet")
        if self.annotations is not None and "json" not in self.save:
            raise ValueError("--annotations gives ids to the results that --save json writes: add that option")
        return self

    @field_validator("classes", "save", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        if isinstance(value, (list, tuple)):
            return tuple(part.strip() for item in value for part in str(item).split(",") if part.strip())
        return value


class EmbedConfig(CommandConfig):
    """Settings of ``nextdetr embed``."""

    row: int | None = Field(None, ge=0, description="Row whose map is averaged (default: the last one of the backbone).")
    image_size: int | None = Field(None, ge=1, description="Side of the square input, pixels (default: the checkpoint's).")
    batch_size: int = Field(8, ge=1, description="Images a step.")
    output: Path | None = Field(None, description="File for the vectors, .npz or .csv.")
    bits: int | None = Field(
        None, ge=8, le=16, description="Significant bits of 16-bit grey pictures (default: as in training, else 16)."
    )
    device: str | None = Field(None, description="Where to run: cpu, cuda, cuda:1, mps (default: the best there is).")


class ProbeConfig(CommandConfig):
    """Settings of ``nextdetr probe``."""

    image_size: int = Field(224, ge=32, multiple_of=32, description="Side of the square input, pixels.")
    batch_size: int = Field(32, ge=1, description="Images a step.")
    held_out: float = Field(0.25, gt=0, lt=1, description="Share of each class to score, without a split of the folder's.")
    fine_tune: bool = Field(True, description="Also train the whole backbone.")
    epochs: int = Field(30, ge=1, description="Passes of the fine-tuning over the images.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak rate of the head; the backbone's is a quarter of it.")
    weight_decay: float = Field(0.05, ge=0, description="Decay of matrices and kernels; norms, GRN and biases have none.")
    drop_path: float = Field(0.1, ge=0, lt=1, description="Stochastic depth of the last block in fine-tuning.")
    crop_min: float = Field(0.4, gt=0, le=1, description="Smallest share of an image's area that a crop takes.")
    seed: int = Field(0, ge=0, description="Seed of the split, of crops and of the head.")
    device: str | None = Field(None, description="Where to run: cpu, cuda, cuda:1, mps (default: the best there is).")


class ExportConfig(CommandConfig):
    """Settings of ``nextdetr export``."""

    format: Literal["onnx", "openvino", "pt2"] = Field("onnx", description="Format of the file.")
    half: bool = Field(False, description="Float16 weights; what overflows or loses digits stays float32.")
    int8: bool = Field(False, description="8-bit backbone and encoder, calibrated on the images of --data.")
    dynamic: bool = Field(
        False, description="Any batch and image size (multiples of the model's stride) in place of a fixed one."
    )
    raw: bool = Field(False, description="Outputs are logits and boxes (centre, size, fractions), without postprocessing.")
    portable: bool = Field(False, description="No GridSample and no TopK, for accelerators that lack them; --raw as well.")
    winograd: bool | None = Field(
        None, description="Wide 3x3 convolutions by Winograd's filtering, for processors (default: where it can be)."
    )
    queries: int | None = Field(None, ge=1, description="Object queries, fewer or more than the model was trained with.")
    decoder_layers: int | None = Field(None, ge=1, description="Stop after so many decoder layers.")
    image_size: int | None = Field(None, ge=1, description="Side of the square input, pixels (default: the checkpoint's).")
    input_type: Literal["float32", "uint8"] = Field("float32", description="Pixels as fractions, 0 to 1, or as 0 to 255.")
    layout: Literal["nchw", "nhwc"] = Field("nchw", description="Order of the input's axes.")
    data: str | None = Field(None, description="Data set to score before and after, and to calibrate on.")
    split: str = Field("val", description="Which part of it to score; calibration takes the training part.")
    images: int = Field(8, ge=1, description="Images to compare the outputs on.")
    calibration_images: int = Field(100, ge=1, description="Images to calibrate 8-bit arithmetic on.")
    tolerance: float | None = Field(None, gt=0, description="Most that boxes and scores may differ (0.001, half 0.02).")
    accuracy_drop: float | None = Field(
        None, ge=0, description="Largest loss of AP with --data (default: 0.001, 0.005 with --int8)."
    )
    output: Path | None = Field(None, description="Folder of the export (default: beside the checkpoint).")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.half and self.int8:
            raise ValueError("--half and --int8 both set the precision; give one of them")
        if self.int8 and self.format == "pt2":
            raise ValueError("--int8 is for --format onnx and openvino")
        if self.int8 and self.data is None:
            raise ValueError("--int8 is calibrated on your images: give --data")
        if self.portable and self.dynamic:
            raise ValueError("--portable has a fixed size, which its gathers are made for: leave --dynamic out")
        if self.winograd and not self.can_winograd:
            raise ValueError("--winograd is for float32 ONNX and OpenVINO files of a fixed size that are not --portable")
        return self

    @property
    def can_winograd(self) -> bool:
        """Whether Winograd's filtering is offered: elsewhere it loses digits, or what runs the file knows better."""
        return self.format != "pt2" and self.precision == "float32" and not (self.dynamic or self.portable)

    @property
    def precision(self) -> Literal["float32", "half", "int8"]:
        """Arithmetic of the weights."""
        return "half" if self.half else "int8" if self.int8 else "float32"


class BenchmarkConfig(CommandConfig):
    """Settings of ``nextdetr benchmark``."""

    data: str | None = Field(None, description="Data set to score on, and to calibrate 8-bit arithmetic on.")
    split: str = Field("val", description="Which part of it to score.")
    precision: tuple[Literal["float32", "half", "int8"], ...] = Field(
        ("float32",), description="Arithmetic of the exports: float32, half, int8 (needs --data)."
    )
    threads: tuple[PositiveInt, ...] = Field((2,), description="Numbers of processor threads.")
    batch: tuple[PositiveInt, ...] = Field((1,), description="Numbers of images a step.")
    image_size: int | None = Field(None, ge=1, description="Side of the square input, pixels (default: the checkpoint's).")
    seconds: float = Field(10.0, gt=0, description="How long to measure each row.")
    peers: tuple[Path, ...] = Field((), description="ONNX files of other programs, for rows beside ours.")
    output: Path | None = Field(None, description="Folder for exports and results (default: runs/benchmark).")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for peer in self.peers:
            if peer.suffix != ".onnx" or not peer.is_file():
                raise ValueError(f"--peers takes ONNX files; there is none at {peer}")
        return self


class QuickstartConfig(CommandConfig):
    """Settings of ``nextdetr quickstart``."""

    minutes: float = Field(8.0, gt=0, description="Wall-clock budget of the training.")
    seed: int = Field(0, ge=0, description="Seed of the data and the training.")
    output: Path | None = Field(None, description="Folder of the run (default: runs/quickstart).")


C = TypeVar("C", bound=CommandConfig)


def build_config(kind: type[C], values: Mapping[str, Any], *, source: str = "") -> C:
    """Validate ``values`` once.

    Args:
        kind: which configuration to build.
        values: settings by name.
        source: file that the settings come from, for the message.

    Raises:
        ConfigError: a key is unknown (with the closest valid one), or a value is not allowed.
    """
    unknown = [key for key in values if key not in kind.model_fields]
    where = f"{source}: " if source else ""
    if unknown:
        close = difflib.get_close_matches(str(unknown[0]), kind.model_fields, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"valid names are {', '.join(kind.model_fields)}."
        raise ConfigError(f"{where}there is no setting {unknown[0]!r}; {hint}")
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(where + explain(error)) from error


def explain(error: ValidationError) -> str:
    """Return one sentence that says which settings are wrong, and why."""
    parts = []
    for item in error.errors(include_url=False):
        name = "--" + str(item["loc"][0]).replace("_", "-") if item["loc"] else ""
        message = item["msg"].removeprefix("Value error, ")
        given = "" if not name else f" (given: {item['input']!r})"
        parts.append(f"{name} {message[:1].lower() + message[1:] if name else message}{given}".strip())
    return "; ".join(parts) + "."
