"""All commands under one name, in the groups of ``nextdetr --help``."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import App, Group, Parameter

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
from nextdetr.cli.common import Json, Verbose, print_json, say
from nextdetr.cli.completion import completion_script
from nextdetr.cli.help import HELP_ALL, HelpFormatter

__all__ = ["SUMMARIES", "app"]

HELP = """Train a real-time object detector on your own images, score it, and run it anywhere.

New here? `nextdetr quickstart` needs no data; then `nextdetr train --data DATA`.
"""

WAY, DATA, LOOK, WEIGHTS, SHELL = (
    Group(title, sort_key=place)
    for place, title in enumerate(
        ("From images to a running detector", "Before training", "Results", "Backbones and weights", "Shell")
    )
)

#: A line for each command, in the order in which they are listed.
SUMMARIES = {
    "pretrain": "Pre-train on images without labels (optional).",
    "train": "Train a detector on labelled images.",
    "val": "Score a detector with the COCO metrics.",
    "predict": "Find objects in images, videos and cameras.",
    "export": "Write ONNX, OpenVINO, PyTorch or browser files.",
    "serve": "Serve detectors over HTTP, with a web page.",
    "quickstart": "Train and predict without data of your own.",
    "doctor": "Check a data set for duplicates, leaks and errors.",
    "convert": "Write a data set in another format.",
    "import-run": "Turn an ultralytics run into a NextDETR run.",
    "report": "Show where a detector fails, as an HTML page.",
    "compare": "Compare two detectors on the same images.",
    "calibrate": "Choose a confidence with a guaranteed recall.",
    "runs": "List trainings with their settings and scores.",
    "info": "Show a model's layers, size and classes.",
    "benchmark": "Measure the speed in every installed runtime.",
    "weights": "Inspect, convert and list weights.",
    "graft": "Put a trained head on another backbone.",
    "embed": "Describe images by vectors.",
    "probe": "Evaluate a backbone by classification.",
    "analyze": "Analyse a backbone or a detector.",
    "completion": "Print a completion script for a shell.",
}
#: How the places of a command are written, where Cyclopts would call them ARGS.
_PLACES = {
    "pretrain": "IMAGES... [OPTIONS]", "predict": "MODEL SOURCES... [OPTIONS]", "embed": "MODEL SOURCES... [OPTIONS]",
    "serve": "MODELS... [OPTIONS]", "graft": "DETECTOR --backbone NAME --images FOLDER... [OPTIONS]",
    "runs": "[FOLDER] [OPTIONS]", "train": "--data DATA... [OPTIONS]",
}  # fmt: skip
_ORDER = {name: place for place, name in enumerate(SUMMARIES)}


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="The shell that reads the script.")],
    *,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Print a script that completes commands, options, their values and files when you press Tab.

    Write it to where your shell looks for such scripts, and open a new shell:

    - bash: `nextdetr completion bash > ~/.local/share/bash-completion/completions/nextdetr`
    - zsh: `nextdetr completion zsh > ~/.zfunc/_nextdetr`, with `fpath+=~/.zfunc` before `compinit` in `.zshrc`; or, after
      `compinit`, `source <(nextdetr completion zsh)`
    - fish: `nextdetr completion fish > ~/.config/fish/completions/nextdetr.fish`
    """
    script = completion_script(app, shell)
    if json:
        print_json({"command": "completion", "shell": shell, "script": script})
    else:
        say(script)


app = App(
    name="nextdetr",
    help=HELP,
    version=__version__,
    version_flags=["--version"],
    help_flags=["--help", "-h", HELP_ALL],
    help_format="markdown",
    help_formatter=HelpFormatter("", SUMMARIES),
    suppress_keyboard_interrupt=False,  # Cyclopts would exit with 130 and not a word
    default_parameter=Parameter(consume_multiple=True),  # --save images json yolo
)
app["--help"].group = app["--version"].group = Group("Options", sort_key=9)

for _group, _functions in {
    WAY: (pretrain.pretrain, train.train, val.val, predict.predict, export.export, serve.serve),
    DATA: (quickstart.quickstart, doctor.doctor, convert.convert, import_run.import_run),
    LOOK: (report.report, compare.compare, calibrate.calibrate, runs.runs, info.info, benchmark.benchmark),
    WEIGHTS: (graft.graft, embed.embed, probe.probe),
    SHELL: (completion,),
}.items():
    for _function in _functions:
        _name = _function.__name__.replace("_", "-")
        _usage = f"nextdetr {_name} {_PLACES[_name]}" if _name in _PLACES else None
        app.command(
            _function, name=_name, group=_group, sort_key=_ORDER[_name], help_formatter=HelpFormatter(_name), usage=_usage
        )
for _app in (weights.app, analyze.app):
    _app.group, _app.sort_key, _app.help_formatter = WEIGHTS, _ORDER[_app.name[0]], HelpFormatter(_app.name[0])
    app.command(_app)
