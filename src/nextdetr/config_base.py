"""What the configurations of all commands have in common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

__all__ = [
    "Accelerator", "Bits", "BitsAsTrained", "ClipNorm", "CommandConfig", "CropMin", "DataSet", "DataSets", "Device",
    "Devices", "Flat", "Flip", "ImageFolders", "Latency", "LatencyOf", "LeastConfidence", "Log", "Minutes", "ModelWeights",
    "Names", "OnBadData", "PartialWeights", "Paths", "Precision", "Resume", "Warmup", "WeightDecay", "split_commas",
]  # fmt: skip

# Settings that several commands have; each command gives its own default.
Latency: TypeAlias = Annotated[
    float | None,
    Field(
        gt=0,
        description="Milliseconds per image: picks image size, queries and layers from the table of train --latency.",
    ),
]
LatencyOf: TypeAlias = Annotated[
    Path | None, Field(description="Times of another machine for --latency, written by nextdetr benchmark there.")
]
LeastConfidence: TypeAlias = Annotated[
    float | None,
    Field(ge=0, le=1, description="Minimum confidence of labels that a detector made (default: keep all)."),
]
DataSet: TypeAlias = Annotated[
    str | None, Field(description="Data set in any known format (COCO, YOLO, VOC, …): folder or file.")
]
OnBadData: TypeAlias = Annotated[
    Literal["warn", "error"], Field(description="Drop unusable boxes and images with a warning, or stop with an error.")
]
Minutes: TypeAlias = Annotated[float | None, Field(gt=0, description="Time budget, to which the schedule adapts.")]
Resume: TypeAlias = Annotated[Path | None, Field(description="Folder of a stopped run to continue.")]
Device: TypeAlias = Annotated[str | None, Field(description="Device: cpu, cuda, cuda:1, mps (default: the best).")]
ModelWeights: TypeAlias = Annotated[
    Path | None,
    Field(description="Weights for the model: file, folder, or name from nextdetr weights list or the Hugging Face Hub."),
]
PartialWeights: TypeAlias = Annotated[
    bool, Field(description="Accept --weights that leave parts of the model random; its results then mean nothing.")
]
Devices: TypeAlias = Annotated[int, Field(ge=1, description="Number of processes, one device each.")]
Accelerator: TypeAlias = Annotated[Literal["auto", "cpu", "cuda", "mps"], Field(description="Kind of device to use.")]
Precision: TypeAlias = Annotated[
    Literal["32-true", "bf16-mixed", "16-mixed"],
    Field(description="Floating-point precision of the model; losses are always 32-bit."),
]
Bits: TypeAlias = Annotated[
    int | None, Field(ge=8, le=16, description="Significant bits of 16-bit greyscale images (default: 16).")
]
BitsAsTrained: TypeAlias = Annotated[
    int | None,
    Field(ge=8, le=16, description="Significant bits of 16-bit greyscale images (default: as in training, else 16)."),
]
Warmup: TypeAlias = Annotated[
    float,
    Field(ge=0, lt=1, description="Share of the run, at its start, in which the learning rate rises; at most 2,000 steps."),
]
Flat: TypeAlias = Annotated[
    float, Field(ge=0, le=1, description="Share of the run after which the learning rate falls as a cosine.")
]
WeightDecay: TypeAlias = Annotated[
    float, Field(ge=0, description="Weight decay of matrices and kernels; norms, GRN and biases have none.")
]
ClipNorm: TypeAlias = Annotated[float, Field(ge=0, description="Maximum norm of the gradient; 0: no clipping.")]
CropMin: TypeAlias = Annotated[float, Field(gt=0, le=1, description="Minimum share of the image area in a crop.")]
Flip: TypeAlias = Annotated[float, Field(ge=0, le=1, description="Probability of mirroring left to right.")]


def _as_texts(value: Any) -> Any:
    """Paths as strings."""
    return tuple(str(item) for item in value or ())


def _as_names(value: Any) -> Any:
    """Names of classes, which in Python may be numbers."""
    return _as_texts(value) if isinstance(value, list | tuple) else value


def _several(value: Any) -> Any:
    return _as_texts(value) or None


DataSets: TypeAlias = Annotated[
    tuple[str, ...] | None,
    BeforeValidator(_several),
    Field(description="Data set in any known format (COCO, YOLO, VOC, …): folder or file. Several are trained on as one."),
]
Names: TypeAlias = Annotated[tuple[str, ...] | None, BeforeValidator(_as_names)]
Paths: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_as_texts)]
ImageFolders: TypeAlias = Annotated[Paths, Field(description="Folders of images, including subfolders, or data sets.")]


def split_commas(value: Any) -> Any:
    """Return texts, each perhaps with commas, as a tuple of their parts; anything else as it is."""
    if isinstance(value, list | tuple):
        return tuple(part.strip() for item in value for part in str(item).split(",") if part.strip())
    return value


def _is_tuple(annotation: Any) -> bool:
    """Whether an annotation is that of a tuple, or of a tuple or None."""
    return any(get_origin(part) is tuple for part in (annotation, *get_args(annotation)))


def _is_one(value: Any) -> bool:
    return value is not None and (isinstance(value, str) or not isinstance(value, Iterable))


Log: TypeAlias = Annotated[
    tuple[Literal["csv", "tensorboard", "mlflow", "wandb"], ...] | None,
    BeforeValidator(split_commas),
    Field(description="Where to log the run besides metrics.csv; csv: nowhere else (default: tensorboard, if installed)."),
]


class CommandConfig(BaseModel):
    """Base of all configurations: immutable; unknown keys, infinity and NaN are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    # Each a set of settings that say the same thing in several ways.
    alternatives: ClassVar[tuple[frozenset[str], ...]] = ()
    latency_chooses: ClassVar[bool] = True  # what a training chooses for itself in the end

    @model_validator(mode="before")
    @classmethod
    def _one_of_several(cls, values: Any) -> Any:
        """Take one value where several are possible: ``threads=2`` is ``threads=(2,)``."""
        if not isinstance(values, Mapping):
            return values
        several = {name for name, field in cls.model_fields.items() if _is_tuple(field.annotation)}
        return {name: (value,) if name in several and _is_one(value) else value for name, value in values.items()}

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_empty(cls, values: Any) -> Any:
        """Refuse ``--data ""``, as an unset variable of the shell leaves it: as a path it is the working directory."""
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if value == "" or (isinstance(value, list | tuple) and "" in value):
                raise ValueError(f"--{name.replace('_', '-')} is empty")
        return values

    @field_validator("device", mode="before", check_fields=False)
    @classmethod
    def _device_of_a_number(cls, value: Any) -> Any:
        """Read ``0``, as other tools call the first GPU, as ``cuda:0``."""
        text = str(value).strip()
        if re.fullmatch(r"\d+", text) and not isinstance(value, bool):
            return f"cuda:{int(text)}"
        if re.fullmatch(r"\d+(,\d+)+", text):
            number = text.count(",") + 1
            many = f"; --devices {number} uses {number} GPUs, and the variable CUDA_VISIBLE_DEVICES={text} says which"
            raise ValueError("names one device, such as cuda:0" + (many if "devices" in cls.model_fields else ""))
        return value

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if getattr(self, "epochs", None) is not None and getattr(self, "minutes", None) is not None:
            raise ValueError("--epochs and --minutes both set the length of the run; give one of them")
        return self

    def changes(self, name: str) -> bool:
        """Whether a setting differs from its default."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        device, kind = getattr(self, "device", None), getattr(self, "accelerator", "auto")
        if device is not None and kind not in ("auto", device.partition(":")[0]):
            raise ValueError(f"--device {device} and --accelerator {kind} contradict each other; give one of them")
        return self

    @model_validator(mode="after")
    def _one_choice_of_speed(self) -> Self:
        """Refuse ``--latency`` beside what it chooses, and another machine's times without it."""
        given = [name for name in ("image_size", "queries", "decoder_layers") if getattr(self, name, None) is not None]
        alone = getattr(self, "latency_of", None) is not None and getattr(self, "latency", None) is None
        if alone and getattr(self, "resume", None) is None:  # else the run's own settings have the other
            raise ValueError("--latency-of says whose milliseconds --latency counts: give both")
        if self.latency_chooses and getattr(self, "latency", None) is not None and given:
            option = "--" + given[0].replace("_", "-")
            raise ValueError(f"--latency chooses size, queries and layers: leave {option} out, or --latency")
        return self
