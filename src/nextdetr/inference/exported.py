"""Exported files as detectors: opened by their ending, called like the network they were made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nextdetr.boxes import xyxy_to_cxcywh
from nextdetr.errors import ConfigError, ModelFileError
from nextdetr.inference.contract import CHANGED, Contract
from nextdetr.inference.header import is_exported
from nextdetr.inference.runtimes import Runtime, choose_runtime, open_session
from nextdetr.inference.session import Session
from nextdetr.structures import DetectorOutput
from nextdetr.weights.checkpoint import OpenedModel
from nextdetr.weights.report import LoadReport
from nextdetr.weights.start import open_detector

__all__ = [
    "ExportedModel",
    "OpenedExport",
    "Runtime",
    "as_input",
    "choose_runtime",
    "is_exported",
    "open_any",
    "open_export",
]


class ExportedModel(nn.Module):
    """An exported graph that is called like ``DetectionModel``, so that prediction and scoring have one way for all.

    Args:
        session: the file, opened.
        contract: its terms.
        source: its path, for messages.
    """

    def __init__(self, session: Session, contract: Contract, source: str) -> None:
        super().__init__()
        self.session, self.contract, self.source = session, contract, source
        self.num_classes = len(contract.classes)

    def check_size(self, height: int, width: int | None = None) -> None:
        """Check that the file takes images of this size: ``--image-size``, or height and width, in pixels.

        Raises:
            ConfigError: it was exported for others; the message says for which.
        """
        self.contract.check_size(height, height if width is None else width, self.source)

    def forward(self, images: Tensor, targets: None = None, *, queries: int | None = None) -> DetectorOutput:
        """Detect.

        Args:
            images: [B, 3, S, S] float RGB, 0 to 1.
            targets: none; the file cannot be trained.
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
        logits = torch.cat([output.logits for output in results]).to(images.device)
        return DetectorOutput(logits, torch.cat([output.boxes for output in results]).to(images.device))

    def _detect(self, pixels: NDArray[Any]) -> DetectorOutput:
        if self.contract.raw:
            raw = self.session.run({"images": pixels})
            self._refuse_unless(not np.isnan(raw["logits"]).any())
            return DetectorOutput(_tensor(raw["logits"]), _tensor(raw["boxes"]))
        # An image of 1 by 1 pixel: boxes come out as fractions, and ``postprocess`` scales them as it does for all.
        unit = np.ones((len(pixels), 2), np.int64)
        found = self.session.run({"images": pixels, "sizes": unit})
        scores, labels = _tensor(found["scores"]), torch.from_numpy(np.asarray(found["labels"])).long()
        self._refuse_unless(not scores.numel() or bool((scores > 0).any(dim=1).all()))  # NaN, too, is not above 0
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ModelFileError(
                f"{self.source}: it returned the class {int(labels.max())}, but names {self.num_classes}; {CHANGED}"
            )
        logits = torch.full((*scores.shape, self.num_classes), -torch.inf)
        logits.scatter_(2, labels.unsqueeze(-1), scores.logit().unsqueeze(-1))
        return DetectorOutput(logits, xyxy_to_cxcywh(_tensor(found["boxes"])))

    def _refuse_unless(self, sound: bool) -> None:
        """Refuse outputs that are no scores: a graph gives what is not a number the score 0, the lowest there is."""
        if not sound:
            raise ModelFileError(
                f"{self.source}: in {self.session.name}, what it computes is not a number (NaN), so it finds nothing: "
                "export the model again, and without --half if it was given."
            )


def as_input(images: Tensor, contract: Contract) -> NDArray[Any]:
    """Return [B, 3, S, S] fractions as a graph takes them; exact for pictures of 8 bits."""
    pixels = images.float().cpu().numpy()
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
    model = ExportedModel(session, contract, str(source)).eval()
    return OpenedExport(model, contract.classes, contract.image_size, str(source), metadata)


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
        ConfigError: weights were given for an exported file, a runtime for a model of torch, or it is not installed.
    """
    if not is_exported(model):
        if runtime != "auto":
            raise ConfigError(f"{model}: {runtime} opens exported files; export the detector first (nextdetr export).")
        if threads is not None:
            torch.set_num_threads(threads)
        return open_detector(model, weights=weights, backbone_weights=backbone_weights, allow_partial=allow_partial)
    if weights is not None or backbone_weights is not None:
        raise ConfigError(
            f"{model}: an exported file has its weights inside; give --weights to the model it was made from."
        )
    return open_export(model, threads=threads, runtime=runtime), []


def _tensor(values: Sequence[float] | NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
