"""The command line as a separate process that records its steps: ``reliability_launch.py STEPS SECONDS COMMAND …``.

``STEPS`` gets one line at the start, after the libraries are loaded, and one per step: its number and its exact losses.
The state is saved every ``SECONDS`` instead of every minute, so that a short run saves it often.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

from nextdetr.engine import saving


def note(handle: int, content: dict[str, Any]) -> None:
    """Append a line with one write, which a kill does not interrupt."""
    os.write(handle, json.dumps(content).encode() + b"\n")


def main() -> None:
    steps, seconds, *command = sys.argv[1:]
    if limit := os.environ.get("RELIABILITY_FILE_LIMIT"):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    if command[0] in ("train", "pretrain"):
        handle = os.open(steps, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        saving.SAVE_EVERY, saving.SAVE_SHARE = float(seconds), 1.0
        module = importlib.import_module(f"nextdetr.engine.{command[0]}")
        task = module.Trainer if command[0] == "train" else module.Pretrainer
        step = task.step

        def noted(self: Any, *arguments: Any) -> dict[str, float]:
            place = [self.cursor.epoch, self.cursor.place]
            values: dict[str, float] = step(self, *arguments)
            note(handle, {"place": place, "losses": {name: value.hex() for name, value in values.items()}})
            return values

        task.step = noted
        note(handle, {"begin": os.getpid()})
    from nextdetr.cli.main import main as nextdetr

    nextdetr(command)


if __name__ == "__main__":
    main()
