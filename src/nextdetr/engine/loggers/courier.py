"""Calls to a logging tool, made in the background: a slow network must not block the run, and a failure must not end it."""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from collections.abc import Callable

from nextdetr.engine.loggers.tools import Tool

__all__ = ["Courier", "reason"]

_log = logging.getLogger(__name__)


def reason(error: BaseException) -> str:
    """Return the error in a line of at most 300 characters, without passwords in URLs."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = re.sub(r"//[^/@\s]+@", "//", " ".join(str(error).split())).rstrip(".")
    return (text if len(text) <= 300 else f"{text[:148]} … {text[-149:]}") or type(error).__name__


class Courier:
    """Makes the calls to one tool, in order; to a remote tool on a thread of its own.

    A failure is reported once. The failed call is retried with the next one, so the tool is complete after an outage. Local
    tools are not retried, since half a record may be in their file.

    Args:
        tool: tool to call.
    """

    def __init__(self, tool: Tool) -> None:
        self.tool = tool
        self.error: BaseException | None = None  # of the last attempt
        self._aloud, self._told = False, False
        self._pending: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._fresh, self._idle = False, True
        if tool.remote:
            threading.Thread(target=self._work, name=f"log-{tool.name}", daemon=True).start()

    def send(self, call: Callable[[], object]) -> None:
        """Queue or make a call."""
        if not self.tool.remote:
            self._pending.append(call)
            if self.error is None:
                self._deliver()
            return
        with self._changed:
            self._pending.append(call)
            self._fresh, self._idle = True, False
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait until all calls are made, one has failed, or the time is over; return whether all were made."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle, seconds)
            return not self._pending

    def tell_failures(self) -> None:
        """Log a warning on the first failure, past or future."""
        self._aloud = True
        self._tell()

    def _tell(self) -> None:
        error = self.error
        if not self._aloud or self._told or error is None:
            return
        self._told = True
        again = "; it is retried after each epoch" if self.tool.remote else ""
        _log.warning("%s cannot be written (%s); the run continues without it%s.", self.tool.title, reason(error), again)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._fresh)
                self._fresh = False
            self._deliver()
            with self._changed:
                self._idle = not self._fresh
                self._changed.notify_all()

    def _deliver(self) -> None:
        self.error = None
        while self._pending:
            try:
                self._pending[0]()
            except BaseException as error:  # noqa: BLE001 - whatever a tool fails with is no reason to end a training
                self.error = error
                self._tell()
                return
            self._pending.popleft()
