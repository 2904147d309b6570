"""``logs.json`` in a run's folder: where each tool stores the run, so that a resumed run continues there."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from nextdetr.engine.loggers.tools import PACKAGES, Place
from nextdetr.files import optional_file, write_text_atomic
from nextdetr.json_text import json_text

__all__ = ["FILE", "Places", "read_places"]

FILE = "logs.json"


def read_places(directory: Path) -> dict[str, Place]:
    """Return where each tool stores the run; empty if there is none.

    Raises:
        ValueError: the file is damaged or has other content.
    """
    path = directory / FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({error}).") from error
    if not isinstance(content, dict) or not all(
        tool in PACKAGES and isinstance(place, dict) and all(isinstance(text, str) for text in place.values())
        for tool, place in content.items()
    ):
        raise ValueError(f"{path}: not a record of logged runs (an object of texts for each tool).")
    return content


class Places:
    """Where a run in progress is logged; several threads may add to it."""

    def __init__(self, directory: Path, places: dict[str, Place]) -> None:
        self._directory, self._places, self._lock = directory, dict(places), threading.Lock()

    def __getitem__(self, tool: str) -> Place:
        return dict(self._places.get(tool, {}))

    def __setitem__(self, tool: str, place: Place) -> None:
        with self._lock:
            self._places[tool] = place
            with optional_file():
                write_text_atomic(self._directory / FILE, json_text(self._places) + "\n")
