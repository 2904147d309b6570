"""What each argument of an ultralytics training, validation, prediction or export is here; for ``nextdetr import-run``.

The names are those of that framework's documentation; no code of it (AGPL-3.0) is used. The page "Coming from ultralytics"
shows this table, and the plug-in's tests compare its names with the installed release's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ARGUMENTS", "Argument"]

Values = Mapping[str, Any]
#: From all arguments of a run to the settings of ``TrainConfig`` that one of them becomes, if any.
Translation = Callable[[Values], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of ultralytics.

    Attributes:
        ours: the command and option that does it here; None where there is none.
        note: what differs, or why there is none; empty where nothing is to be said.
        settings: what ``import-run`` makes of it; None where it takes nothing over.
    """

    ours: str | None
    note: str = ""
    settings: Translation | None = None


def _number(value: Any) -> float | None:
    """Return a finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _same(name: str, setting: str) -> Translation:
    return lambda values: {} if values.get(name) is None else {setting: values[name]}


def _flag(name: str, setting: str) -> Translation:
    """A probability there that is a switch here."""

    def translate(values: Values) -> dict[str, Any]:
        share = _number(values.get(name))
        return {} if share is None else {setting: share > 0}

    return translate


def _epochs(values: Values) -> dict[str, Any]:
    return {} if _number(values.get("time")) else _same("epochs", "epochs")(values)


def _minutes(values: Values) -> dict[str, Any]:
    hours = _number(values.get("time"))
    return {"minutes": hours * 60} if hours else {}


def _batch(values: Values) -> dict[str, Any]:
    value = values.get("batch")
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    return {"batch_size": value} if whole else {}


def _image_size(values: Values) -> dict[str, Any]:
    value = values.get("imgsz")
    side = _number(max(value, default=None) if isinstance(value, list) and all(map(_number, value)) else value)
    return {} if side is None else {"image_size": max(math.ceil(side / 32), 1) * 32}


def _cache(values: Values) -> dict[str, Any]:
    value = values.get("cache")
    known = {"False": "off", "True": "full", "ram": "full"}
    return {"cache": known[str(value)]} if str(value) in known else {}


def _device(values: Values) -> dict[str, Any]:
    value = values.get("device")
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value).strip().lower()
    numbers = [part for part in text.removeprefix("cuda:").split(",") if part.isdecimal()]
    if text in ("cpu", "mps"):
        return {"device": text}
    if len(numbers) > 1:
        return {"devices": len(numbers), "accelerator": "cuda"}
    return {"device": f"cuda:{numbers[0]}"} if numbers else {}


def _patience(values: Values) -> dict[str, Any]:
    patience, epochs = _number(values.get("patience")), _number(values.get("epochs"))
    stops = patience and (epochs is None or patience < epochs)
    return {"patience": int(patience), "val_every": 1} if patience and stops else {}


def _precision(values: Values) -> dict[str, Any]:
    return {"precision": "bf16-mixed"} if str(values.get("amp")).lower() == "bf16" else {}


def _share_of_epochs(name: str, setting: str, *, rest: bool = False) -> Translation:
    """Epochs there that are a share of the run here, from its start or (``rest``) up to its end."""

    def translate(values: Values) -> dict[str, Any]:
        part, whole = _number(values.get(name)), _number(values.get("epochs"))
        if part is None or not whole or not 0 <= part < whole:
            return {}
        return {setting: round(1 - part / whole if rest else part / whole, 4)}

    return translate


def _flat(values: Values) -> dict[str, Any]:
    return {"flat": 0.0} if values.get("cos_lr") is True else {}


def _freeze(values: Values) -> dict[str, Any]:
    value, epochs = values.get("freeze"), _number(values.get("epochs"))
    layers = list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value
    return {"freeze_backbone_epochs": int(epochs)} if layers in ([0], ["0"]) and epochs else {}


def _of_adamw(name: str, setting: str) -> Translation:
    """Rates of another optimizer, or of one that chose its own, mean nothing here."""
    same = _same(name, setting)
    return lambda values: same(values) if _optimizer(values) else {}


def _optimizer(values: Values) -> dict[str, Any]:
    return {"optimizer": "adamw"} if str(values.get("optimizer")).lower() == "adamw" else {}


def _weights(values: Values) -> dict[str, Any]:
    given = values.get("pretrained")
    return {"weights": given} if isinstance(given, str) and Path(given).is_file() else {}


_OTHER_TASK = Argument(None, "Of another task; NextDETR detects.")
_YOLO_LOSS = Argument(None, "A gain of YOLO's losses, which RT-DETR does not read there either.")
_OWN_RECIPE = "Part of another optimiser's recipe; NextDETR has its own for AdamW."
_NO_NMS = Argument(None, "RT-DETR has no NMS.")
_WARPS = Argument(None, "`train --augmentation` has zoom-out and crops in its place.")
_COLOURS = Argument("train --augmentation", "The colours of `mild` or `full`; no strength of its own.")
_RESULTS = Argument(None, "In Python: draw the returned result, a `supervision.Detections`, with supervision's annotators.")

#: By name, in the order of that framework's documentation.
ARGUMENTS: Mapping[str, Argument] = {
    "task": Argument(None, "NextDETR detects; there are no other tasks."),
    "mode": Argument("train, val, predict, export", "The command."),
    "model": Argument("train --model", "A shipped name, a model YAML or a checkpoint."),
    "data": Argument("train --data", "The same data.yaml, or any other format."),
    "epochs": Argument("train --epochs", "", _epochs),
    "time": Argument("train --minutes", "Hours there, minutes here; the whole schedule adapts to them.", _minutes),
    "patience": Argument(
        "train --patience", "Counts validations, not epochs; with `--val-every 1` they are the same.", _patience
    ),
    "batch": Argument(
        "train --batch-size", "A whole number; left out, it is chosen from the data and the GPU's memory.", _batch
    ),
    "imgsz": Argument("train --image-size", "The side of the square input, a multiple of 32.", _image_size),
    "save": Argument(None, "The best and the last weights are always kept."),
    "save_period": Argument(None, "The best and the last weights are kept."),
    "cache": Argument("train --cache", "`off`, `full` or `shrunk`; memory only.", _cache),
    "device": Argument("train --device", "`cpu`, `cuda:0`, `mps`; several: `--devices 2`.", _device),
    "workers": Argument("train --workers", "", _same("workers", "workers")),
    "project": Argument("train --output", "The folder of the run."),
    "name": Argument("train --output", "The folder of the run."),
    "exist_ok": Argument(None, "A run has its own folder; `--resume` continues it."),
    "pretrained": Argument("train --weights", "A file; `--start` chooses published weights.", _weights),
    "cls_remap": Argument(None, "Classes are always carried over by name."),
    "optimizer": Argument("train --optimizer", "`adamw` or `muon`; SGD and others have no counterpart.", _optimizer),
    "verbose": Argument("--verbose", "Of every command."),
    "seed": Argument("train --seed", "", _same("seed", "seed")),
    "deterministic": Argument(None, "Samples and augmentation always depend on the seed only; kernels are torch's."),
    "single_cls": Argument(None, "Give the data set one class."),
    "rect": Argument(None, "The input is square, as RT-DETR's is there."),
    "cos_lr": Argument("train --flat", "The share of the run before the cosine; `--flat 0` is a cosine throughout.", _flat),
    "close_mosaic": Argument(
        "train --strong-until",
        "A share of the run; all strong augmentation ends there.",
        _share_of_epochs("close_mosaic", "strong_until", rest=True),
    ),
    "resume": Argument("train --resume RUN", "The folder of a run of NextDETR."),
    "amp": Argument("train --precision", "`bf16-mixed` or `16-mixed` on a GPU; `32-true` otherwise.", _precision),
    "fraction": Argument(None, "Use a data set with fewer images."),
    "profile": Argument("benchmark", "Measures exported files beside the checkpoint."),
    "freeze": Argument(
        "train --freeze-backbone-epochs, --freeze-stages", "By parts of the backbone, not by numbers of layers.", _freeze
    ),
    "multi_scale": Argument(
        "train --multi-scale", "A switch: 0.75 to 1.25 of the size.", _flag("multi_scale", "multi_scale")
    ),
    "compile": Argument(None, "Training is eager."),
    "channels_last": Argument(None, "Always."),
    "overlap_mask": _OTHER_TASK,
    "mask_ratio": _OTHER_TASK,
    "dropout": _OTHER_TASK,
    "val": Argument("train --val-every", "Validation is a tenth of the time by default; it cannot be left out."),
    "split": Argument("val --split", ""),
    "save_json": Argument("predict --save json", ""),
    "conf": Argument("predict --confidence", "0.3 by default, or the checkpoint's own thresholds."),
    "iou": Argument("predict --merge-iou", "Needed for near-duplicates only: RT-DETR has no NMS."),
    "max_det": Argument("predict --max-detections", ""),
    "quantize": Argument("export --half, --int8", "`predict` takes the exported file."),
    "dnn": Argument(None, "ONNX Runtime, OpenVINO or PyTorch run the files."),
    "plots": Argument(
        "train --report", "A switch: report.html, with scores, errors and pictures.", _same("plots", "report")
    ),
    "nms": _NO_NMS,
    "source": Argument("predict MODEL SOURCE…", "Files, folders, videos, cameras and streams."),
    "vid_stride": Argument(None, "Every frame is processed; `--static-camera` computes only what changes."),
    "stream_buffer": Argument(None, "A camera's newest frame is taken."),
    "visualize": Argument("predict --features", "Pictures of each backbone stage and fusion level."),
    "augment": Argument(None, "There is no test-time augmentation, and none for RT-DETR there."),
    "agnostic_nms": _NO_NMS,
    "classes": Argument("predict --classes", "By name or number."),
    "retina_masks": _OTHER_TASK,
    "embed": Argument("embed", "`--row` chooses the map."),
    "show": Argument(None, "In Python `result.show()`; `serve` shows a camera in the browser."),
    "save_frames": Argument("predict --save images", ""),
    "save_txt": Argument("predict --save yolo", ""),
    "save_conf": Argument("predict --save json", "Always with the confidence."),
    "save_crop": Argument("predict --save crops"),
    "show_labels": _RESULTS,
    "show_conf": _RESULTS,
    "show_boxes": _RESULTS,
    "line_width": _RESULTS,
    "format": Argument("export --format", "`onnx`, `openvino`, `pt2` or `web`."),
    "optimize": Argument(None, "For formats that NextDETR does not write."),
    "dynamic": Argument("export --dynamic", ""),
    "simplify": Argument(None, "The exporter folds constants itself."),
    "opset": Argument(None, "Always 18."),
    "workspace": Argument(None, "For TensorRT, which builds its engine from the exported ONNX file."),
    "lr0": Argument("train --learning-rate", "Taken over from AdamW only.", _of_adamw("lr0", "learning_rate")),
    "lrf": Argument(None, "The rate falls to 0.01 of its peak."),
    "momentum": Argument(None, _OWN_RECIPE),
    "weight_decay": Argument(
        "train --weight-decay", "Taken over from AdamW only.", _of_adamw("weight_decay", "weight_decay")
    ),
    "warmup_epochs": Argument("train --warmup", "A share of the run.", _share_of_epochs("warmup_epochs", "warmup")),
    "warmup_momentum": Argument(None, _OWN_RECIPE),
    "warmup_bias_lr": Argument(None, _OWN_RECIPE),
    "distill_model": Argument("train --teacher", "A detector that NextDETR opens."),
    "dis": Argument("train --teacher-weight", "A factor of other losses: the number means something else."),
    "box": _YOLO_LOSS,
    "cls": _YOLO_LOSS,
    "cls_pw": Argument("train --balance", "Shows images of rare classes more often; the loss is the same for all."),
    "dfl": _YOLO_LOSS,
    "pose": _OTHER_TASK,
    "kobj": _OTHER_TASK,
    "rle": _OTHER_TASK,
    "angle": _OTHER_TASK,
    "dlog": _OTHER_TASK,
    "dgrad": _OTHER_TASK,
    "dlam": _OTHER_TASK,
    "nbs": Argument("train --accumulate", "1 here: the weights change at every step."),
    "hsv_h": _COLOURS,
    "hsv_s": _COLOURS,
    "hsv_v": _COLOURS,
    "degrees": Argument("train --rotate90", "Quarter turns only, which leave boxes tight."),
    "translate": _WARPS,
    "scale": _WARPS,
    "shear": _WARPS,
    "perspective": _WARPS,
    "flipud": Argument("train --flip-vertical", "A switch: half of the pictures.", _flag("flipud", "flip_vertical")),
    "fliplr": Argument("train --flip-horizontal", "A switch: half of the pictures.", _flag("fliplr", "flip_horizontal")),
    "bgr": Argument(None, "Images are read as RGB."),
    "mosaic": Argument("train --mosaic", "", _same("mosaic", "mosaic")),
    "mixup": Argument("train --mixup", "", _same("mixup", "mixup")),
    "cutmix": Argument(None, "`train --copy-paste` pastes boxes instead."),
    "copy_paste": Argument("train --copy-paste", "Boxes here; there it is for other tasks, so nothing is taken over."),
    "copy_paste_mode": _OTHER_TASK,
    "auto_augment": _OTHER_TASK,
    "erasing": _OTHER_TASK,
    "cfg": Argument("--config FILE", "A YAML of NextDETR's own settings."),
    "tracker": Argument("predict --track", "ByteTrack."),
    "save_dir": Argument("train --output", "The folder of the run."),
}
