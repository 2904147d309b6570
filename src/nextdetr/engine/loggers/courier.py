"""What a tool is told goes through a courier, so that a slow network does not hold the run, and a failure not end it."""

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
    """Return what went wrong, in a line of at most 300 letters, without the password of an address."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = re.sub(r"//[^/@\s]+@", "//", " ".join(str(error).split())).rstrip(".")
    return (text if len(text) <= 300 else f"{text[:148]} … {text[-149:]}") or type(error).__name__


class Courier:
    """Makes the calls of one tool, in order; of a remote tool on a thread of its own.

    What fails is told once, and tried again, with what has come after it, when the next call comes: after an outage the
    tool has everything. A tool that writes files here is not tried again, as half a record may be in its file.

    Args:
        tool: whose calls they are.
    """

    def __init__(self, tool: Tool) -> None:
        self.tool = tool
        self.error: BaseException | None = None  # of the last try
        self._aloud, self._told = False, False
        self._pending: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._fresh, self._idle = False, True
        if tool.remote:
            threading.Thread(target=self._work, name=f"log-{tool.name}", daemon=True).start()

    def send(self, call: Callable[[], object]) -> None:
        """Have a call made, now or soon."""
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
        """Wait until all calls are made, or one has failed, or for so long; return whether all are made."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle, seconds)
            return not self._pending

    def tell_failures(self) -> None:
        """Warn of the first failure, of one that has been already or of one that is to come."""
        self._aloud = True
        self._tell()

    def _tell(self) -> None:
        error = self.error
        if not self._aloud or self._told or error is None:
            return
        self._told = True
        again = "; it is tried again after each epoch" if self.tool.remote else ""
        _log.warning("%s cannot be written (%s); the run goes on without%s.", self.tool.title, reason(error), again)

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
