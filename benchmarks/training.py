"""Shared by the scripts that compare runs of training: one run, resumed and never repeated, and how scores are shown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nextdetr import Detector
from nextdetr.files import write_text_atomic

__all__ = ["result_file", "shown", "train_once"]


def result_file(folder: Path) -> Path:
    """Where the result of a finished run is kept."""
    return folder / "result.json"


def train_once(model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train into the folder ``output`` of the settings, unless already done; a stopped run is resumed.

    Returns:
        The result, as ``nextdetr train --json`` prints it.
    """
    folder = Path(settings["output"])
    done = result_file(folder)
    if not done.is_file():
        resumed = (folder / "last.ckpt").is_file()
        result = Detector(model).train(**({"resume": folder} if resumed else settings))
        write_text_atomic(done, json.dumps(result.to_json()))
    found: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
    return found


def shown(values: Sequence[float | None], digits: int = 4) -> str:
    """Mean and all values, if there are any."""
    known = [value for value in values if value is not None]
    if not known:
        return "undefined"
    return f"**{statistics.mean(known):.{digits}f}** ({', '.join(f'{value:.{digits}f}' for value in known)})"
