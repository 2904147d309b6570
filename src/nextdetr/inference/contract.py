"""What an exported file expects and gives, as stored in the file itself (ONNX metadata, OpenVINO rt_info); no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from nextdetr.errors import ConfigError, ModelFileError
from nextdetr.inference.session import Port

__all__ = ["CHANGED", "CONTRACT_VERSION", "UNJUDGED", "Contract"]

CONTRACT_VERSION = "1"
UNJUDGED = "unjudged"  # in the place of runtimes, in a file that has not been compared with its detector yet

InputType = Literal["float32", "uint8"]
Layout = Literal["nchw", "nhwc"]
Precision = Literal["float32", "half", "int8"]
INPUT_TYPES: dict[str, InputType] = {"float32": "float32", "uint8": "uint8"}
LAYOUTS: dict[str, Layout] = {"nchw": "nchw", "nhwc": "nhwc"}
PRECISIONS: dict[str, Precision] = {"float32": "float32", "half": "half", "int8": "int8"}

CHANGED = "the file was changed since its export: export the model again."
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)  # of an entry: OpenVINO writes it as an XML element
_DESCRIBED = re.compile(r"(input|output)_(images|sizes|logits|boxes|scores|labels)")


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
        winograd: wide 3 × 3 convolutions are stored as Winograd's filtering; a hint for use on other machines.
        max_detections: most detections an image (K), if not raw.
        step: sides of a dynamic graph's images are multiples of it, in pixels.
        least_size: least side in pixels of a dynamic graph; None in files that do not say.
        largest_size: likewise, the largest.
        passed_runtimes: the runtimes in which the file passed its gate; None in files that do not say, ``UNJUDGED`` alone
            in those whose export has not come to its gate.
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
    step: int = 32
    least_size: int | None = None
    largest_size: int | None = None
    passed_runtimes: tuple[str, ...] | None = None
    details: dict[str, str] = field(default_factory=dict)

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs, in order."""
        return ["images"] if self.raw else ["images", "sizes"]

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, in order."""
        return ["logits", "boxes"] if self.raw else ["boxes", "scores", "labels"]

    def describe(self) -> dict[str, str]:
        """Return a sentence for each input and output, which is stored in the file and explains how to use it."""
        side = "S" if self.dynamic else str(self.image_size)
        batch = "B" if self.dynamic else "1"
        shape = f"[{batch}, {side}, {side}, 3]" if self.layout == "nhwc" else f"[{batch}, 3, {side}, {side}]"
        pixels = "uint8, 0 to 255" if self.input_type == "uint8" else "float32, 0 to 1"
        sides = (
            f"; sides are multiples of {self.step}{self._bounds()}, {self.image_size} is proposed" if self.dynamic else ""
        )
        count = self.max_detections
        texts = {
            "images": f"{shape} {pixels}: RGB, the whole image resized to the square with an antialiased bilinear filter "
            f"(Pillow's), its aspect ratio not kept; neither mean nor deviation are to be subtracted{sides}.",
            "sizes": f"[{batch}, 2] int64: height and width of the original image in pixels, in this order.",
        }
        if self.raw:
            texts["logits"] = (
                f"[{batch}, {self.queries}, {len(self.classes)}] float32: one score for each query and class, before the "
                "sigmoid; NMS is not needed."
            )
            texts["boxes"] = (
                f"[{batch}, {self.queries}, 4] float32: centre x, centre y, width, height, as fractions of the image."
            )
        else:
            texts["boxes"] = (
                f"[{batch}, {count}, 4] float32: x1, y1, x2, y2 in pixels of the original image, clipped to it."
            )
            texts["scores"] = f"[{batch}, {count}] float32: 0 to 1, the best first; NMS is not needed."
            texts["labels"] = f"[{batch}, {count}] int64: indices into the classes, from 0."
        return {name: texts[name] for name in (*self.input_names, *self.output_names)}

    def _bounds(self) -> str:
        low = "" if self.least_size is None else f", at least {self.least_size}"
        return low + ("" if self.largest_size is None else f", at most {self.largest_size}")

    def to_metadata(self) -> dict[str, str]:
        """Return the terms as text by name."""
        optional = {"least_size": self.least_size, "largest_size": self.largest_size}
        passed = self.passed_runtimes
        return {
            **{name: value for name, value in self.details.items() if _NAME.fullmatch(name)},
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
            "step": str(self.step),
            **{name: str(value) for name, value in optional.items() if value is not None},
            **({} if passed is None else {"passed_runtimes": " ".join(passed)}),
            **{
                f"{'input' if name in self.input_names else 'output'}_{name}": text
                for name, text in self.describe().items()
            },
        }

    def check_size(self, height: int, width: int, source: str) -> None:
        """Refuse an image size that the graph does not take.

        Raises:
            ConfigError: the message says which it takes.
        """
        if not self.dynamic:
            if (height, width) != (self.image_size, self.image_size):
                raise ConfigError(
                    f"{source}: its image size is fixed, {self.image_size} px, not {width}: leave --image-size out, "
                    "or export with --dynamic."
                )
            return
        low, high = self.least_size or self.step, self.largest_size or max(height, width)
        if any(side % self.step or not low <= side <= high for side in (height, width)):
            given = str(width) if height == width else f"{width} x {height}"
            raise ConfigError(
                f"{source}: it takes image sizes that are multiples of {self.step} px{self._bounds()} (given: {given})."
            )

    def check(self, inputs: Mapping[str, Port], outputs: Mapping[str, Port], source: str) -> None:
        """Compare the terms with the graph as its runtime sees it.

        Raises:
            ModelFileError: they differ; the message says where.
        """
        for part, names, ports in (("inputs", self.input_names, inputs), ("outputs", self.output_names, outputs)):
            if sorted(names) != sorted(ports):
                raise ModelFileError(
                    f"{source}: its {part} should be {', '.join(names)}, but the graph has {', '.join(ports)}; {CHANGED}"
                )
        for name, (kind, sides) in self._ports().items():
            port = inputs[name] if name in inputs else outputs[name]
            whole = port.shape is None or (
                len(port.shape) == len(sides)
                and all(want is None or got is None or want == got for want, got in zip(sides, port.shape, strict=True))
                and (name != "images" or self.dynamic or None not in port.shape)
            )
            if port.kind != kind or not whole:
                shown = "?" if port.shape is None else [("any" if side is None else side) for side in port.shape]
                wanted = [("any" if side is None else side) for side in sides]
                raise ModelFileError(
                    f"{source}: by its metadata, {name} is {kind} {wanted}, but the graph has {port.kind} {shown}; "
                    f"{CHANGED}"
                )

    def _ports(self) -> dict[str, tuple[str, tuple[int | None, ...]]]:
        """Type and sides of each input and output, None where a side is free."""
        batch, side = (None, None) if self.dynamic else (1, self.image_size)
        images = (batch, side, side, 3) if self.layout == "nhwc" else (batch, 3, side, side)
        ports: dict[str, tuple[str, tuple[int | None, ...]]] = {"images": (self.input_type, images)}
        if self.raw:
            shape = (batch, self.queries)
            return {**ports, "logits": ("float32", (*shape, len(self.classes))), "boxes": ("float32", (*shape, 4))}
        shape = (batch, self.max_detections)
        ports |= {"sizes": ("int64", (batch, 2)), "boxes": ("float32", (*shape, 4))}
        return {**ports, "scores": ("float32", shape), "labels": ("int64", shape)}

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
        least = largest = None
        try:
            if "least_size" in metadata:
                least, largest = int(metadata["least_size"]), int(metadata["largest_size"])
            classes, step = json.loads(metadata["classes"]), int(metadata.get("step", "32"))
            numbers = {name: int(metadata[name]) for name in ("image_size", "queries", "max_detections")}
            input_type, layout = INPUT_TYPES[metadata["input_type"]], LAYOUTS[metadata["layout"]]
            precision = PRECISIONS[metadata["precision"]]
            raw, dynamic = metadata["outputs"] == "raw", metadata["dynamic"] == "yes"
            # Earlier exports do not say.
            portable, winograd = (metadata.get(name) == "yes" for name in ("portable", "winograd"))
        except (KeyError, ValueError) as error:
            raise ModelFileError(f"{source}: its metadata is damaged ({error}); export the model again.") from error
        if not isinstance(classes, list) or min(*numbers.values(), step) < 1:
            raise ModelFileError(f"{source}: its metadata is damaged (classes or sizes); export the model again.")
        passed = metadata.get("passed_runtimes")
        known = cls([], 1, 1, least_size=1, largest_size=1, passed_runtimes=()).to_metadata()
        details = {name: value for name, value in metadata.items() if name not in known and not _DESCRIBED.fullmatch(name)}
        return cls(
            [str(name) for name in classes], **numbers, input_type=input_type, layout=layout, raw=raw, dynamic=dynamic,
            portable=portable, precision=precision, winograd=winograd, step=step, least_size=least, largest_size=largest,
            passed_runtimes=None if passed is None else tuple(passed.split()), details=details,
        )  # fmt: skip
