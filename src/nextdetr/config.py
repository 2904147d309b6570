"""One typed configuration per command; the command line, the YAML files and the Python keywords all derive from it.

All defaults are here, except those of training (``config_train.py``, ``config_graft.py``), the server (``config_serve.py``)
and calibration (``config_calibrate.py``). Unknown keys are refused with the closest valid name.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, PositiveInt, ValidationError, field_validator, model_validator

from nextdetr.confidence import AUTO
from nextdetr.config_base import (
    BitsAsTrained,
    CommandConfig,
    CropMin,
    DataSet,
    Device,
    Latency,
    LatencyOf,
    LeastConfidence,
    ModelWeights,
    Names,
    OnBadData,
    PartialWeights,
    WeightDecay,
    split_commas,
)  # fmt: skip
from nextdetr.config_calibrate import CalibrateConfig
from nextdetr.config_graft import GraftConfig
from nextdetr.config_serve import ServeConfig
from nextdetr.config_train import PretrainConfig, TrainConfig
from nextdetr.errors import ConfigError

__all__ = [
    "BenchmarkConfig",
    "CalibrateConfig",
    "CommandConfig",
    "CompareConfig",
    "ConvertConfig",
    "DoctorConfig",
    "EmbedConfig",
    "ExportConfig",
    "GraftConfig",
    "PredictConfig",
    "PretrainConfig",
    "ProbeConfig",
    "QuickstartConfig",
    "ReportConfig",
    "ServeConfig",
    "TrainConfig",
    "ValConfig",
    "build_config",
    "explain",
]


class ValConfig(CommandConfig):
    """Settings of ``nextdetr val``."""

    data: DataSet = None
    split: str = Field("val", description="Split of the data set to score.")
    split_off: float | None = Field(
        None, gt=0, lt=1, description="Score the val that training set aside: this share of train, if --data has no val."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of --split-off, the same as in training.")
    image_size: int | None = Field(None, ge=1, description="Side of the square input, pixels (default: the checkpoint's).")
    batch_size: int = Field(8, ge=1, description="Images per step.")
    queries: int | None = Field(None, ge=1, description="Number of object queries (default: the model file's).")
    latency: Latency = None
    latency_of: LatencyOf = None
    on_bad_data: OnBadData = "warn"
    bits: BitsAsTrained = None
    device: Device = None


class ReportConfig(ValConfig):
    """Settings of ``nextdetr report``."""

    pictures: int = Field(12, ge=0, description="Maximum number of images to show with their boxes.")
    store: bool = Field(False, description="Store the thresholds with the best F1 on this split in the checkpoint.")
    output: Path | None = Field(None, description="HTML file to write (default: report.html beside the model).")


class CompareConfig(ValConfig):
    """Settings of ``nextdetr compare``."""

    resamples: int = Field(1000, ge=100, description="Number of bootstrap samples for the interval.")
    level: float = Field(0.95, gt=0, lt=1, description="Confidence level of the interval.")
    pictures: int = Field(8, ge=0, description="Maximum number of images to show with --output.")
    output: Path | None = Field(None, description="HTML file to write.")


class PredictConfig(CommandConfig):
    """Settings of ``nextdetr predict``."""

    confidence: Literal["auto", "calibrated"] | Annotated[float, Field(ge=0, le=1)] = Field(
        AUTO,
        description="Minimum score; auto: the detector's own for each class, else 0.3; calibrated: the one of "
        "nextdetr calibrate.",
    )
    # Only the detector knows whether commas are in a class's name (``select_classes``).
    classes: Names = Field(None, description="Only these classes, by name or number, with spaces or commas between them.")
    max_detections: int = Field(300, ge=1, description="Maximum number of detections per image.")
    merge_iou: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Drop boxes that overlap a better one of their class by more than this IoU (default: keep all).",
    )
    queries: int | None = Field(None, ge=1, description="Number of object queries, which may differ from training.")
    latency: Latency = None
    latency_of: LatencyOf = None
    image_size: int | None = Field(None, ge=1, description="Side of the square input, pixels (default: the checkpoint's).")
    batch_size: int = Field(8, ge=1, description="Images per step.")
    recursive: bool = Field(False, description="Include subfolders, which the output keeps.")
    tile: int | None = Field(None, ge=32, description="Predict large images in tiles of this side, pixels, and as a whole.")
    max_pixels: int | None = Field(
        None, ge=1, description="Maximum number of pixels per image (default: 178,956,970; four times as many with --tile)."
    )
    overlap: float = Field(0.2, ge=0, le=0.9, description="Overlap of neighbouring tiles, as a share of a tile.")
    track: bool = Field(False, description="Track objects through videos; each gets a number (extra track).")
    line: tuple[str, ...] = Field((), description="Count tracks that cross this line: x1,y1,x2,y2 in pixels.")
    zone: tuple[str, ...] = Field((), description="Count objects in this polygon: x1,y1,x2,y2,x3,y3,…")
    static_camera: bool = Field(
        False, description="The camera does not move: compute the backbone only where something changed."
    )
    full_every: int = Field(30, ge=1, description="Frames between full computations with --static-camera.")
    engine: Literal["local", "ray"] = Field(
        "local", description="Make a table in this process, or with Ray Data (extra ray)."
    )
    workers: int = Field(2, ge=1, description="Processes for --engine ray.")
    save: tuple[Literal["images", "json", "yolo", "crops"], ...] = Field(
        ("images",), description="What to write: annotated images, COCO results, YOLO label files, crops of objects."
    )
    annotations: Path | None = Field(None, description="COCO file with the category and image ids that --save json writes.")
    features: Path | None = Field(None, description="Folder for images of each backbone stage and fusion level.")
    output: Path | None = Field(
        None, description="Output folder (default: runs/predict, or with a number), or NAME.parquet for a table."
    )
    bits: BitsAsTrained = None
    device: Device = None

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
        if self.is_table and self.changes("save"):
            raise ValueError("--save is for a folder, and NAME.parquet is one table: leave one of the two out")
        if self.changes("overlap") and self.tile is None:
            raise ValueError("--overlap is that of tiles: give --tile too")
        if self.changes("workers") and self.engine != "ray":
            raise ValueError("--workers is for --engine ray: add that option, or leave it out")
        if self.changes("full_every") and not self.static_camera:
            raise ValueError("--full-every is about a camera that does not move: give --static-camera too")
        if self.static_camera:
            reasons = {"tile": self.tile is not None, "features": self.features is not None, "output": self.is_table}
            other = next((name for name, given in reasons.items() if given), None)
            if other is not None:
                what = "a table, which is of images" if other == "output" else f"--{other}"
                raise ValueError(f"--static-camera looks at whole frames of videos, and cannot go with {what}")
        return self

    @field_validator("save", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return split_commas(value)


class ConvertConfig(CommandConfig):
    """Settings of ``nextdetr convert``."""

    to: Literal["coco", "yolo", "voc"] | None = Field(None, description="Format to write.")
    output: Path | None = Field(None, description="New folder for the data set.")
    images: Literal["copy", "link"] = Field("copy", description="Copy the image files, or link to them.")
    on_bad_data: Literal["warn", "error"] = Field(
        "warn", description="Leave out unusable boxes and images with a warning, or stop with an error."
    )
    min_confidence: LeastConfidence = None


class DoctorConfig(CommandConfig):
    """Settings of ``nextdetr doctor``."""

    model: str | None = Field(None, description="Trained detector that finds label errors: checkpoint or exported file.")
    weights: ModelWeights = None
    allow_partial: PartialWeights = False
    output: Path | None = Field(None, description="HTML page with thumbnails to write.")
    fix: Path | None = Field(None, description="Dataset YAML without the duplicates to write; no other file is touched.")
    image_size: int | None = Field(
        None,
        ge=1,
        description="Input size that training will use, pixels (default: what train would choose).",
    )
    device: str | None = Field(None, description="Device of the detector (default: the best).")

    @model_validator(mode="after")
    def _of_a_model(self) -> Self:
        if self.weights is not None and self.model is None:
            raise ValueError("--weights are for the detector that --model names; give it, too")
        return self


class EmbedConfig(CommandConfig):
    """Settings of ``nextdetr embed``."""

    row: int | None = Field(
        None, ge=0, description="Row of the model whose map is averaged (default: the last of the backbone)."
    )
    image_size: int | None = Field(None, ge=1, description="Side of the square input, pixels (default: the checkpoint's).")
    batch_size: int = Field(8, ge=1, description="Images per step.")
    recursive: bool = Field(False, description="Include subfolders.")
    output: Path | None = Field(None, description="File for the vectors, .npz or .csv.")
    bits: BitsAsTrained = None
    device: Device = None


class ProbeConfig(CommandConfig):
    """Settings of ``nextdetr probe``."""

    image_size: int = Field(224, ge=32, multiple_of=32, description="Side of the square input, pixels.")
    batch_size: int = Field(32, ge=1, description="Images per step.")
    held_out: float = Field(0.25, gt=0, lt=1, description="Share of each class to score, if the folder has no split.")
    fine_tune: bool = Field(True, description="Also fine-tune the whole backbone.")
    epochs: int = Field(30, ge=1, description="Epochs of the fine-tuning.")
    learning_rate: float = Field(
        1e-3, gt=0, description="Peak learning rate of the head; the backbone's is a quarter of it."
    )
    weight_decay: WeightDecay = 0.05
    drop_path: float = Field(0.1, ge=0, lt=1, description="Stochastic depth rate of the last block in fine-tuning.")
    crop_min: CropMin = 0.4
    seed: int = Field(0, ge=0, lt=2**63, description="Random seed of the split, the crops and the head.")
    device: Device = None


class ExportConfig(CommandConfig):
    """Settings of ``nextdetr export``."""

    format: Literal["onnx", "openvino", "pt2", "web"] = Field(
        "onnx", description="Format of the file; web: a page for the browser."
    )
    half: bool = Field(False, description="Float16 weights; layers that would overflow or lose digits stay float32.")
    int8: bool = Field(False, description="8-bit backbone and encoder, calibrated on --data.")
    dynamic: bool = Field(False, description="Any batch and image size (multiples of the stride) instead of fixed ones.")
    raw: bool = Field(False, description="Output logits and boxes (cxcywh, 0 to 1) without postprocessing.")
    portable: bool = Field(False, description="No GridSample and TopK, for accelerators that lack them; implies --raw.")
    winograd: bool | None = Field(
        None, description="Winograd filtering of wide 3x3 convolutions, for CPUs (default: where possible)."
    )
    queries: int | None = Field(None, ge=1, description="Number of object queries, which may differ from training.")
    decoder_layers: int | None = Field(None, ge=1, description="Number of decoder layers to keep.")
    latency: Latency = None
    latency_of: LatencyOf = None
    image_size: int | None = Field(None, ge=1, description="Side of the square input, pixels (default: the checkpoint's).")
    input_type: Literal["float32", "uint8"] = Field("float32", description="Type of the input: pixels 0 to 1, or 0 to 255.")
    layout: Literal["nchw", "nhwc"] = Field("nchw", description="Layout of the input.")
    data: str | None = Field(None, description="Data set to score before and after the export, and to calibrate on.")
    split: str = Field("val", description="Split to score; calibration uses train.")
    images: int = Field(8, ge=1, description="Number of images to compare the outputs on.")
    calibration_images: int = Field(100, ge=1, description="Number of images to calibrate 8-bit arithmetic on.")
    tolerance: float | None = Field(
        None, gt=0, description="Maximum difference of boxes and scores (default: 0.001, 0.02 with --half)."
    )
    accuracy_drop: float | None = Field(
        None, ge=0, description="Maximum loss of AP on --data (default: 0.001, 0.005 with --int8)."
    )
    output: Path | None = Field(None, description="Output folder (default: beside the checkpoint).")
    single_file: bool = Field(
        False, description="With --format web: also write the page as one file, which runs on one thread."
    )
    runtime_dir: Path | None = Field(
        None, description="With --format web: folder of onnxruntime-web (default: the cache, or a download)."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.format == "web":
            self._check_web()
        elif self.single_file or self.runtime_dir is not None:
            raise ValueError("--single-file and --runtime-dir are for --format web")
        if self.half and self.int8:
            raise ValueError("--half and --int8 both set the precision; give one of them")
        if self.int8 and self.format == "pt2":
            raise ValueError("--int8 is for --format onnx, openvino and web")
        if self.int8 and self.data is None:
            raise ValueError("--int8 is calibrated on your images: give --data")
        if self.accuracy_drop is not None and self.data is None:
            raise ValueError("--accuracy-drop is about the AP on a data set: give --data too")
        if self.portable and self.dynamic:
            raise ValueError("--portable has a fixed size, which its gathers are made for: leave --dynamic out")
        if self.winograd and not self.can_winograd:
            raise ValueError("--winograd is for float32 ONNX and OpenVINO files of a fixed size that are not --portable")
        return self

    def _check_web(self) -> None:
        """Refuse what the page does not support: it passes bytes of pixels, channels last, to a portable graph."""
        if self.half:
            raise ValueError("--format web computes in float32 or 8 bits: leave --half out, or give --int8")
        if self.dynamic:
            raise ValueError("--format web has a fixed size: leave --dynamic out")
        if (self.input_type, self.layout) != ("float32", "nchw"):
            raise ValueError("--format web has an input of its own: leave --input-type and --layout out")

    @property
    def can_winograd(self) -> bool:
        """Whether Winograd's filtering is offered: otherwise it loses digits, or the runtime does better."""
        return self.format in ("onnx", "openvino") and self.precision == "float32" and not (self.dynamic or self.portable)

    @property
    def precision(self) -> Literal["float32", "half", "int8"]:
        """Arithmetic of the weights."""
        return "half" if self.half else "int8" if self.int8 else "float32"


class BenchmarkConfig(CommandConfig):
    """Settings of ``nextdetr benchmark``."""

    data: str | None = Field(None, description="Data set to score on, and to calibrate 8-bit arithmetic on.")
    split: str = Field("val", description="Split to score.")
    precision: tuple[Literal["float32", "half", "int8"], ...] = Field(
        ("float32",), description="Precisions of the exports; int8 needs --data."
    )
    threads: tuple[PositiveInt, ...] = Field((2,), description="Numbers of CPU threads to measure with.")
    batch: tuple[PositiveInt, ...] = Field((1,), description="Batch sizes to measure.")
    image_size: int | None = Field(None, ge=1, description="Side of the square input, pixels (default: the checkpoint's).")
    latency: Latency = None
    latency_of: LatencyOf = None
    points: bool = Field(
        False, description="Measure the settings of the model's latency table, or a grid of settings if it has none."
    )
    seconds: float = Field(10.0, gt=0, description="Seconds to measure each row.")
    peers: tuple[Path, ...] = Field((), description="ONNX files of other programs to measure, too.")
    output: Path | None = Field(None, description="Output folder for exports and results (default: runs/benchmark).")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for peer in self.peers:
            if peer.suffix != ".onnx" or not peer.is_file():
                raise ValueError(f"--peers takes ONNX files; there is none at {peer}")
        return self


class QuickstartConfig(CommandConfig):
    """Settings of ``nextdetr quickstart``."""

    minutes: float = Field(
        15.0, gt=0, description="Time limit of the training, which otherwise has the same length on every machine."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Random seed of the data and the training.")
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
    found: dict[str, tuple[list[str], str]] = {}  # what is wrong with each setting, and what was given
    for item in error.errors(include_url=False):
        name = "--" + str(item["loc"][0]).replace("_", "-") if item["loc"] else ""
        message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        reasons, _ = found.setdefault(name, ([], f" (given: {item['input']!r})" if name else ""))
        reason = message[:1].lower() + message[1:] if name else message
        if reason not in reasons:
            reasons.append(reason)
    return "; ".join(f"{name} {', or '.join(reasons)}{given}".strip() for name, (reasons, given) in found.items()) + "."
