"""Names that users of other tools type: accepted where they mean the same as ours, else answered with the right one.

The table is what the command line and ``--config`` files understand; ``docs/reference/other-tools-options.md`` shows it; a
test compares them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nextdetr.errors import ConfigError

__all__ = ["COMMANDS", "OPTIONS", "Other", "find", "own_settings", "suggested_command"]


@dataclass(frozen=True, slots=True)
class Other:
    """Options of other tools with one meaning.

    Attributes:
        names: as they are typed, without the leading hyphens; words are joined by hyphens.
        ours: our option of the same meaning and unit, which takes its place; empty where there is none.
        answer: what to do instead, where there is none.
        commands: those to which it applies; empty means all. The first entry that applies counts.
    """

    names: str
    ours: str = ""
    answer: str = ""
    commands: str = ""

    def applies(self, name: str, command: str) -> bool:
        """Whether this is about an option of a command."""
        return name in self.names.split() and (not self.commands or command in self.commands.split())


_TRAININGS = "train pretrain graft"
_SCORED = "val report compare calibrate"

OPTIONS = (
    # The same meaning and unit.
    Other("imgsz img img-size imgs input-size resolution", ours="image-size"),
    Other("batch bs per-device-train-batch-size train-batch-size", ours="batch-size"),
    Other("conf conf-thres score-thr score-threshold threshold", ours="confidence", commands="predict serve"),
    Other("max-det", ours="max-detections"),
    Other("lr", ours="learning-rate", commands=_TRAININGS + " probe"),
    Other("optim opt", ours="optimizer", commands="train"),
    Other("wd", ours="weight-decay", commands=_TRAININGS + " probe"),
    Other("dataset dataset-dir dataset-name data-dir data-path", ours="data"),
    Other("output-dir out-dir work-dir save-dir out", ours="output"),
    Other("num-workers", ours="workers", commands=_TRAININGS),
    Other("max-epochs num-epochs num-train-epochs", ours="epochs"),
    Other("grad-accum-steps gradient-accumulation-steps accumulate-grad-batches", ours="accumulate", commands="train"),
    Other("num-gpus gpus", ours="devices", commands="train pretrain"),
    Other("config-file", ours="config", commands=_TRAININGS),
    # Another meaning or unit: training.
    Other("lr0", commands=_TRAININGS, answer="--learning-rate is a peak rate for AdamW, which is chosen from the data; a "
          "rate for SGD such as 0.01 is far too high"),
    Other("lrf cos-lr", commands="train graft", answer="the rate falls as a cosine after the share --flat of the run"),
    Other("warmup-epochs", commands=_TRAININGS, answer="--warmup is a share of the run, such as 0.05"),
    Other("time", commands=_TRAININGS, answer="--minutes is the time budget: 60 for one hour"),
    Other("optimizer optim opt", commands="pretrain graft", answer="AdamW is the only optimiser there: leave it out"),
    Other("momentum", commands=_TRAININGS, answer="that of both optimisers is fixed: leave it out"),
    Other("amp use-amp fp16 half", commands=_TRAININGS, answer="give --precision 16-mixed, or bf16-mixed"),
    Other("bf16", commands=_TRAININGS, answer="give --precision bf16-mixed"),
    Other("pretrained", commands="train", answer="--start auto takes published weights, --weights FILE your own"),
    Other("tuning", commands="train", answer="--weights FILE starts from a detector's weights"),
    Other("cfg", commands="train pretrain", answer="--model names a model file, --config a file of settings"),
    Other("hyp", commands=_TRAININGS, answer="--config names a file of settings"),
    Other("freeze", commands="train", answer="--freeze-stages N freezes stages of the backbone, --freeze-backbone-epochs N "
          "all of it at the start"),
    Other("close-mosaic", commands="train", answer="--strong-until is the share of the run with mosaic and other strong "
          "augmentation"),
    Other("fliplr", commands="train", answer="--flip-horizontal and --no-flip-horizontal turn mirroring on and off"),
    Other("flipud", commands="train", answer="--flip-vertical turns it on"),
    Other("hsv-h hsv-s hsv-v translate scale shear perspective erasing auto-augment bgr", commands="train",
          answer="--augmentation mild or full sets zoom-out, crops and colours together"),
    Other("degrees", commands="train", answer="--rotate90 rotates by quarter turns, which keep boxes tight"),
    Other("cutmix", commands="train", answer="--mosaic, --mixup and --copy-paste combine images"),
    Other("save-period", commands="train", answer="the best and the last weights are always kept; --val-every N sets how "
          "often they are scored"),
    Other("test-only eval-only", commands="train", answer="nextdetr val MODEL --data DATA scores a detector"),
    Other("auto-resume", commands=_TRAININGS, answer="--resume FOLDER continues a run"),
    Other("rect", answer="inputs are always square: --image-size is their side"),
    # Another meaning or unit: results and exports.
    Other("conf conf-thres", commands=_SCORED, answer="AP counts every detection, whatever its score: leave it out"),
    Other("iou iou-thres iou-threshold nms-thr agnostic-nms nms", commands="predict serve", answer="the detector needs no "
          "non-maximum suppression: leave it out, or give --merge-iou for near-duplicates"),
    Other("iou iou-thres iou-threshold nms-thr agnostic-nms nms", commands="val report compare export",
          answer="the detector needs no non-maximum suppression: leave it out"),
    Other("half fp16", commands="predict serve val report compare",
          answer="nextdetr export MODEL --half writes a float16 file"),
    Other("augment", commands="predict", answer="there is no test-time augmentation: leave it out"),
    Other("save-txt", commands="predict", answer="give --save yolo for label files, or --save images yolo for both"),
    Other("save-json", commands="predict", answer="give --save json for COCO results"),
    Other("save-json", commands="val", answer="--json prints the scores; nextdetr predict MODEL IMAGES --save json "
          "writes COCO results"),
    Other("save-crop", commands="predict", answer="give --save crops, or --save images crops for both"),
    Other("save-conf", commands="predict", answer="the results of --save json have the confidence"),
    Other("nosave", commands="predict", answer="--save names all that is written"),
    Other("show view-img", commands="predict", answer="there is no window; annotated images and videos are in --output"),
    Other("tracker persist", commands="predict", answer="give --track"),
    Other("visualize", commands="predict", answer="--features FOLDER draws the feature maps"),
    Other("simplify opset keras optimize workspace dnn", commands="export",
          answer="the file is written ready for its runtime: leave it out"),
    Other("include", commands="export", answer="--format names the format, one at a time"),
    Other("checkpoint ckpt model-path", commands="val predict export serve benchmark report calibrate info embed",
          answer="the model is given right after the command"),
    Other("input", commands="predict", answer="images are given after the model: nextdetr predict MODEL IMAGES"),
    # Where results go.
    Other("project name", answer="--output FOLDER names the folder of the results"),
    Other("exist-ok", commands=_TRAININGS, answer="an earlier run is never overwritten: --output names another folder, "
          "--resume continues one"),
)  # fmt: skip

#: Commands of other tools, and what to type.
COMMANDS = {
    "detect": "nextdetr predict MODEL IMAGES",
    "detection": "nextdetr predict MODEL IMAGES",
    "infer": "nextdetr predict MODEL IMAGES",
    "inference": "nextdetr predict MODEL IMAGES",
    "track": "nextdetr predict MODEL VIDEO --track",
    "test": "nextdetr val MODEL --data DATA --split test",
    "eval": "nextdetr val MODEL --data DATA",
    "evaluate": "nextdetr val MODEL --data DATA",
    "validate": "nextdetr val MODEL --data DATA",
    "fit": "nextdetr train --data DATA",
    "finetune": "nextdetr train --data DATA --weights FILE",
    "fine-tune": "nextdetr train --data DATA --weights FILE",
    "resume": "nextdetr train --resume FOLDER",
    "bench": "nextdetr benchmark MODEL",
    "deploy": "nextdetr export MODEL, or nextdetr serve MODEL",
    "demo": "nextdetr quickstart",
    "download": "nextdetr weights list",
    "models": "nextdetr weights list",
    "check": "nextdetr doctor DATA",
    "checks": "nextdetr doctor DATA",
    "stats": "nextdetr doctor DATA",
    "summary": "nextdetr info MODEL",
    "plot": "nextdetr report MODEL --data DATA",
    "version": "nextdetr --version",
    "help": "nextdetr --help",
}


def find(name: str, command: str) -> Other | None:
    """Return the entry of an option of another tool, for one of our commands; None where there is none.

    Args:
        name: the option without its leading hyphens, with ``-`` or ``_`` between words.
        command: one of our commands.
    """
    name = name.replace("_", "-")
    return next((entry for entry in OPTIONS if entry.applies(name, command)), None)


def own_settings(values: Mapping[str, Any], command: str, known: Collection[str], source: str) -> dict[str, Any]:
    """Return the settings of a ``--config`` file by our names.

    Args:
        values: settings by name, with ``_`` between words.
        command: the command that they are for.
        known: our names of its settings.
        source: the file, for the message.

    Returns:
        The settings; names that belong to no tool stay as they are.

    Raises:
        ConfigError: a name means something else here, two names mean the same setting, or it is the file of another
            tool's run.
    """
    if {"task", "mode"} <= values.keys():  # ultralytics writes all of its settings
        raise ConfigError(
            f"{source}: the settings of a run of ultralytics; nextdetr import-run FOLDER takes such a run over."
        )
    found: dict[str, Any] = {}
    given: dict[str, str] = {}  # the file's name of each setting
    for name, value in values.items():
        other = None if name in known else find(name, command)
        if other is not None and other.answer:
            if value is None:  # as in a file that lists every setting, also those that are left alone
                continue
            raise ConfigError(f"{source}: {name}: {_in_file(other.answer, known)}.")
        own = name if other is None or other.ours.replace("-", "_") not in known else other.ours.replace("-", "_")
        if own in found:
            raise ConfigError(f"{source}: {given[own]} and {name} are the same setting: keep one of them.")
        found[own], given[own] = value, name
    return found


def _in_file(answer: str, known: Collection[str]) -> str:
    """Return an answer with our options as a file writes them: ``image_size``; whole commands stay as they are."""

    def written(option: re.Match[str]) -> str:
        name = option[2].replace("-", "_")
        return option[0] if name not in known else f"{name}: false" if option[1] else name

    return answer if "nextdetr " in answer else re.sub(r"--(no-)?([a-z0-9]+(?:-[a-z0-9]+)*)", written, answer)


def suggested_command(word: str, commands: Sequence[str]) -> str:
    """Return what to type in place of a command that does not exist, as the end of a sentence; empty if none is close."""
    import difflib

    if word.lower() in COMMANDS:
        return f"try {COMMANDS[word.lower()]}."
    close = difflib.get_close_matches(word.lower(), [*commands, *COMMANDS], n=1, cutoff=0.6)
    if not close:
        return ""
    return f"did you mean nextdetr {close[0]}?" if close[0] in commands else f"try {COMMANDS[close[0]]}."
