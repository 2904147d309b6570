"""Open, add, commit or abort: how every result of a prediction run is written.

A file gets its final name when it is whole, written through to the disk and, where it can be, opened again; that is what
``commit`` does, and only a run that has come to its end is committed. ``abort`` removes what is of no use alone, and leaves
what is under a name that says so (``cars.part.mp4``, ``predictions.part.json``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Protocol

from nextdetr.inference.predictor import Prediction

__all__ = ["Writer", "written"]


class Writer(Protocol):
    """Writes predictions in one format; making it opens it, or its first prediction does."""

    def add(self, prediction: Prediction) -> None:
        """Write a prediction, or keep it until the end.

        Raises:
            WriteError: the disk is full, or something else went wrong with this prediction or those before.
            ConfigError: another process is writing the same file.
        """
        ...

    def commit(self) -> None:
        """Finish, check what was written, and give it its final name; raises as ``add`` does, and has aborted then."""
        ...

    def abort(self) -> None:
        """Leave nothing under a final name that is not whole; never raises."""
        ...


def written(predictions: Iterable[Prediction], writers: Sequence[Writer]) -> Iterator[Prediction]:
    """Pass predictions on and write each; commit at their end, abort if there is none.

    Raises:
        WriteError: something could not be written.
    """
    try:
        for prediction in predictions:
            for writer in writers:
                writer.add(prediction)
            yield prediction
            del prediction  # its image need not outlive its user
    except BaseException:
        for writer in writers:
            with suppress(Exception):
                writer.abort()
        raise
    problem: Exception | None = None
    for writer in writers:
        try:
            writer.commit()
        except Exception as error:  # noqa: BLE001 - raised below; the others are as good as before
            problem = problem or error
    if problem is not None:
        raise problem
