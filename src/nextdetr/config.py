"""One typed configuration per command; the command line, the YAML files and the Python keywords all derive from it.

Defaults stand here, those of the trainings in ``config_train.py`` and ``config_graft.py``, of the server in
``config_serve.py``, of the calibration in ``config_calibrate.py``, and nowhere else. Unknown keys are refused with the
closest valid name.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, PositiveInt, ValidationError, field_validator, model_validator

from nextdetr.confidence import AUTO
from nextdetr.config_base import CommandConfig, Latency, LatencyOf, LeastConfidence, split_commas
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

    data: str | None = Field(
        None, description="Data set of any known format (COCO, YOLO, VOC, CVAT, CSV, …): its folder or file."
    )
    split: str = Field("val", description="Which part of the data set to score.")
    split_off: float | None = Field(
        None, gt=0, lt=1, description="Score the val that training made of so much of train, as --data has none."
    )
    seed: int = Field(0, ge=0, description="Seed of --split-off: that of the training.")
    image_size: int | None = Field(None, ge=1, description="Side of the square input, pixels (default: the checkpoint's).")
    batch_size: int = Field(8, ge=1, description="Images a step.")
    queries: int | None = Field(None, ge=1, description="Object queries (default: the model file says).")
    latency: Latency = None
    latency_of: LatencyOf = None
    on_bad_data: Literal["warn", "error"] = Field("warn", description="Drop unusable boxes and images, or refuse to start.")
    bits: int | None = Field(
        None, ge=8, le=16, description="Significant bits of 16-bit grey pictures (default: as in training, else 16)."
    )
    device: str | None = Field(None, description="Where to run: cpu, cuda, cuda:1, mps (default: the best there is).")


class ReportConfig(ValConfig):
    """Settings of ``nextdetr report``."""

    pictures: int = Field(12, ge=0, description="Most images to show with their boxes.")
    store: bool = Field(False, description="Write the thresholds with the best F1 on this split into the checkpoint.")
    output: Path | None = Field(None, description="The HTML file (default: report.html beside the model).")


class CompareConfig(ValConfig):
    """Settings of ``nextdetr compare``."""

    resamples: int = Field(1000, ge=100, description="Samples of the images that the interval is taken from.")
    level: float = Field(0.95, gt=0, lt=1, description="Share of the samples within the interval.")
    pictures: int = Field(8, ge=0, description="Most images to show with --output.")
    output: Path | None = Field(None, description="HTML file to write.")


class PredictConfig(CommandConfig):
    """Settings of ``nextdetr predict``."""

    confidence: Literal["auto", "calibrated"] | Annotated[float, Field(ge=0, le=1)] = Field(
        AUTO,
        description="Detections below this score are left out; auto: below the detector's own of each class, else 0.3; "
        "calibrated: below the one of nextdetr calibrate.",
    )
    classes: tuple[str, ...] | None = Field(None, description="Only these classes, by name.")
    max_detections: int = Field(300, ge=1, description="Most detections an image.")
    merge_iou: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Of boxes of a class that overlap by more than this IoU, keep the best (default: all).",
    )
    queries: int | None = Field(None, ge=1, description="Object queries, fewer or more than the model was trained with.")
    latency: Latency = None
    latency_of: LatencyOf = None
    image_size: int | None = Field(None, ge=1, description="Side of the square input, pixels (default: the checkpoint's).")
    batch_size: int = Field(8, ge=1, description="Images a step.")
    recursive: bool = Field(False, description="Enter the subfolders of folders; what is written of one folder keeps them.")
    tile: int | None = Field(None, ge=32, description="Look at large images in tiles of this side, pixels, and as a whole.")
    max_pixels: int | None = Field(
        None, ge=1, description="Most pixels of a picture (default: 178,956,970, with --tile four times as many)."
    )
    overlap: float = Field(0.2, ge=0, le=0.9, description="Share of a tile that its neighbour covers too.")
    track: bool = Field(False, description="Follow objects through videos: each gets a number (pip install '.[track]').")
    line: tuple[str, ...] = Field((), description="Count tracks that cross this line: x1,y1,x2,y2 in pixels.")
    zone: tuple[str, ...] = Field((), description="Count objects in this polygon: x1,y1,x2,y2,x3,y3,…")
    static_camera: bool = Field(
        False, description="The camera of the videos stands still: compute the backbone only where something changed."
    )
    full_every: int = Field(30, ge=1, description="With --static-camera, every so many frames one is computed in full.")
    engine: Literal["local", "ray"] = Field("local", description="Make a table here, or over Ray Data (extra ray).")
    workers: int = Field(2, ge=1, description="Processes that look at images with --engine ray.")
    save: tuple[Literal["images", "json", "yolo", "crops"], ...] = Field(
        ("images",),
        description="What to write: annotated pictures, COCO results, YOLO label files, crops of all objects.",
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
        if self.static_camera:
            reasons = {"tile": self.tile is not None, "features": self.features is not None, "output": self.is_table}
            other = next((name for name, given in reasons.items() if given), None)
            if other is not None:
                what = "a table, which is of images" if other == "output" else f"--{other}"
                raise ValueError(f"--static-camera looks at whole frames of videos, and cannot go with {what}")
        return self

    @field_validator("classes", "save", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return split_commas(value)


class ConvertConfig(CommandConfig):
    """Settings of ``nextdetr convert``."""

    to: Literal["coco", "yolo", "voc"] | None = Field(None, description="Format to write.")
    output: Path | None = Field(None, description="New folder for it.")
    images: Literal["copy", "link"] = Field("copy", description="Copy the image files, or link to where they are.")
    on_bad_data: Literal["warn", "error"] = Field("warn", description="Leave out unusable boxes and images, or refuse.")
    min_confidence: LeastConfidence = None


class DoctorConfig(CommandConfig):
    """Settings of ``nextdetr doctor``."""

    model: str | None = Field(None, description="A trained detector, which finds label errors: a checkpoint or an export.")
    output: Path | None = Field(None, description="HTML page to write, with thumbnails.")
    fix: Path | None = Field(None, description="Dataset YAML to write, without copies; no other file is touched.")
    image_size: int | None = Field(
        None,
        ge=1,
        description="Side of the square input that training will use, pixels (default: what train would choose).",
    )
    device: str | None = Field(None, description="Where the detector runs (default: the best there is).")


class EmbedConfig(CommandConfig):
    """Settings of ``nextdetr embed``."""

    row: int | None = Field(None, ge=0, description="Row whose map is averaged (default: the last one of the backbone).")
    image_size: int | None = Field(None, ge=1, description="Side of the square input, pixels (default: the checkpoint's).")
    batch_size: int = Field(8, ge=1, description="Images a step.")
    recursive: bool = Field(False, description="Enter the subfolders of folders.")
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

    format: Literal["onnx", "openvino", "pt2", "web"] = Field("onnx", description="Format of the file; web: a page.")
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
    latency: Latency = None
    latency_of: LatencyOf = None
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
    single_file: bool = Field(False, description="With --format web: the page as one file, too; it runs on one thread.")
    runtime_dir: Path | None = Field(
        None, description="With --format web: folder with the files of onnxruntime-web (default: a cache, or download)."
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
        if self.portable and self.dynamic:
            raise ValueError("--portable has a fixed size, which its gathers are made for: leave --dynamic out")
        if self.winograd and not self.can_winograd:
            raise ValueError("--winograd is for float32 ONNX and OpenVINO files of a fixed size that are not --portable")
        return self

    def _check_web(self) -> None:
        """Refuse what the page does not do: it hands bytes of pixels, channels last, to a portable graph."""
        if self.half:
            raise ValueError("--format web computes in float32 or 8 bits: leave --half out, or give --int8")
        if self.dynamic:
            raise ValueError("--format web has a fixed size: leave --dynamic out")
        if (self.input_type, self.layout) != ("float32", "nchw"):
            raise ValueError("--format web has an input of its own: leave --input-type and --layout out")

    @property
    def can_winograd(self) -> bool:
        """Whether Winograd's filtering is offered: elsewhere it loses digits, or what runs the file knows better."""
        return self.format in ("onnx", "openvino") and self.precision == "float32" and not (self.dynamic or self.portable)

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
    latency: Latency = None
    latency_of: LatencyOf = None
    points: bool = Field(
        False, description="Measure the points of its table here, or, without a table, a grid of settings."
    )
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

    minutes: float = Field(
        15.0, gt=0, description="Most minutes of the training, whose length is otherwise the same on every machine."
    )
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
