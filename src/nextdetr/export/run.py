"""``nextdetr export``: record the graph, write it, open what was written in its own runtime, and compare."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from nextdetr.config import ExportConfig
from nextdetr.data.records import DetectionData
from nextdetr.data.sources import available_splits, load_data
from nextdetr.errors import ConfigError, missing_extra
from nextdetr.export.gate import LIMITS, Comparison, Limits, compare, drawn_images, latency
from nextdetr.export.graph import Traced, build_graph, trace_graph
from nextdetr.export.measure import file_bytes
from nextdetr.export.operators import count_operators, float_operators
from nextdetr.export.pt2 import ProgramModel, write_program
from nextdetr.files import write_text_atomic
from nextdetr.inference.contract import Contract
from nextdetr.inference.exported import ExportedModel, OpenedExport, open_export
from nextdetr.models.decoder import RTDETRDecoder
from nextdetr.preprocess import load_image, resize_to_tensor
from nextdetr.weights.checkpoint import OpenedModel

if TYPE_CHECKING:
    from nextdetr.export.quantize import Search

__all__ = ["ExportResult", "Score", "export"]


class Score(Protocol):
    """Scores an opened detector with COCO's metrics; the caller brings it, as this package stands beside the engine."""

    def __call__(
        self, opened: OpenedModel | OpenedExport, queries: int | None, part: DetectionData | None = None
    ) -> dict[str, float | None]:
        """Metrics on the split to score, or on these images."""
        ...


NAMES = {"onnx": "model.onnx", "openvino": "model.xml", "pt2": "model.pt2"}


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export wrote, and how it compares; ``report.json`` has the same fields.

    Attributes:
        model: what was exported.
        format, precision: see ``ExportConfig``.
        output: the folder.
        file: the exported file.
        bytes: size of the exported files.
        image_size, queries, decoder_layers: of the graph.
        compared_on: where the images of the comparison came from.
        comparison: differences of the outputs.
        limits: what was asked of them.
        metrics: ``{"before": …, "after": …}``, COCO metrics with ``--data``; empty without.
        operators: how many of each kind the file has; empty for ``pt2``.
        float_operators: how many convolutions and matrix products compute in float, by kind; of an 8-bit export only.
        seconds_per_image: medians of ``pytorch`` and ``exported``, one image at a time.
        failures: sentences, one for each limit that is not met.
        weights_licence: of the weights that the detector started from; ``none`` where it started from none.
    """

    model: str
    format: str
    precision: str
    output: str
    file: str
    bytes: int
    image_size: int
    queries: int
    decoder_layers: int
    compared_on: str
    comparison: Comparison
    limits: Limits
    metrics: dict[str, dict[str, float | None]]
    operators: dict[str, int]
    float_operators: dict[str, int]
    seconds_per_image: dict[str, float]
    failures: list[str]
    weights_licence: str

    @property
    def passed(self) -> bool:
        """Whether all limits are met."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """Return the JSON result of the command."""
        return {"command": "export", **asdict(self), "passed": self.passed}


def export(opened: OpenedModel, config: ExportConfig, *, score: Score | None = None) -> ExportResult:
    """Export a detector and compare the file with it.

    Nothing is deleted where a limit is not met; the result and ``report.json`` say which.

    Args:
        opened: the detector; left as it is.
        config: the settings.
        score: scores a detector on ``config.data``; None leaves AP out.

    Raises:
        ConfigError: a package is not installed, or a setting does not fit the model.
        ExportError: the model cannot be expressed in the format.
        DataError: the data set cannot be used.
    """
    _check_packages(config)
    reference = _reference(opened, config)
    contract = _contract(reference, config)
    folder = config.output or _folder(opened.source, config)
    path = folder / NAMES[config.format]
    graph = build_graph(reference.model, contract)
    contract, traced = graph.contract, trace_graph(graph)
    _write(traced, contract, path, config, len(reference.model.rows) - 1, score)
    exported = _reopen(path, contract)
    images, origin = _images(config, contract.image_size)
    limits = _limits(config, contract)
    queries = config.queries

    def first(batch: Tensor) -> Any:
        return reference.model(batch, queries=queries)

    found = compare(first, exported.model, images, limits.tolerance)
    metrics: dict[str, dict[str, float | None]] = {}
    if config.data is not None and score is not None:
        after = score(exported, None) if isinstance(exported, OpenedExport) else {}
        metrics = {"before": score(reference, queries), "after": after}
    decoder = reference.model.rows[-1]
    layers = decoder.eval_layer + 1 if isinstance(decoder, RTDETRDecoder) else 0
    result = ExportResult(
        opened.source, config.format, config.precision, str(folder), str(path), file_bytes(path), contract.image_size,
        contract.queries, layers, origin, found, limits, metrics,
        {} if config.format == "pt2" else count_operators(path), float_operators(path) if config.int8 else {},
        {"pytorch": latency(reference.model, images[0]), "exported": latency(exported.model, images[0])},
        _failures(found, limits, metrics), opened.metadata.get("weights_licence", "none"),
    )  # fmt: skip
    write_text_atomic(folder / "report.json", json.dumps(result.to_json(), ensure_ascii=False, indent=1) + "\n")
    return result


@dataclass(frozen=True, slots=True)
class _Program:
    """A reopened ``torch.export`` program, which ``open_export`` refuses from strangers."""

    model: nn.Module


def _write(traced: Traced, contract: Contract, path: Path, config: ExportConfig, decoder: int, score: Score | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if config.format == "pt2":
        write_program(traced, contract, path)
        return
    from nextdetr.export.onnx import write_onnx

    # Not in the user's folder, whose name may have commas: OpenVINO's converter parts a path there.
    with tempfile.TemporaryDirectory() as folder:
        target = path if config.format == "onnx" and not config.int8 else Path(folder) / "model.onnx"
        write_onnx(traced, replace(contract, precision="float32") if config.int8 else contract, target)
        if config.int8:
            from nextdetr.export.quantize import quantize

            images = _calibration(config, contract.image_size)
            quantize(target, contract, path, images, decoder, _search(config, contract, score))
        elif config.format == "openvino":
            from nextdetr.export.openvino import convert_onnx, save_openvino

            save_openvino(convert_onnx(target), contract, path)


def _reopen(path: Path, contract: Contract) -> OpenedExport | _Program:
    if path.suffix == ".pt2":
        return _Program(ExportedModel(ProgramModel(path, contract), contract, str(path)).eval())
    return open_export(path, runtime="onnxruntime" if path.suffix == ".onnx" else "openvino")


def _reference(opened: OpenedModel, config: ExportConfig) -> OpenedModel:
    """A copy of the detector on the processor, cut to the decoder layers that are asked for."""
    size = config.image_size or opened.image_size
    opened.model.check_size(size)
    model = copy.deepcopy(opened.model).cpu().float().eval()
    decoder = model.rows[-1]
    if config.decoder_layers is not None:
        present = len(decoder.decoder.layers) if isinstance(decoder, RTDETRDecoder) else 0
        if not isinstance(decoder, RTDETRDecoder) or config.decoder_layers > present:
            raise ConfigError(
                f"--decoder-layers must be from 1 to {present}, the model's own number (given: {config.decoder_layers})."
            )
        decoder.eval_layer = config.decoder_layers - 1
    return replace(opened, model=model, image_size=size)


def _contract(opened: OpenedModel, config: ExportConfig) -> Contract:
    from nextdetr import __version__

    size, model = opened.image_size, opened.model
    with torch.inference_mode():
        probe = model(torch.zeros(1, 3, size, size), queries=config.queries)
    queries, classes = probe.logits.shape[1], probe.logits.shape[2]
    details = {
        "nextdetr_version": __version__,
        "licence": model.licence or "unknown",
        "weights_licence": opened.metadata.get("weights_licence", "none"),
        "source_weights": opened.metadata.get("source_weights", "none"),
        "source": Path(opened.source).name,
        "trained": "yes" if opened.trained else "no",
        "normalisation": f"{model.normalize} (inside the graph)",
        "task": "detect",
    }
    return Contract(
        list(opened.classes), size, queries, input_type=config.input_type, layout=config.layout,
        raw=config.raw or config.portable, dynamic=config.dynamic, portable=config.portable, precision=config.precision,
        winograd=config.can_winograd if config.winograd is None else config.winograd,
        max_detections=min(300, queries * classes), details=details,
    )  # fmt: skip


def _images(config: ExportConfig, size: int) -> tuple[list[Tensor], str]:
    if config.data is None:
        return drawn_images(config.images, size), "drawn pictures (give --data to compare on your own)"
    records = load_data(config.data, config.split).records
    step = max(1, len(records) // config.images)
    chosen = records[::step][: config.images]
    return [resize_to_tensor(load_image(record.path), size) for record in chosen], f"{config.data}, {config.split}"


def _search(config: ExportConfig, contract: Contract, score: Score | None) -> Search | None:
    """What to keep in float is searched on the validation part, whichever is scored in the end."""
    if score is None or config.data is None:
        return None
    from nextdetr.export.quantize import Search

    split = "val" if "val" in available_splits(config.data) else config.split

    classes = contract.classes if contract.details["trained"] == "yes" else None
    data = load_data(config.data, split, classes=classes)  # once: the search scores again and again

    def accuracy(opened: OpenedExport, numbers: Sequence[int]) -> float:
        return score(opened, None, replace(data, records=[data.records[number] for number in numbers]))["AP"] or 0.0

    return Search(accuracy, len(data.records), _limits(config, contract).accuracy_drop)


def _calibration(config: ExportConfig, size: int) -> list[Tensor]:
    """Images of the training part, or of the scored one where there is no other."""
    assert config.data is not None
    split = "train" if "train" in available_splits(config.data) else config.split
    records = load_data(config.data, split).records
    step = max(1, len(records) // config.calibration_images)
    chosen = records[::step][: config.calibration_images]
    return [resize_to_tensor(load_image(record.path), size) for record in chosen]


def _limits(config: ExportConfig, contract: Contract) -> Limits:
    base = LIMITS[contract.precision]
    return Limits(
        base.tolerance if config.tolerance is None else config.tolerance,
        base.matched if config.tolerance is None else max(base.matched, 0.95),
        base.accuracy_drop if config.accuracy_drop is None else config.accuracy_drop,
    )


def _failures(found: Comparison, limits: Limits, metrics: dict[str, dict[str, float | None]]) -> list[str]:
    failures = []
    if not found.finite:
        failures.append("the exported model's outputs are not finite (NaN or infinity).")
    if found.matched < limits.matched:
        failures.append(
            f"{found.matched:.1%} of {found.detections} detections have a counterpart within {limits.tolerance:g}; the "
            f"limit is {limits.matched:.0%}."
        )
    before, after = (metrics.get(part, {}).get("AP") for part in ("before", "after"))
    if before is not None and after is not None and before - after > limits.accuracy_drop:
        failures.append(f"AP fell from {before:.4f} to {after:.4f}; the limit is a drop of {limits.accuracy_drop:g}.")
    return failures


def _folder(source: str, config: ExportConfig) -> Path:
    suffix = config.format + ("" if config.precision == "float32" else f"_{config.precision}")
    path = Path(source)
    parent = path.parent if path.is_file() else Path("runs") / "export"
    return parent / f"{path.stem}_{suffix}"


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return find_spec(package) is not None


def _check_packages(config: ExportConfig) -> None:
    """Refuse at once, rather than after minutes of work, where a package is missing.

    Raises:
        ConfigError: the message names the package and its installation.
    """
    needed = [] if config.format == "pt2" else ["onnx", "onnxscript"]
    needed += {"onnx": ["onnxruntime"], "openvino": ["openvino"], "pt2": []}[config.format]
    for package in needed + (["nncf"] if config.int8 else []):
        if not is_installed(package):
            raise missing_extra(package, "export", f"the export to {config.format}")
