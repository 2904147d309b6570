"""The group of each option in the help, and the few that ``--help`` shows; ``--help-all`` shows every one.

The help on the terminal, the pages of the site and the tests read these tables. An option of the same name is in the same
group in every command, but for ``ELSEWHERE``.
"""

from __future__ import annotations

from collections.abc import Iterable

from nextdetr.config import TrainConfig

__all__ = ["CHOSEN", "COMMON", "GENERAL", "GROUPS", "PLACEHOLDERS", "grouped", "is_common"]

GENERAL = "General"  # also of an option that no group names, which a test refuses

#: Titles and the names of their options, in the order in which the help shows them.
GROUPS = {
    "Data": """data images split unlabelled unlabelled_from unlabelled_until unlabelled_batch split_off held_out recursive
        limit annotations min_confidence on_bad_data bits max_pixels training_images""",
    "Model": """model detector backbone weights backbone_weights start allow_partial image_size head_image_size queries
        decoder_layers layer latency latency_of points runtime teacher freeze_stages freeze_norms drop_path row mask_ratio
        patch_size proposals grn decoder_depth decoder_width normalise_target""",
    "Length": "epochs minutes head_share head_epochs resume patience val_every seconds",
    "Optimisation": """batch_size head_batch_size accumulate optimizer learning_rate backbone_rate_factor head_rate_factor
        layer_decay freeze_backbone_epochs warmup flat weight_decay clip_norm ema_decay class_loss fine_grained_weight
        distillation_weight dense_weight teacher_weight teacher_maps teacher_until unlabelled_weight maps_weight
        places_weight fine_tune""",
    "Augmentation": """augmentation flip_horizontal flip_vertical rotate90 auto_turn multi_scale mosaic mixup copy_paste
        balance strong_until flip crop_min""",
    "Detections": "confidence classes max_detections detections merge_iou tile overlap",
    "Video": "track line zone static_camera full_every",
    "Statistics": "recall unlike iou resamples level",
    "Format": "format to half int8 dynamic raw portable winograd input_type layout single_file runtime_dir",
    "Check": "tolerance accuracy_drop calibration_images",
    "Server": "host port api_key api_key_file cors_origins corrections allow_reload",
    "Requests": "batch wait queue parallel max_bytes max_images timeout",
    "Machine": "device devices accelerator precision threads workers cache cache_gigabytes engine profile peers",
    "Output": "output save features fix store pictures plot report log picture_every",
    GENERAL: "config seed json verbose",
}
#: Options that another command uses for something else.
ELSEWHERE = {
    "export": {"data": "Check", "split": "Check", "images": "Check"},
    "convert": {"images": "Output"},
    "serve": {"max_pixels": "Requests"},
    "benchmark": {"batch": "Machine"},
    "info": {"profile": "Output"},
    **{name: {"batch_size": "Machine"} for name in ("val", "predict", "report", "compare", "calibrate", "embed")},
}
#: What ``--help`` shows of a command with many options; the others show all of theirs.
COMMON = {
    "train": "data unlabelled model weights image_size epochs minutes resume batch_size augmentation device output",
    "pretrain": "model weights detector image_size epochs minutes resume batch_size device output",
    "graft": "backbone images image_size epochs minutes resume device output",
    "val": "data split image_size weights batch_size device",
    "report": "data split image_size pictures store device output",
    "compare": "data split image_size device output",
    "predict": "image_size confidence classes tile track device save output",
    "export": "format half int8 dynamic image_size data output",
    "serve": "host port api_key corrections confidence image_size batch wait device",
    "benchmark": "data image_size precision threads batch output",
}
#: What the help calls the value of an option, where neither its type nor the last word of its name says it.
PLACEHOLDERS = {
    "unlabelled": "FOLDER", "images": "FOLDER", "classes": "NAME", "line": "X1,Y1,X2,Y2", "zone": "X1,Y1,...",
    "cors_origins": "URL", "confidence": "X", "host": "ADDRESS",
}  # fmt: skip
#: Settings that are chosen from the data and the machine unless they are given, whatever default the code has for them.
CHOSEN = {"train": TrainConfig.chosen}

_GROUP_OF = {name: title for title, names in GROUPS.items() for name in names.split()}
_ORDER = {name: at for at, name in enumerate(_GROUP_OF)}


def grouped(command: str, names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Return titles and their options, in the order in which they are shown.

    Args:
        command: name of the command, such as ``train``.
        names: its options, with underscores.
    """
    found: dict[str, list[str]] = {title: [] for title in GROUPS}
    for name in sorted(names, key=lambda name: _ORDER.get(name, len(_ORDER))):
        title = ELSEWHERE.get(command, {}).get(name) or _GROUP_OF.get(name, GENERAL)
        found[title].append(name)
    return [(title, options) for title, options in found.items() if options]


def is_common(command: str, name: str) -> bool:
    """Whether ``--help`` shows an option, and not only ``--help-all``."""
    return command not in COMMON or name in COMMON[command].split()
