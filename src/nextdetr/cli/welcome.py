"""What ``nextdetr`` alone prints: the way from images to a running detector, and the next step on it."""

from __future__ import annotations

from pathlib import Path

from nextdetr import __version__
from nextdetr.extras import is_installed
from nextdetr.installation import install_command, to_paste

__all__ = ["welcome"]

WAY = (
    ("pretrain IMAGES", "pre-train on images without labels (optional)"),
    ("train --data DATA", "train a detector on labelled images"),
    ("val MODEL --data DATA", "score it with the COCO metrics"),
    ("predict MODEL IMAGES", "find objects in images, videos and cameras"),
    ("export MODEL", "write ONNX, OpenVINO, PyTorch or browser files"),
    ("serve MODEL", "serve it over HTTP, with a web page"),
)


def welcome(folder: Path | None = None) -> str:
    """Return the text.

    Args:
        folder: where trainings are looked for, to suggest what follows them (default: ``runs``).
    """
    rows = [f"  nextdetr {command:<23}{text}" for command, text in WAY]
    return "\n".join([
        f"NextDETR {__version__} trains real-time object detectors on your own images, and runs them.",
        "",
        *rows,
        "",
        f"Next: {_next(folder or Path('runs'))}",
        "All commands: nextdetr --help. Options of one: nextdetr train --help.",
    ])  # fmt: skip


def _next(folder: Path) -> str:
    """Return the next step: that after the newest training where there is one."""
    trained = [path for path in folder.glob("*/best.safetensors") if path.is_file()]
    if trained:
        newest = max(trained, key=lambda path: path.stat().st_mtime)
        return f"{to_paste(['nextdetr', 'predict', str(newest)])} IMAGES"
    if not is_installed("torch"):
        return f"{install_command('train')} to train; nextdetr predict model.onnx IMAGES runs an exported detector."
    return "nextdetr quickstart (needs no data), or nextdetr train --data DATA."
