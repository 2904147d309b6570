"""Stopping a run when the user or the system asks for it: a flag that the loop checks between steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from nextdetr.data.signals import STOPPING
from nextdetr.engine.log import Display

__all__ = ["stop_on_signal"]


@contextmanager
def stop_on_signal(requested: threading.Event, display: Display) -> Iterator[None]:
    """Turn the first request to stop into a flag; a following Ctrl-C acts at once.

    Other repeated requests change nothing: ``timeout`` sends its signal twice, a terminal and its shell one each.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if requested.is_set():
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        requested.set()
        display.line("Stopping after this step and writing a checkpoint (Ctrl-C again to stop at once).")

    # Signals ignored from the start stay ignored, as under nohup; but Ctrl-C also stops a run in a shell's background.
    kinds = [kind for kind in STOPPING if kind == signal.SIGINT or signal.getsignal(kind) is not signal.SIG_IGN]
    previous = {kind: signal.signal(kind, handle) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)
