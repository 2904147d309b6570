"""Ending a run when the user, or the system, asks for it: a flag that the loop looks at between steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from nextdetr.engine.log import Display

__all__ = ["stop_on_signal"]


@contextmanager
def stop_on_signal(requested: threading.Event, display: Display) -> Iterator[None]:
    """Turn the first Ctrl-C, or request to terminate, into a flag; a second Ctrl-C acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()
        display.line("Stopping after this step and writing a checkpoint (Ctrl-C again to stop at once).")

    previous = {kind: signal.signal(kind, handle) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)
