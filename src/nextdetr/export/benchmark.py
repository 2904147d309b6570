"""``nextdetr benchmark``: every runtime, precision, thread count and batch size, against the machine's limits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nextdetr.config import BenchmarkConfig, ExportConfig
from nextdetr.data.raw import plural
from nextdetr.detector_files import detector_name
from nextdetr.errors import ConfigError
from nextdetr.export.advice import Advice, Precision, advise
from nextdetr.export.folders import float_beside
from nextdetr.export.measure import Ceilings, Kind, Task, ceilings, file_bytes, measure, preprocessing
from nextdetr.extras import is_installed
from nextdetr.files import atomic_write, file_if_done, new_directory_if_used, write_text_atomic
from nextdetr.inference.contract import Contract
from nextdetr.inference.exported import OpenedExport, open_any, open_export
from nextdetr.inference.header import exported_file, read_metadata
from nextdetr.inference.opened import at_latency
from nextdetr.inference.speed import Setting, SpeedPoint
from nextdetr.inference.times import model_digest

if TYPE_CHECKING:
    from nextdetr.export.judge import Score
    from nextdetr.weights.checkpoint import OpenedModel

__all__ = ["BenchmarkResult", "Row", "benchmark"]

RUNTIMES: dict[str, Literal["onnxruntime", "openvino"]] = {"onnx": "onnxruntime", "openvino": "openvino"}


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement; times in seconds per step, memory and size in bytes, AP as a fraction.

    Attributes:
        model: what was measured.
        runtime: runtime, and whether folded.
        precision: arithmetic.
        threads: of the runtime.
        batch: images per step.
        median: median time per step.
        p95: 95th percentile of the time per step.
        images_per_second: from the median.
        memory: peak memory of the process.
        load: seconds to open the file.
        bytes: size of the file.
        attainable: arithmetic per second relative to the machine's limit; None if unknown.
        AP: AP on ``--data``; None without.
    """

    model: str
    runtime: str
    precision: str
    threads: int
    batch: int
    median: float
    p95: float
    images_per_second: float
    memory: float
    load: float
    bytes: int
    attainable: float | None
    AP: float | None


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """What ``benchmark`` returns and writes as ``benchmark.json``.

    Attributes:
        output: the folder.
        image_size: side of the square input in pixels.
        gflop: GFLOP per image; None for an exported file, where it is unknown.
        ceilings: limits of the machine by number of threads.
        seconds_preprocess: time to preprocess a decoded image of 1920 × 1080.
        rows: the measurements.
        points: points of its speed table; input of ``--latency-of``, if measured here.
        model, model_digest: the model; the digest identifies its model file, and is empty for an exported file.
        deploy: by number of threads, the recommended file on this machine, if both float32 and 8 bits were measured.
        points_measured: whether the points were measured here, with ``--points``, or are those of the model's table.
    """

    output: str
    image_size: int
    gflop: float | None
    ceilings: dict[str, Ceilings]
    seconds_preprocess: float
    rows: list[Row]
    points: list[SpeedPoint]
    model: str
    model_digest: str | None
    deploy: dict[str, Advice]
    points_measured: bool

    def to_json(self) -> dict[str, Any]:
        """Return the JSON result of the command."""
        return {"command": "benchmark", **asdict(self)}


@dataclass(frozen=True, slots=True)
class _Candidate:
    label: str
    runtime: str
    precision: str
    kind: Kind
    source: Path
    batches: tuple[int, ...]
    score: float | None


def benchmark(
    model: str,
    config: BenchmarkConfig,
    *,
    weights: str | Path | None = None,
    allow_partial: bool = False,
    score: Score | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> BenchmarkResult:
    """Measure a detector in every installed runtime.

    Args:
        model: a checkpoint, a shipped name, a model YAML or an exported file.
        config: the settings.
        weights: detector weights in any known layout.
        allow_partial: accept weights that leave part of the model at its initial values.
        score: scores an opened detector on ``config.data``; None skips AP.
        tell: called with a line before each measurement.

    Raises:
        NextDETRError: the model cannot be opened or exported, a package for that is missing, or an exported file was given
            with ``points`` or another ``precision`` than its own.
    """
    opened, reports = open_any(model, weights=weights, allow_partial=allow_partial)
    if config.points and isinstance(opened, OpenedExport):
        raise ConfigError(
            f"{opened.source}: --points measures the settings of a checkpoint, and an exported file has one: name the "
            "checkpoint, or leave --points out."
        )
    if not isinstance(opened, OpenedExport):
        _check_exports(config)
    elif "precision" in config.model_fields_set and config.precision != (opened.metadata["precision"],):
        raise ConfigError(
            f"{opened.source}: its precision is {opened.metadata['precision']}, and --precision is for exports made here: "
            "name the checkpoint, or leave --precision out."
        )
    for report in reports:
        tell(report.text())
    queries = None
    if config.latency is not None:
        opened, queries = at_latency(opened, config.latency, config.latency_of)
    size = config.image_size or opened.image_size
    opened.model.check_size(size)
    opened = replace(opened, image_size=size)  # scored, exported and measured at the same size
    with (
        new_directory_if_used(config.output or Path("runs") / "benchmark") as output,
        file_if_done(output / "weights.safetensors") as file,
    ):
        return _measure(model, opened, config, output, queries, score, tell, save=None if weights is None else file)


def _measure(
    model: str,
    opened: OpenedModel | OpenedExport,
    config: BenchmarkConfig,
    output: Path,
    queries: int | None,
    score: Score | None,
    tell: Callable[[str], None],
    *,
    save: Path | None,
) -> BenchmarkResult:
    """Measure an opened detector, and write the files of ``output``; its weights, too, as the file ``save`` if given."""
    size, label, source = opened.image_size, detector_name(model), opened.source
    point, gflop, points, digest = None, None, [], None
    if not isinstance(opened, OpenedExport):
        from nextdetr.export.speed import points_of
        from nextdetr.models.cut import evaluated_layers
        from nextdetr.models.summary import count_gflop
        from nextdetr.weights.checkpoint import save_opened

        if queries is not None:
            point = Setting(opened.image_size, queries, evaluated_layers(opened.model))
        if save is not None:  # each measurement opens it in its own process
            source = str(save_opened(save, opened))
        gflop, digest = count_gflop(opened.model, size), model_digest(opened.model.text)
        points = points_of(opened, again=config.points, threads=config.threads[0], tell=tell)
    found = list(_candidates(Path(source), label, opened, config, size, output, score, tell, point))
    found += [_Candidate(peer.stem, "onnxruntime", "-", "foreign", peer, config.batch, None) for peer in config.peers]
    limits = {threads: ceilings(threads) for threads in config.threads}
    rows = []
    for threads in config.threads:
        for candidate in found:
            for batch in candidate.batches:
                size_text = f"{plural(threads, 'thread')}, {plural(batch, 'image')}"
                tell(f"measuring {candidate.runtime} {candidate.precision}, {size_text}")
                rows.append(_row(candidate, size, batch, threads, config.seconds, gflop, limits[threads], point))
    named = {str(threads): limit for threads, limit in limits.items()}
    advice = _deploy(rows, found)
    result = BenchmarkResult(
        str(output), size, gflop, named, preprocessing(size), rows, points, label, digest, advice, config.points
    )
    write_text_atomic(output / "benchmark.json", json.dumps(result.to_json(), indent=1) + "\n")
    if any(row.AP is not None for row in rows):
        _draw(rows, output / "benchmark.png")
    return result


def _candidates(
    source: Path,
    label: str,
    opened: OpenedModel | OpenedExport,
    config: BenchmarkConfig,
    size: int,
    output: Path,
    score: Score | None,
    tell: Callable[[str], None],
    point: Setting | None,
) -> list[_Candidate]:
    def accuracy(detector: OpenedModel | OpenedExport) -> float | None:
        queries = None if point is None or isinstance(detector, OpenedExport) else point.queries
        return None if score is None or config.data is None else score(detector, queries).get("AP")

    if isinstance(opened, OpenedExport):
        file = exported_file(source)
        names = [
            name for name in RUNTIMES.values() if is_installed(name) and (name == "openvino" or file.suffix == ".onnx")
        ]
        precision, scored = opened.metadata["precision"], accuracy(opened)
        given = [_Candidate(label, name, precision, name, file, config.batch, scored) for name in names]
        rival = float_beside(file) if precision == "int8" else None
        if rival is None:
            return given
        tell(f"beside it: {rival}")
        scored = None if score is None or config.data is None else accuracy(open_export(rival))
        beside = [_Candidate(rival.parent.name, name, "float32", name, rival, config.batch, scored) for name in names]
        return given + beside
    from nextdetr.export.run import export

    before = accuracy(opened)
    found = [
        _Candidate(label, "pytorch", "float32", "pytorch", source, config.batch, before),
        _Candidate(label, "pytorch fused", "float32", "fused", source, config.batch, before),
    ]
    for kind, package in RUNTIMES.items():
        for precision in config.precision:
            lacking = _lacking(package, precision, config)
            if lacking:
                tell(f"left out: {kind} {precision} (no {lacking})")
                continue
            tell(f"exporting to {kind}, {precision}")
            settings = ExportConfig(
                format=kind, half=precision == "half", int8=precision == "int8", image_size=size, data=config.data,
                split=config.split, images=2, output=output / f"{kind}_{precision}",
                queries=None if point is None else point.queries, decoder_layers=None if point is None else point.layers,
            )  # fmt: skip
            done = export(opened, settings)
            after = None if before is None else accuracy(open_any(done.file, runtime=package)[0])
            found.append(_Candidate(label, package, precision, package, Path(done.file), config.batch, after))
    return found


def _lacking(package: str, precision: str, config: BenchmarkConfig) -> str:
    """Return what an export is left out for want of; "" if it is not."""
    if not is_installed(package):
        return package
    return "--data" if precision == "int8" and config.data is None else ""


def _check_exports(config: BenchmarkConfig) -> None:
    """Fail immediately, rather than after the first exports and measurements, if a package for one of them is missing.

    Raises:
        ConfigError: the message names the package and how to install it.
    """
    from nextdetr.export.run import check_packages

    for kind, package in RUNTIMES.items():
        for precision in config.precision:
            if not _lacking(package, precision, config):
                check_packages(kind, int8=precision == "int8")


def _row(
    candidate: _Candidate,
    size: int,
    batch: int,
    threads: int,
    seconds: float,
    gflop: float | None,
    limit: Ceilings,
    point: Setting | None,
) -> Row:
    cut = (None, None) if point is None else (point.queries, point.layers)
    taken = measure(Task(candidate.kind, str(candidate.source), size, batch, threads, seconds, *cut))
    share = None if gflop is None or candidate.kind == "foreign" else gflop * batch / taken["median"] / limit.gflops
    return Row(
        candidate.label, candidate.runtime, candidate.precision, threads, batch, taken["median"], taken["p95"],
        batch / taken["median"], taken["memory"], taken["load"],
        file_bytes(candidate.source) if candidate.source.is_file() else 0, share, candidate.score,
    )  # fmt: skip


def _deploy(rows: list[Row], candidates: list[_Candidate]) -> dict[str, Advice]:
    """Return advice for each number of threads, from the rows with one image per step."""
    passed: dict[Precision, list[str]] = {"float32": [], "int8": []}
    for candidate in candidates:
        if candidate.kind in RUNTIMES.values() and (precision := _compared(candidate.precision)) is not None:
            named = Contract.from_metadata(read_metadata(candidate.source), str(candidate.source)).passed_runtimes
            if named is None or candidate.kind in named:
                passed[precision].append(candidate.kind)
    found = {}
    for threads in dict.fromkeys(row.threads for row in rows):
        seconds: dict[Precision, dict[str, float]] = {"float32": {}, "int8": {}}
        for row in rows:
            precision = _compared(row.precision)
            if precision and row.runtime in RUNTIMES.values() and (row.threads, row.batch) == (threads, 1):
                seconds[precision][row.runtime] = row.median
        advice = advise(seconds, passed, threads)
        if advice is not None:
            found[str(threads)] = advice
    return found


def _compared(precision: str) -> Precision | None:
    return "int8" if precision == "int8" else "float32" if precision == "float32" else None


def _draw(rows: list[Row], path: Path) -> None:
    """Plot accuracy against latency, one point per row with one image."""
    from matplotlib.figure import Figure  # no pyplot: nothing global, no window

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        if row.AP is not None and row.batch == min(other.batch for other in rows):
            axes.plot(1000 * row.median, row.AP, "o", label=f"{row.runtime} {row.precision}, {row.threads} threads")
    axes.set(xlabel="milliseconds a step", ylabel="AP", xlim=(0, None))
    axes.legend(fontsize="small")
    with atomic_write(path) as temporary:
        figure.savefig(temporary)
