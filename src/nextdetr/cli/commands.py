"""All commands under one name."""

from __future__ import annotations

from cyclopts import App, Parameter

from nextdetr import __version__
from nextdetr.cli import (
    analyze,
    benchmark,
    calibrate,
    compare,
    convert,
    doctor,
    embed,
    export,
    graft,
    import_run,
    info,
    predict,
    pretrain,
    probe,
    quickstart,
    report,
    runs,
    serve,
    train,
    val,
    weights,
)

__all__ = ["app"]

HELP = """Train a real-time detector on your own photographs, score it, and draw what it finds.

New here? Start with `nextdetr quickstart`, which needs no data, then `nextdetr train --data FOLDER`.
"""

app = App(
    name="nextdetr",
    help=HELP,
    version=__version__,
    version_flags=["--version"],
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # Cyclopts would exit with 130 and not a word
    default_parameter=Parameter(consume_multiple=True),  # --save images json yolo
)
app.command(quickstart.quickstart, name="quickstart")
app.command(pretrain.pretrain, name="pretrain")
app.command(graft.graft, name="graft")
app.command(train.train, name="train")
app.command(val.val, name="val")
app.command(report.report, name="report")
app.command(compare.compare, name="compare")
app.command(runs.runs, name="runs")
app.command(calibrate.calibrate, name="calibrate")
app.command(predict.predict, name="predict")
app.command(export.export, name="export")
app.command(serve.serve, name="serve")
app.command(benchmark.benchmark, name="benchmark")
app.command(info.info, name="info")
app.command(embed.embed, name="embed")
app.command(convert.convert, name="convert")
app.command(import_run.import_run, name="import-run")
app.command(doctor.doctor, name="doctor")
app.command(probe.probe, name="probe")
app.command(weights.app)
app.command(analyze.app)
