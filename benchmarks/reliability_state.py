"""What a part of ``reliability.py`` has done so far, in a JSON file of its own, so that it goes on where it was stopped."""

from __future__ import annotations

import functools
import json
import subprocess
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
        commits: those at which they were made.
    """

    def __init__(self, output: Path, part: str) -> None:
        self.file = output / f"{part}.json"
        known = json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else {}
        self.entries: dict[str, Any] = known.get("entries", {})
        self.commits: list[str] = known.get("commits", [])

    def save(self) -> None:
        """Write all of it, whole or not at all."""
        self.commits = list(dict.fromkeys([*self.commits, commit()]))
        known = {"commits": self.commits, "entries": self.entries}
        write_text_atomic(self.file, json.dumps(known, indent=1, ensure_ascii=False))


@functools.cache
def commit() -> str:
    """Return the commit that is checked out, in short."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no commit"
