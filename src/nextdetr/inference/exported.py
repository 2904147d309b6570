"""Exported files as detectors: opened by their ending, run like the network they were made from; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nextdetr.array_boxes import xyxy_to_cxcywh
from nextdetr.errors import ConfigError, ModelFileError
from nextdetr.extras import require_train
from nextdetr.inference.backend import Backend
from nextdetr.inference.contract import CHANGED, Contract
from nextdetr.inference.header import is_exported
from nextdetr.inference.runtimes import Runtime, choose_runtime, open_session
from nextdetr.inference.session import Session
from nextdetr.postprocess import Outputs

if TYPE_CHECKING:
    from nextdetr.weights.checkpoint import OpenedModel
    from nextdetr.weights.report import LoadReport

__all__ = [
    "ExportedModel",
    "OpenedExport",
    "Runtime",
    "as_input",
    "choose_runtime",
    "is_exported",
    "open_any",
    "open_export",
    "require_network",
]


class ExportedModel(Backend):
    """An exported graph, so that prediction and scoring have one way for all that detects.

    Args:
        session: the file, opened.
        contract: its terms.
        source: its path, for messages.
    """

    def __init__(self, session: Session, contract: Contract, source: str) -> None:
        self.session, self.contract, self.source = session, contract, source
        self.num_classes = len(contract.classes)

    def check_size(self, height: int, width: int | None = None) -> None:
        """Check that the file takes images of this size: ``--image-size``, or height and width, in pixels.

        Raises:
            ConfigError: it was exported for others; the message says for which.
        """
        self.contract.check_size(height, height if width is None else width, self.source)

    def __call__(self, images: NDArray[np.float32], *, queries: int | None = None) -> Outputs:
        """Detect.

        Args:
            images: [B, 3, S, S] float32 RGB, 0 to 1.
            queries: as the file was exported with, or None.

        Returns:
            Of a raw graph, its logits and boxes. Else one row a detection, K in place of Q: the logit of its class, and
            minus infinity for all others, which ``postprocess`` takes for "no detection".

        Raises:
            ConfigError: another number of queries or another image size than the file's.
            ModelFileError: the runtime fails, or what it returns is no detection: not a number, or of no class.
        """
        contract = self.contract
        if queries is not None and queries != contract.queries:
            raise ConfigError(
                f"{self.source}: the number of queries, {contract.queries}, is fixed in an exported file: export the "
                f"checkpoint with --queries {queries}."
            )
        self.check_size(*images.shape[-2:])
        pixels = as_input(images, contract)
        parts = [pixels] if contract.dynamic else [pixels[i : i + 1] for i in range(len(pixels))]
        results = [self._detect(part) for part in parts]
        logits, boxes = [output.logits for output in results], [output.boxes for output in results]
        return Outputs(np.concatenate(logits), np.concatenate(boxes))

    def _detect(self, pixels: NDArray[Any]) -> Outputs:
        if self.contract.raw:
            raw = self.session.run({"images": pixels})
            self._refuse_unless(not np.isnan(raw["logits"]).any())
            return Outputs(_floats(raw["logits"]), _floats(raw["boxes"]))
        # An image of 1 by 1 pixel: boxes come out as fractions, and ``postprocess`` scales them as it does for all.
        unit = np.ones((len(pixels), 2), np.int64)
        found = self.session.run({"images": pixels, "sizes": unit})
        scores, labels = _floats(found["scores"]), np.asarray(found["labels"], np.int64)
        self._refuse_unless(not scores.size or bool((scores > 0).any(axis=1).all()))  # NaN, too, is not above 0
        if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ModelFileError(
                f"{self.source}: it returned the class {int(labels.max())}, but names {self.num_classes}; {CHANGED}"
            )
        logits = np.full((*scores.shape, self.num_classes), -np.inf, np.float32)
        with np.errstate(divide="ignore"):  # the logits of 0 and 1 are infinite
            np.put_along_axis(logits, labels[..., None], np.log(scores / (1 - scores))[..., None], axis=2)
        return Outputs(logits, xyxy_to_cxcywh(_floats(found["boxes"])))

    def _refuse_unless(self, sound: bool) -> None:
        """Refuse outputs that are no scores: a graph gives what is not a number the score 0, the lowest there is."""
        if not sound:
            raise ModelFileError(
                f"{self.source}: in {self.session.name}, what it computes is not a number (NaN), so it finds nothing: "
                "export the model again, and without --half if it was given."
            )


def as_input(images: NDArray[np.float32], contract: Contract) -> NDArray[Any]:
    """Return [B, 3, S, S] fractions as a graph takes them; exact for pictures of 8 bits."""
    pixels: NDArray[Any] = np.asarray(images, np.float32)  # also of a tensor on the processor
    if contract.input_type == "uint8":
        pixels = np.rint(pixels * 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1) if contract.layout == "nhwc" else pixels)


@dataclass(frozen=True, slots=True)
class OpenedExport:
    """An exported detector with what is known of it; the counterpart of ``OpenedModel``.

    Attributes:
        model: the graph.
        classes: C names, in the order of the model's indices.
        image_size: side of the square input in pixels.
        source: what the user named.
        metadata: the file's metadata, all strings.
    """

    model: ExportedModel
    classes: list[str]
    image_size: int
    source: str
    metadata: dict[str, str]

    @property
    def trained(self) -> bool:
        """Whether the classes are those of a checkpoint, and not numbered for want of names."""
        return self.metadata.get("trained", "yes") == "yes"


def open_export(source: str | Path, *, threads: int | None = None, runtime: Runtime = "auto") -> OpenedExport:
    """Open an ONNX file, an OpenVINO model, or the folder that holds one of them, and check it against its terms.

    Args:
        source: ``*.onnx``, ``*.xml``, or a folder with ``model.onnx`` or ``model.xml``.
        threads: processor threads to use; None leaves it to the runtime.
        runtime: see ``choose_runtime``.

    Raises:
        ModelFileError: there is no such file, it is damaged, NextDETR did not export it, or its graph is not what its
            metadata says.
        ConfigError: its runtime is not installed, or does not open such a file.
    """
    session, contract, metadata = open_session(source, threads=threads, runtime=runtime)
    model = ExportedModel(session, contract, str(source))
    return OpenedExport(model, contract.classes, contract.image_size, str(source), metadata)


def require_network(model: str | Path) -> None:
    """Refuse to open a network of torch where torch is not installed.

    Raises:
        ConfigError: the message says what to install, and that an exported file needs none of it.
    """
    require_train(f"opening {model}", instead="or export the detector where it was trained, and name that file")


def open_any(
    model: str | Path,
    *,
    weights: str | Path | None = None,
    backbone_weights: str | Path | None = None,
    allow_partial: bool = False,
    runtime: Runtime = "auto",
    threads: int | None = None,
) -> tuple[OpenedModel | OpenedExport, list[LoadReport]]:
    """Open whatever a user names: a shipped name, a model YAML, a checkpoint or an exported file.

    Args:
        model: what the user named.
        weights: see ``open_detector``.
        backbone_weights: see ``open_detector``.
        allow_partial: see ``open_detector``.
        runtime: what opens an exported file: see ``choose_runtime``.
        threads: processor threads; for a model of torch they are the whole process's. None leaves it to the runtime.

    Raises:
        ModelFileError: it can be none of these.
        WeightsError: a file cannot be read or does not fit.
        ConfigError: weights were given for an exported file, a runtime for a model of torch, or that, or torch, is not
            installed.
    """
    if not is_exported(model):
        if runtime != "auto":
            raise ConfigError(f"{model}: {runtime} opens exported files; export the detector first (nextdetr export).")
        require_network(model)
        from nextdetr.inference.pytorch.opening import open_network

        return open_network(
            model, weights=weights, backbone_weights=backbone_weights, allow_partial=allow_partial, threads=threads
        )
    if weights is not None or backbone_weights is not None:
        raise ConfigError(
            f"{model}: an exported file has its weights inside; give --weights to the model it was made from."
        )
    return open_export(model, threads=threads, runtime=runtime), []


def _floats(values: Any) -> NDArray[np.float32]:
    return np.asarray(values, dtype=np.float32)
