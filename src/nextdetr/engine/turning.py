"""Whether images have an up, asked of the detector itself during its training.

From few images a detector learns more if they are also shown mirrored top to bottom and rotated by quarter turns, as long
as their objects look the same either way (``docs/experiments.md``). Who took the images knows that; the images themselves
do not say it: the light of a microscope tells turned cells from others, and no detector is helped by that. So the
detector is asked. Once it has learnt something, it is scored on turned copies of ``val``. Where it finds objects nearly as
well as upright, although it has never seen them turned, it will lose nothing by learning from turned images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from nextdetr.config import TrainConfig
from nextdetr.data.oriented import ROTATED_180, TURNED_LEFT, TURNED_RIGHT, UPSIDE_DOWN, oriented
from nextdetr.data.records import DetectionData
from nextdetr.engine.log import shown_score

__all__ = ["TurnTest", "turned"]

FLIPS, QUARTERS = (ROTATED_180, UPSIDE_DOWN), (TURNED_LEFT, TURNED_RIGHT)
BEGIN, END = 0.2, 0.6  # share of the run: before, little is learnt; afterwards, little time is left to turn images
LEAST_AP = 0.05  # below, a ratio says little
# Of the AP of upright images. On BCCD 0.94 to 0.99 upside down and 0.71 to 0.89 on their side, since images that are not
# square are then squeezed the other way (padding them to their former shape makes objects smaller, and is no better); on
# Facemask 0.06 at most.
KEPT = 0.6
IMAGES = 50  # of ``val`` at most, since each is scored five times


def turned(config: TrainConfig, answer: Mapping[str, Any]) -> TrainConfig:
    """Return the settings of a run with what the answer of a :class:`TurnTest` switches on."""
    return config.model_copy(update={name: True for name, value in answer.items() if value})


class TurnTest:
    """The test, at the first validation that can tell, and what follows from it.

    Args:
        config: settings of the run; ``auto_turn`` asks for the test.
        score: returns the AP of the averaged weights on a split, the same in all processes.
        tell: prints a line for the user.
    """

    def __init__(
        self, config: TrainConfig, score: Callable[[DetectionData], float | None], tell: Callable[[str], None]
    ) -> None:
        self.config, self._score, self._tell = config, score, tell
        self.answer: dict[str, bool] = {}  # by setting; empty before the test

    def ask(self, data: DetectionData, progress: float) -> None:
        """Test if it is time to; called after each validation.

        Args:
            data: ``val``.
            progress: of the run, 0 to 1.
        """
        if not self.config.auto_turn or self.answer or not BEGIN <= progress < END:
            return
        every = -(-len(data.records) // IMAGES)
        some = replace(data, records=data.records[::every])
        upright = self._score(some)
        if upright is None or not upright >= LEAST_AP:
            return
        flips = min(self._score(oriented(some, way)) or 0.0 for way in FLIPS)
        quarters = min(self._score(oriented(some, way)) or 0.0 for way in QUARTERS)
        either = flips >= KEPT * upright
        self.answer = {"flip_vertical": either, "rotate90": either and quarters >= KEPT * upright}
        added = "mirrored top to bottom" + (" and rotated by quarter turns" if self.answer["rotate90"] else "")
        found = f"objects are found either way, so from here images are also {added}"
        then = found if either else "objects have an up, so images stay upright"
        self._tell(
            f"AP on {len(some.records)} images of val {shown_score(upright)}, upside down {shown_score(flips)}, on their "
            f"side {shown_score(quarters)}: {then} (--no-auto-turn skips this test)."
        )

    def settings(self, config: TrainConfig) -> TrainConfig:
        """Return the settings of the run with what the test switched on."""
        return turned(config, self.answer)

    def state_dict(self) -> dict[str, Any]:
        """State for resuming."""
        return dict(self.answer)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`; a run that goes back to an earlier state keeps its answer."""
        if state:
            self.answer = {name: bool(value) for name, value in state.items()}
