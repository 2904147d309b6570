"""TensorBoard events in the run's folder, written with TensorBoard's own package."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from typing import Any

from nextdetr.engine.loggers.tools import Logged, Outcome, Place, Status, Tool

__all__ = ["TensorBoard"]


class TensorBoard(Tool):
    """TensorBoard events.

    They are written synchronously, without the thread of torch's ``SummaryWriter``, which ends in a traceback when the disk
    is full.
    """

    name, remote = "tensorboard", False

    def __init__(self) -> None:
        self._writer: Any = None

    def start(self, run: Logged, earlier: Place) -> Place:
        """Open an event file; one per session, which TensorBoard shows as one run."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = Event
        name = f"events.out.tfevents.{time.time():.0f}.{platform.node()}.{os.getpid()}.{time.perf_counter_ns()}"
        self._writer = RecordWriter((run.directory / name).open("xb", buffering=0))
        self._write(time.time(), file_version="brain.Event:2")
        self._write_settings(run.settings)
        return {"look": f"tensorboard --logdir {run.directory.absolute()}"}

    def add(self, values: Mapping[str, float], step: int, when: float) -> None:
        """Write the scalars of one step."""
        self._write(when, step=step, summary={"value": [{"tag": k, "simple_value": v} for k, v in values.items()]})

    def finish(self, outcome: Outcome, step: int, when: float) -> None:
        """Write AP by class; the other scores are already there, and TensorBoard takes no files."""
        values = {f"AP_class/{name}": value for name, value in outcome.per_class.items() if value is not None}
        if values:
            self.add(values, step, when)

    def close(self, status: Status) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()

    def _write_settings(self, settings: Mapping[str, Any]) -> None:
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in settings.items()}
        self._write(time.time(), summary=hparams_pb(plain))

    def _write(self, when: float, **fields: Any) -> None:
        self._writer.write(self._event(wall_time=when, **fields).SerializeToString())
        self._writer.flush()
