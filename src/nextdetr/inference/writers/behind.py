"""Writing beside the model's work, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from queue import Queue

from nextdetr.inference.predictor import Prediction
from nextdetr.inference.writers.protocol import Writer

__all__ = ["Behind"]

WAITING = 8  # predictions that wait to be written


class Behind:
    """Hands predictions to other writers in a thread, so that drawing and encoding overlap with the model.

    Args:
        writers: to hand them to, all opened.
    """

    def __init__(self, writers: Sequence[Writer]) -> None:
        self._writers = writers
        self._waiting: Queue[Prediction | None] = Queue(WAITING)
        self._problem: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="nextdetr-write", daemon=True)
        self._thread.start()

    def add(self, prediction: Prediction) -> None:
        """Hand on a prediction; waits while too many are waiting, and raises what went wrong with those before."""
        if self._problem is not None:
            raise self._problem
        self._waiting.put(prediction)

    def commit(self) -> None:
        """Write what is waiting, and commit."""
        self._drain()
        for writer in self._writers:
            if self._problem is None:
                try:
                    writer.commit()
                except Exception as error:  # noqa: BLE001 - raised below
                    self._problem = error
            else:
                with suppress(Exception):
                    writer.abort()
        if self._problem is not None:
            raise self._problem

    def abort(self) -> None:
        """Write what is waiting, and abort."""
        self._drain()
        for writer in self._writers:
            with suppress(Exception):
                writer.abort()

    def _drain(self) -> None:
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def _run(self) -> None:
        try:
            while (prediction := self._waiting.get()) is not None:
                for writer in self._writers:
                    writer.add(prediction)
        except Exception as error:  # noqa: BLE001 - raised when the next prediction is added, or on commit
            self._problem = error
            while self._waiting.get() is not None:  # so that nobody waits for ever
                pass
