"""The command line as a process of its own, whose steps are noted: ``reliability_launch.py STEPS SECONDS COMMAND …``.

``STEPS`` gets a line at the beginning, after the libraries are loaded, and one a step: its number and its losses to the
last bit. ``SECONDS`` lie between two saves of the state, in place of a minute, so that a short run has many of them.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

from nextdetr.engine import loop


def note(handle: int, content: dict[str, Any]) -> None:
    """Append a line by one write, which a kill does not tear."""
    os.write(handle, json.dumps(content).encode() + b"\n")


def main() -> None:
    steps, seconds, *command = sys.argv[1:]
    if limit := os.environ.get("RELIABILITY_FILE_LIMIT"):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    if command[0] in ("train", "pretrain"):
        handle = os.open(steps, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        loop.SAVE_EVERY, loop.SAVE_SHARE = float(seconds), 1.0
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
