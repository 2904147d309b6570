"""Finished work of one part of ``reliability.py``, in a JSON file, so that the part can be stopped and continued."""

from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

from nextdetr.files import write_text_atomic

ROOT = Path(__file__).resolve().parents[1]


class State:
    """Entries of one part, which the part changes and saves.

    Args:
        output: folder of all parts.
        part: name of the part.

    Attributes:
        file: path of the JSON file.
        entries: plain values by name; empty at first.
        commits: commits at which the entries were made.
    """

    def __init__(self, output: Path, part: str) -> None:
        self.file = output / f"{part}.json"
        known = json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else {}
        self.entries: dict[str, Any] = known.get("entries", {})
        self.commits: list[str] = known.get("commits", [])

    def save(self) -> None:
        """Write all entries atomically."""
        self.commits = list(dict.fromkeys([*self.commits, commit()]))
        known = {"commits": self.commits, "entries": self.entries}
        write_text_atomic(self.file, json.dumps(known, indent=1, ensure_ascii=False))


@functools.cache
def commit() -> str:
    """Return the short hash of the current commit."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no commit"
