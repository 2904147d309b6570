"""Time that a run of ``--minutes`` reserves for what follows its last step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nextdetr.config import TrainConfig
from nextdetr.data.records import DetectionData
from nextdetr.engine.latency import expected_seconds
from nextdetr.engine.launch import largest
from nextdetr.engine.log import clock
from nextdetr.engine.loop import Loop
from nextdetr.engine.setup import Run

__all__ = ["Reserve"]


class Reserve:
    """Keeps back the time of the last validation, and of the speed table after it.

    Args:
        loop: the run; its budget keeps the time back.
        run: data, model and measured times.
        config: settings of the run.
    """

    def __init__(self, loop: Loop, run: Run, config: TrainConfig) -> None:
        self.loop, self.run, self.config = loop, run, config

    def expect(self, score: Callable[[DetectionData], object]) -> None:
        """Reserve time for the first validation too, from the time that two of its batches take."""
        data, loop = self.run.val_data, self.loop
        sample = replace(data, records=data.records[: 2 * self.config.batch_size * loop.fabric.world_size])
        score(sample)  # warm-up, so that caches are filled
        started = loop.budget.seconds
        score(sample)
        seconds = loop.budget.seconds - started
        wanted = self.keep(seconds * len(data.records) / len(sample.records))
        if self.config.latency is not None and not loop.budget.can_keep_back(wanted):
            loop.display.line(
                f"The last validation and the speed table would take about {clock(wanted)}, and get half of --minutes "
                f"{loop.budget.minutes:g}: the table may have fewer sizes, and the run may end a little later."
            )

    def keep(self, validation: float) -> float:
        """Reserve time, given the seconds of a validation; return how much everything would take."""
        images = len(self.run.val_data.records)
        after = expected_seconds(self.config, self.run.times, self.run.model, validation, images)
        wanted = 1.1 * validation + largest(self.loop.fabric, after)[0]
        self.loop.budget.keep_back(wanted)
        return wanted
