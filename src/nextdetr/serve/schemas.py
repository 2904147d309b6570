"""Validated parameters, and the OpenAPI description of requests and responses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

__all__ = [
    "CORRECTION_BODY",
    "PREDICT_ANSWERS",
    "PREDICT_BODY",
    "ErrorBody",
    "ModelBody",
    "PredictBody",
    "PredictQuery",
    "explain_parameters",
]


class PredictQuery(BaseModel):
    """Parameters of a prediction."""

    model_config = ConfigDict(extra="forbid")

    confidence: Literal["auto", "calibrated"] | Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = Field(
        None,
        description="Least score, 0 to 1; auto: the detector's own for each class, else 0.3; calibrated: the one of "
        "nextdetr calibrate (default: the server's).",
    )
    classes: list[str] | None = Field(
        None, description="Only these classes, by name or number: several times, or with commas."
    )
    max_detections: int | None = Field(None, ge=1, le=10_000, description="Maximum detections per image.")
    merge_iou: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False,
        description="Drop boxes that overlap a better one of their class by more than this IoU, 0 to 1; 1 keeps all "
        "(default: the server's).",
    )  # fmt: skip

    @field_validator("classes")
    @classmethod
    def _names_some(cls, value: list[str] | None) -> list[str] | None:
        """Leave commas to the model, which knows whether they are in a class's name."""
        if value is not None and not any(item.strip(" ,") for item in value):
            raise ValueError("names no class")
        return value


class Detection(BaseModel):
    """One object."""

    box: tuple[float, float, float, float] = Field(description="x1, y1, x2, y2 in pixels of the upright image.")
    confidence: float = Field(description="0 to 1.")
    class_id: int
    class_name: str


class ImageBody(BaseModel):
    """One image and its detections, best first."""

    name: str
    width: int
    height: int
    detections: list[Detection]
    unlikeness: float | None = Field(
        None, description="Distance from the training images as a multiple of the limit; where the model checks it."
    )
    unlike_training: bool | None = Field(None, description="Whether it is above 1, so that the result is in doubt.")


class SecondsBody(BaseModel):
    """Times: the longest wait, and the work on all images."""

    queue: float
    preprocess: float
    model: float
    postprocess: float


_FOUND: dict[str, Any] = {
    "model": "coins",
    "images": [
        {
            "name": "photo.jpg", "width": 640, "height": 480,
            "detections": [{"box": [34.5, 20.0, 120.25, 104.0], "confidence": 0.93, "class_id": 0, "class_name": "coin"}],
        }
    ],
    "seconds": {"queue": 0.0004, "preprocess": 0.006, "model": 0.031, "postprocess": 0.0008},
}  # fmt: skip


class PredictBody(BaseModel):
    """Response to a prediction."""

    model_config = ConfigDict(json_schema_extra={"example": _FOUND})

    model: str
    images: list[ImageBody]
    seconds: SecondsBody


class ErrorDetail(BaseModel):
    """What is wrong."""

    type: str
    message: str


class ErrorBody(BaseModel):
    """Response to a failed request: one sentence."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"error": {"type": "DataError", "message": "photo.jpg cannot be read: image file is truncated."}}
        }
    )

    error: ErrorDetail


class CalibratedBody(BaseModel):
    """The confidence of ``nextdetr calibrate``."""

    threshold: float
    recall: float = Field(description="On average at most 1 less this of an image's objects is missed, 0 to 1.")


class ModelBody(BaseModel):
    """Description of a model."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "name": "coins", "model": "exports/coins/model.onnx", "classes": ["coin"], "image_size": 640,
                "runtime": "onnxruntime", "device": "cpu", "batches": False, "trained": True, "confidence": "auto",
                "thresholds": {"coin": 0.41}, "calibrated": {"threshold": 0.18, "recall": 0.95}, "checks_unlikeness": True,
                "max_detections": 300, "merge_iou": None, "generation": 1, "loaded": 1767225600.0,
            }
        }
    )  # fmt: skip

    name: str
    model: str
    classes: list[str]
    image_size: int
    runtime: str
    device: str
    batches: bool = Field(description="Whether it computes several images at once.")
    trained: bool
    confidence: Literal["auto", "calibrated"] | float = Field(description="Least score where a request names none.")
    thresholds: dict[str, float] | None = Field(description="The model's own, by class, which auto takes; else it is 0.3.")
    calibrated: CalibratedBody | None = Field(description="What calibrated takes; null where the model was not calibrated.")
    checks_unlikeness: bool = Field(description="Whether answers say how unlike the training images an image is.")
    max_detections: int
    merge_iou: float | None = Field(description="As of --merge-iou, where a request names none; null: all boxes are kept.")
    generation: int = Field(description="1, and one more for each reload.")
    loaded: float = Field(description="When, in seconds since 1970.")


def explain_parameters(errors: Iterable[Mapping[str, Any]]) -> str:
    """Return one sentence about pydantic's errors; a parameter of several possible types is reported once."""
    told: dict[str, str] = {}
    for item in errors:
        place = [str(part) for part in item["loc"] if part != "query"]
        name = place[0][:40] if place else "the settings"
        text = str(item["msg"]).removeprefix("Value error, ")
        told[name] = f"{name}: {text[:1].lower()}{text[1:]}"
        if item["type"] == "extra_forbidden":
            told[name] = f"there is no parameter {name!r}"
    return "; ".join(list(told.values())[:3]) + "."


_BINARY = {"schema": {"type": "string", "format": "binary"}}
PREDICT_BODY: dict[str, Any] = {
    "required": True,
    "description": "One image as the body, or several as the files of a form.",
    "content": {
        "image/jpeg": _BINARY,
        "image/png": _BINARY,
        "application/octet-stream": _BINARY,
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        },
    },
}
CORRECTION_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image", "annotations"],
                "properties": {
                    "image": {"type": "string", "format": "binary"},
                    "annotations": {"type": "string", "description": "JSON: all boxes of the image, as they should be."},
                },
            },
            "example": {
                "image": "(the file)",
                "annotations": '{"detections": [{"box": [34.5, 20, 120.25, 104], "class_name": "coin"}]}',
            },
        }
    },
}


def _error(status: int, text: str) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorBody, "description": text}}


PREDICT_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": PredictBody,
        "description": "Detections, or by Accept the annotated picture.",
        "content": {"image/jpeg": _BINARY, "image/png": _BINARY},
    },
    **_error(400, "The form is damaged."),
    **_error(401, "The key is missing or wrong."),
    **_error(404, "There is no such model."),
    **_error(408, "The request took too long to arrive."),
    **_error(413, "Too many bytes, pixels or images."),
    **_error(415, "Another type than an image or a form."),
    **_error(422, "An image cannot be read, or a parameter is wrong."),
    **_error(503, "The queue is full; Retry-After says when to try again."),
}
