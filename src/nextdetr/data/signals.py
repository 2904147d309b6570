"""Requests to stop that reach a whole process group: processes started by a run leave them to the first process."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

__all__ = ["STOPPING", "ignore_held_signals", "signals_held"]

# Ctrl-C, a request to terminate, and a closing terminal (not on Windows).
STOPPING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Block signals while workers start: they inherit the mask, so that none arrives before they ignore them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where only Ctrl-C is sent to a group
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_held_signals() -> None:
    """Ignore the signals that :func:`signals_held` blocked while this process started."""
    for kind in STOPPING:
        signal.signal(kind, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
