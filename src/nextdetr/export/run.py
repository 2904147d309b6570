"""``nextdetr export``: trace the graph, write it, open the file in its own runtime, and compare."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nextdetr.confidence import CALIBRATION
from nextdetr.config import ExportConfig
from nextdetr.data.raw import plural
from nextdetr.data.records import ImageRecord
from nextdetr.data.seen import TRAINED_ON
from nextdetr.data.sources import available_splits, load_data
from nextdetr.data.split import SetAside, load_scored
from nextdetr.detector_files import detector_name
from nextdetr.errors import ConfigError, missing_extra
from nextdetr.export.advice import Advice, compare_files
from nextdetr.export.folders import NAMES, REPORT, export_folder
from nextdetr.export.gate import LIMITS, Comparison, Limits, drawn_images, latency
from nextdetr.export.graph import Traced, build_graph, trace_graph
from nextdetr.export.judge import Score, Verdict, judge
from nextdetr.export.measure import file_bytes
from nextdetr.export.operators import count_operators, float_operators
from nextdetr.export.progress import Progress, silent
from nextdetr.export.pt2 import write_program
from nextdetr.export.stamp import stamp_passed
from nextdetr.export.web.folder import WebFolder, write_folder
from nextdetr.export.web.runtime import runtime_files
from nextdetr.extras import is_installed
from nextdetr.files import directory_if_used, write_text_atomic
from nextdetr.inference.contract import UNJUDGED, Contract
from nextdetr.inference.exported import OpenedExport
from nextdetr.inference.opened import stored_bits
from nextdetr.inference.times import pick
from nextdetr.models.decoder import RTDETRDecoder
from nextdetr.preprocess import Reading, load_image
from nextdetr.tensors import resize_to_tensor
from nextdetr.weights.checkpoint import FAMILIARITY, OpenedModel
from nextdetr.weights.remote import public_names

if TYPE_CHECKING:
    from nextdetr.export.quantize import Search

__all__ = ["ExportResult", "Score", "check_packages", "export", "write_graph"]


#: Checkpoint metadata that the graph replaces, or that need backbone maps, which it does not output.
NOT_CARRIED = ("model", "classes", "image_size", "format_version", FAMILIARITY)


@dataclass(frozen=True, slots=True)
class ExportResult:
    """Result of an export; ``report.json`` has the same fields.

    Attributes:
        model: the exported model.
        format, precision: see ``ExportConfig``.
        output: the folder.
        file: the exported file.
        bytes: size of the exported files.
        image_size, queries, decoder_layers: of the graph.
        compared_on: source of the images for the comparison.
        comparison: differences of the outputs.
        limits: limits that they must meet.
        metrics: ``{"before": …, "after": …}``, COCO metrics with ``--data``; empty without.
        operators: number of operators by kind; empty for ``pt2``.
        float_operators: number of convolutions and matrix products computed in float, by kind; only for an 8-bit export.
        seconds_per_image: medians of ``pytorch`` and ``exported``, one image at a time.
        failures: a sentence for each limit that is not met in the format's own runtime.
        runtimes: results in each installed runtime that can open the file, by name; the format's own is first. ``auto``
            chooses from those that passed, which are listed in the file's metadata.
        weights_licence: licence of the weights that the detector started from; ``none`` if it started from none.
        deploy: which file to deploy on this machine, float32 or 8 bits, by measurement; only for an 8-bit export that is
            not for the browser.
        web: the page around the file, for the format ``web`` only.
        weights: weights that were given beside the model, with their folders; ``none`` for its own.
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
    runtimes: dict[str, Verdict]
    weights_licence: str
    deploy: Advice | None = None
    web: WebFolder | None = None
    weights: str = "none"

    @property
    def passed(self) -> bool:
        """Whether all limits are met in the format's own runtime."""
        return not self.failures

    @property
    def passed_runtimes(self) -> list[str]:
        """The runtimes in which all limits are met."""
        return [name for name, verdict in self.runtimes.items() if verdict.passed]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON result of the command."""
        return {
            "command": "export", **asdict(self), "passed": self.passed, "passed_runtimes": self.passed_runtimes,
        }  # fmt: skip


def export(
    opened: OpenedModel, config: ExportConfig, *, score: Score | None = None, progress: Progress = silent
) -> ExportResult:
    """Export a detector and compare the file with it.

    Nothing is deleted if a limit is not met; the result and ``report.json`` say which.

    Args:
        opened: the detector; not changed.
        config: the settings.
        score: scores a detector on ``config.data``; None skips AP.
        progress: shows how far the calibration of 8 bits is.

    Raises:
        ConfigError: a package is not installed, or a setting does not fit the model.
        ExportError: the model cannot be expressed in the format.
        DataError: the data set cannot be used.
    """
    check_packages(config.format, int8=config.int8)
    web = config.format == "web"
    runtime = runtime_files(config.runtime_dir) if web else {}  # first: if it is unavailable, fail before minutes of work
    config = _at_latency(opened, config)
    reference = _reference(opened, config)
    # Until it is checked the file says so, whatever happens to this process.
    graph = build_graph(reference.model, replace(_contract(reference, config), passed_runtimes=(UNJUDGED,)))
    contract = graph.contract
    images, origin = _images(config, contract)  # first: a data set that is refused costs no time
    calibration = _calibration(config, contract) if config.int8 else []
    contract = replace(contract, details=contract.details | _calibrated_on(config, calibration))
    folder = export_folder(opened.source, config, contract, _given(opened))
    path = folder / NAMES[config.format]
    traced = trace_graph(graph)
    limits, original = _limits(config, contract), partial(reference.model, queries=config.queries)
    # Not in the user's folder, whose name may contain commas: OpenVINO's converter splits paths there.
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work,  # Windows keeps what a runtime still maps
        directory_if_used(folder),
    ):
        plain = _write(
            traced, contract, path, config, len(reference.model.rows) - 1, score, Path(work), progress, calibration
        )  # fmt: skip
        before = score(reference, config.queries) if config.data is not None and score is not None else {}
        found = judge(
            path, contract, original, images, limits, before,
            None if config.data is None or score is None else lambda opened: score(opened, None),
        )  # fmt: skip
        passed = [name for name, verdict in found.items() if verdict.passed]
        deploy = None
        if config.int8 and not web:
            rival = _float_rival(reference, config, plain)
            deploy = compare_files({"float32": rival, "int8": path}, contract, images[0].numpy(), {"int8": passed})
    own = next(iter(found.values()))
    result = ExportResult(
        opened.source, config.format, config.precision, str(folder), str(path), file_bytes(path), contract.image_size,
        contract.queries, int(contract.details["decoder_layers"]), origin, own.comparison, limits,
        {"before": before, "after": own.metrics} if before else {},
        {} if config.format == "pt2" else count_operators(path), float_operators(path) if config.int8 else {},
        {"pytorch": latency(original, images[0]), "exported": own.seconds_per_image},
        own.failures, found, opened.metadata.get("weights_licence", "none"), deploy, weights=_given(opened),
    )  # fmt: skip
    stamp_passed(path, passed)
    page = write_folder(path, contract, runtime, detector_name(opened.source), single=config.single_file) if web else None
    result = replace(result, bytes=file_bytes(path), web=page)  # of the final file
    write_text_atomic(folder / REPORT, json.dumps(result.to_json(), ensure_ascii=False, indent=1) + "\n")
    return result


def _given(opened: OpenedModel) -> str:
    return opened.metadata.get("source_weights", "none") if opened.given else "none"


def write_graph(opened: OpenedModel, config: ExportConfig, path: Path) -> None:
    """Write a detector's float32 graph as an ONNX file without any check, for measurements."""
    from nextdetr.export.onnx import write_onnx

    reference = _reference(opened, config)
    graph = build_graph(reference.model, _contract(reference, config))
    write_onnx(trace_graph(graph), graph.contract, path)


def _write(
    traced: Traced, contract: Contract, path: Path, config: ExportConfig, decoder: int, score: Score | None, work: Path,
    progress: Progress, calibration: Sequence[ImageRecord],
) -> Path:  # fmt: skip
    """Write ``path``, and return the graph that was written or quantised, as ONNX; it is in the folder ``work``."""
    if config.format == "pt2":
        write_program(traced, contract, path)
        return path
    from nextdetr.export.onnx import write_onnx

    target = path if config.format in ("onnx", "web") and not config.int8 else work / "model.onnx"
    write_onnx(traced, replace(contract, precision="float32") if config.int8 else contract, target)
    if config.int8:
        from nextdetr.export.quantize import quantize

        images = _read(calibration, contract)
        quantize(target, contract, path, images, decoder, _search(config, contract, score), progress)
    elif config.format == "openvino":
        from nextdetr.export.openvino import convert_onnx, save_openvino

        save_openvino(convert_onnx(target), contract, path)
    return target


def _at_latency(opened: OpenedModel, config: ExportConfig) -> ExportConfig:
    """Replace ``latency`` by the settings that it stands for."""
    if config.latency is None:
        return config
    point = pick(opened.metadata, config.latency, opened.source, config.latency_of)
    chosen = {"image_size": point.image_size, "queries": point.queries, "decoder_layers": point.layers}
    return config.model_copy(update={**chosen, "latency": None, "latency_of": None})


def _float_rival(reference: OpenedModel, config: ExportConfig, plain: Path) -> Path:
    """Return the float32 file that the same export without ``--int8`` would give, to be timed beside the 8-bit one.

    ``plain`` is the graph that was quantised; it is that file unless float32 has its own form, such as Winograd.
    """
    from nextdetr.export.onnx import write_onnx

    usual = config.model_copy(update={"int8": False})
    graph = build_graph(reference.model, _contract(reference, usual))
    if not graph.contract.winograd:
        return plain
    return write_onnx(trace_graph(graph), graph.contract, plain.with_name("float32.onnx"))


def _reference(opened: OpenedModel, config: ExportConfig) -> OpenedModel:
    """Return a copy of the detector on the CPU, cut to the requested decoder layers."""
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
    decoder = model.rows[-1]
    # Everything the checkpoint knows is kept (licences, the data set's own ids, …), except what the graph replaces.
    known = {name: value for name, value in opened.metadata.items() if name not in NOT_CARRIED}
    if config.format == "web":
        for private in (TRAINED_ON, "image_ids"):  # it is for anyone to see
            known.pop(private, None)
    changes = (config.image_size, config.queries, config.decoder_layers, config.latency)
    if config.precision != "float32" or any(value is not None for value in changes):
        known.pop(CALIBRATION, None)  # its bound holds for the original scores
    details = {
        "weights_licence": "none", **known,
        "source_weights": public_names(known.get("source_weights", "none")),
        "nextdetr_version": __version__,
        "licence": model.licence or "unknown",
        "source": Path(opened.source).name,
        "trained": "yes" if opened.trained else "no",
        "normalisation": f"{model.normalize} (inside the graph)",
        "decoder_layers": str(decoder.eval_layer + 1 if isinstance(decoder, RTDETRDecoder) else 0),
        "task": "detect",
    }  # fmt: skip
    web = config.format == "web"  # pixel bytes as from a canvas, and a graph for any backend
    portable = config.portable or web
    return Contract(
        list(opened.classes), size, queries, input_type="uint8" if web else config.input_type,
        layout="nhwc" if web else config.layout, step=model.stride,
        raw=config.raw or portable, dynamic=config.dynamic, portable=portable, precision=config.precision,
        winograd=config.can_winograd if config.winograd is None else config.winograd,
        max_detections=min(300, queries * classes), details=details,
    )  # fmt: skip


def _images(config: ExportConfig, contract: Contract) -> tuple[list[Tensor], str]:
    if config.data is None:
        return drawn_images(config.images, contract.image_size), "random images (give --data to compare on your own)"
    # With the classes, so that a data set of others is refused before anything is written
    data = load_scored(config.data, config.split, contract.details, classes=_known_classes(contract))
    step = max(1, len(data.records) // config.images)
    chosen = data.records[::step][: config.images]
    return _read(chosen, contract), f"{config.data}, {config.split} ({data.recognised})"


def _known_classes(contract: Contract) -> list[str] | None:
    """Return the classes that the detector was trained on; None for random weights."""
    return list(contract.classes) if contract.details["trained"] == "yes" else None


def _search(config: ExportConfig, contract: Contract, score: Score | None) -> Search | None:
    """Build the search for layers to keep in float, on the validation split, whichever is scored in the end."""
    if score is None or config.data is None:
        return None
    from nextdetr.export.quantize import Search

    there, aside = available_splits(config.data), SetAside.from_metadata(contract.details)
    split = "val" if "val" in there or aside is not None else config.split

    data = load_scored(config.data, split, contract.details, classes=_known_classes(contract))  # once for all scores

    def accuracy(opened: OpenedExport, numbers: Sequence[int]) -> float:
        return score(opened, None, replace(data, records=[data.records[number] for number in numbers]))["AP"] or 0.0

    return Search(accuracy, len(data.records), _limits(config, contract).accuracy_drop)


def _calibration(config: ExportConfig, contract: Contract) -> list[ImageRecord]:
    """Return images to calibrate on, of the training split, or of the scored one if there is no other."""
    assert config.data is not None
    split = "train" if "train" in available_splits(config.data) else config.split
    records = load_data(config.data, split).records
    if split == "train" and "val" not in available_splits(config.data) and SetAside.from_metadata(contract.details):
        held_out = {record.path for record in load_scored(config.data, "val", contract.details).records}
        records = [record for record in records if record.path not in held_out]
    step = max(1, len(records) // config.calibration_images)
    return records[::step][: config.calibration_images]


def _calibrated_on(config: ExportConfig, images: Sequence[ImageRecord]) -> dict[str, str]:
    """Return the metadata about the images of a calibration; empty without any."""
    if config.data is None or not images:
        return {}
    return {"calibrated_on": f"{plural(len(images), 'image')} of {Path(config.data).resolve().name}"}


def _read(records: Sequence[ImageRecord], contract: Contract) -> list[Tensor]:
    reading = Reading(bits=stored_bits(contract.details))
    return [resize_to_tensor(load_image(record.path, reading), contract.image_size) for record in records]


def _limits(config: ExportConfig, contract: Contract) -> Limits:
    base = LIMITS[contract.precision]
    return Limits(
        base.tolerance if config.tolerance is None else config.tolerance,
        base.matched if config.tolerance is None else max(base.matched, 0.95),
        base.accuracy_drop if config.accuracy_drop is None else config.accuracy_drop,
    )


def check_packages(kind: str, *, int8: bool) -> None:
    """Fail immediately, rather than after minutes of work, if a package is missing.

    Args:
        kind: the format.
        int8: whether it is to be in 8 bits.

    Raises:
        ConfigError: the message names the package and how to install it.
    """
    needed = [] if kind == "pt2" else ["onnx", "onnxscript"]
    needed += {"onnx": ["onnxruntime"], "openvino": ["openvino"], "pt2": [], "web": ["onnxruntime", "platformdirs"]}[kind]
    for package in needed + (["nncf"] if int8 else []):
        if not is_installed(package):
            raise missing_extra(package, "export", f"the export to {kind}")
