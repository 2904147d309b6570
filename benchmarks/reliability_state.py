"""What a part of ``reliability.py`` has done so far, in a JSON file of its own, so that it goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nextdetr.files import write_text_atomic

ROOT = Path(__file__).resolve().parents[1]


class State:
    """The entries of one part; the part changes them, and saves.

    Args:
        output: folder in which all parts work.
        part: name of the part.

    Attributes:
        file: where they are kept.
        entries: plain values by name; empty at first.
    """

    def __init__(self, output: Path, part: str) -> None:
        self.file = output / f"{part}.json"
        self.entries: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else {}

    def save(self) -> None:
        """Write all of it, whole or not at all."""
        write_text_atomic(self.file, json.dumps(self.entries, indent=1, ensure_ascii=False))
