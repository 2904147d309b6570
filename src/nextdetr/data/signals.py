"""Requests to stop, which reach a whole group of processes, and how those that a run starts leave them to the first."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

__all__ = ["STOPPING", "ignore_held_signals", "signals_held"]

# Ctrl-C, a request to terminate, and a terminal that closes, which Windows does not tell.
STOPPING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold signals back while workers start: they inherit that, and have none come in before they ignore them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where only Ctrl-C is sent to a group
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_held_signals() -> None:
    """Ignore what :func:`signals_held` held back while this process started, now and later."""
    for kind in STOPPING:
        signal.signal(kind, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
