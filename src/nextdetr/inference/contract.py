"""What an exported file expects and gives, as it stands in the file itself (ONNX metadata, OpenVINO rt_info)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from nextdetr.errors import ModelFileError

__all__ = ["CONTRACT_VERSION", "Contract"]

CONTRACT_VERSION = "1"

InputType = Literal["float32", "uint8"]
Layout = Literal["nchw", "nhwc"]
Precision = Literal["float32", "half", "int8"]
INPUT_TYPES: dict[str, InputType] = {"float32": "float32", "uint8": "uint8"}
LAYOUTS: dict[str, Layout] = {"nchw": "nchw", "nhwc": "nhwc"}
PRECISIONS: dict[str, Precision] = {"float32": "float32", "half": "half", "int8": "int8"}


@dataclass(frozen=True, slots=True)
class Contract:
    """The terms of an exported detector.

    Attributes:
        classes: C names, in the order of the model's indices.
        image_size: side of the square input in pixels (S); with ``dynamic`` the proposed one.
        queries: Q.
        input_type: ``float32`` for fractions, 0 to 1; ``uint8`` for 0 to 255.
        layout: ``nchw`` or ``nhwc``.
        raw: outputs are ``logits`` and ``boxes`` (cxcywh, 0 to 1) in place of ``boxes``, ``scores`` and ``labels``.
        dynamic: batch and image size are free; otherwise the batch is 1.
        portable: without GridSample and TopK; raw then.
        precision: arithmetic of the weights.
        winograd: wide 3 × 3 convolutions stand as Winograd's filtering; a hint for whoever takes the file elsewhere.
        max_detections: most detections an image (K), if not raw.
        details: further entries of the metadata: licence, source, version, how it was made.
    """

    classes: list[str]
    image_size: int
    queries: int
    input_type: InputType = "float32"
    layout: Layout = "nchw"
    raw: bool = False
    dynamic: bool = False
    portable: bool = False
    precision: Precision = "float32"
    winograd: bool = False
    max_detections: int = 300
    details: dict[str, str] = field(default_factory=dict)

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs, in order."""
        return ["images"] if self.raw else ["images", "sizes"]

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, in order."""
        return ["logits", "boxes"] if self.raw else ["boxes", "scores", "labels"]

    def to_metadata(self) -> dict[str, str]:
        """Return the terms as text by name."""
        return {
            **self.details,
            "nextdetr_export": CONTRACT_VERSION,
            "classes": json.dumps(self.classes, ensure_ascii=False),
            "image_size": str(self.image_size),
            "queries": str(self.queries),
            "input_type": self.input_type,
            "layout": self.layout,
            "outputs": "raw" if self.raw else "detections",
            "dynamic": "yes" if self.dynamic else "no",
            "portable": "yes" if self.portable else "no",
            "precision": self.precision,
            "winograd": "yes" if self.winograd else "no",
            "max_detections": str(self.max_detections),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], source: str) -> Contract:
        """Read the terms back.

        Raises:
            ModelFileError: ``source`` was not exported by NextDETR, was by a later one, or its metadata is damaged.
        """
        version = metadata.get("nextdetr_export")
        if version is None:
            raise ModelFileError(f"{source}: not a NextDETR export: its metadata does not say what goes in and comes out.")
        if version != CONTRACT_VERSION:
            raise ModelFileError(
                f"{source}: export version {version}, but this NextDETR reads {CONTRACT_VERSION}: update it."
            )
        try:
            classes = json.loads(metadata["classes"])
            numbers = {name: int(metadata[name]) for name in ("image_size", "queries", "max_detections")}
            input_type, layout = INPUT_TYPES[metadata["input_type"]], LAYOUTS[metadata["layout"]]
            precision = PRECISIONS[metadata["precision"]]
            raw, dynamic = metadata["outputs"] == "raw", metadata["dynamic"] == "yes"
            # Earlier exports do not say.
            portable, winograd = (metadata.get(name) == "yes" for name in ("portable", "winograd"))
        except (KeyError, ValueError) as error:
            raise ModelFileError(f"{source}: its metadata is damaged ({error}); export the model again.") from error
        if not isinstance(classes, list) or min(numbers.values()) < 1:
            raise ModelFileError(f"{source}: its metadata is damaged (classes or sizes); export the model again.")
        known = cls([], 1, 1).to_metadata()
        details = {name: value for name, value in metadata.items() if name not in known}
        return cls(
            [str(name) for name in classes], **numbers, input_type=input_type, layout=layout, raw=raw, dynamic=dynamic,
            portable=portable, precision=precision, winograd=winograd, details=details,
        )  # fmt: skip
