"""``nextdetr export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from nextdetr.cli.common import AllowPartial, Json, Verbose, Weights, print_json, say, settings, tell_point, tell_reports
from nextdetr.config import ExportConfig

if TYPE_CHECKING:
    from nextdetr.export.web.folder import WebFolder

__all__ = ["GATE_NOT_MET", "export"]

GATE_NOT_MET = 3


def export(
    model: Annotated[str, Parameter(help="A checkpoint, a model YAML or a shipped name.")],
    *,
    options: Annotated[ExportConfig | None, Parameter(name="*")] = None,
    weights: Weights = None,
    allow_partial: AllowPartial = False,
    json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Write a detector for another runtime, open it there, and compare it with the original; exit code 3 if it differs.

    Example: `nextdetr export runs/nextdetr-atto-photos/best.safetensors --format openvino --data photos`.
    """
    merged = settings(ExportConfig, options)
    from nextdetr.detector import Detector

    given = merged.model_dump(exclude={"format"})
    detector = Detector(model, weights=weights, allow_partial=allow_partial)
    tell_reports(detector.load_reports)
    tell_point(detector.opened, merged.latency, merged.latency_of)
    result = detector.export(merged.format, quiet=json, **given)
    code = 0 if result.passed else GATE_NOT_MET
    if json:
        print_json(result.to_json())
        return code
    from nextdetr.data.raw import plural

    found, seconds = result.comparison, result.seconds_per_image
    say(f"{result.file}  ({result.bytes / 1e6:.1f} MB, {result.precision}, {result.image_size} px)")
    say(f"  compared on           {plural(found.images, 'image')}: {result.compared_on}")
    say(f"  detections matched    {found.matched:.1%} of {found.detections}")
    say(f"  largest difference    box {found.box:.2g} of the image, score {found.score:.2g}")
    say(f"  one image             {1000 * seconds['exported']:.1f} ms; PyTorch {1000 * seconds['pytorch']:.1f} ms")
    for name in ("AP", "AP50"):
        values = [result.metrics.get(part, {}).get(name) for part in ("before", "after")]
        if None not in values:
            say(f"  {name:<21} {values[0]:.4f} before, {values[1]:.4f} after")
    licence = result.weights_licence
    say(f"  licence of weights    {'none, as no published weights are in it' if licence == 'none' else licence}")
    if merged.portable and result.operators:
        say("  operators             " + ", ".join(f"{count} {kind}" for kind, count in result.operators.items()))
    if result.float_operators:
        say("  in float              " + ", ".join(f"{count} {kind}" for kind, count in result.float_operators.items()))
    for failure in result.failures:
        say(f"  NOT MET: {failure}")
    for name, verdict in list(result.runtimes.items())[1:]:
        say(f"  in {name:<18} {1000 * verdict.seconds_per_image:.1f} ms; {verdict.comparison.matched:.1%} matched")
        for failure in verdict.failures:
            say(f"  not met in {name}, which will not be chosen for this file: {failure}")
    if result.web is not None:
        _say_page(result.web)
    for line in [] if result.deploy is None else result.deploy.lines():
        say(f"  {line}")
    return code


def _say_page(page: WebFolder) -> None:
    runtime = f"{page.runtime_bytes / 1e6:.1f} of them {page.runtime}"
    say(f"  page                  {page.page}  ({page.bytes / 1e6:.1f} MB, {runtime})")
    say(f"  to open it            python {Path(page.page).with_name('serve.py')}")
    if page.single_file is not None:
        say(f"  as a single file      {page.single_file}  ({page.single_file_bytes / 1e6:.1f} MB, one thread)")
