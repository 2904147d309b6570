"""Rows of YOLO labels that end in a confidence and a track number, as written by ultralytics' ``track``.

A single such row looks like a polygon whose last point is (confidence, number), on or below the lower edge of the image.
All rows of a split together decide: a number of 2 or more is not a position in an image.
"""

from __future__ import annotations

from collections.abc import Iterator

from nextdetr.data.raw import plural
from nextdetr.data.records import Problem
from nextdetr.data.yolo_labels import Row
from nextdetr.errors import DataError

__all__ = ["Tracks"]


class Tracks:
    """Holds back rows that may end in a track number until all rows of a split are read."""

    def __init__(self) -> None:
        self._held: list[tuple[int, str, Row]] = []  # number of the image, file, row
        self._polygons = 0  # rows that certainly end in a point

    def takes(self, image: int, file: str, row: Row) -> bool:
        """Hold a row if it may end in a track number; those that cannot count as polygons."""
        if row.track is not None:
            self._held.append((image, file, row))
            return True
        self._polygons += row.values > 6
        return False

    def settle(self, problems: list[Problem], source: str) -> Iterator[tuple[int, str, Row]]:
        """Yield the held rows with their interpretation: number of the image, file, row.

        Args:
            problems: problems and interpretations are appended.
            source: file that names the data set, for messages.

        Raises:
            DataError: they may be tracks or polygons, and nothing says which.
        """
        if not self._held:
            return
        _, file, first = self._held[0]
        count, numbers = plural(len(self._held), "row"), {row.track for _, _, row in self._held}
        if self._polygons:
            yield from self._points(problems)
        elif numbers == {1}:
            raise DataError(
                f"{file}, {first.where}: {count} of {source} may end in a confidence and the number of a track, 1 here, or "
                "be polygons whose last point is on the lower edge, and nothing says which: take the last two values "
                "out of each if they are tracks, or let the polygons begin with another point."
            )
        else:
            message = f"{count} end in a confidence and the number of a track, as ultralytics writes them; it is not used"
            problems.append(Problem(file, first.where, message, "track numbers"))
            yield from ((image, name, row.without_track()) for image, name, row in self._held)

    def _points(self, problems: list[Problem]) -> Iterator[tuple[int, str, Row]]:
        """Yield those rows whose last two values are a point, among polygons."""
        for image, file, row in self._held:
            if row.track == 1:
                yield image, file, row
                continue
            message = f"its last value, {row.track}, is not a position in an image, and other rows are polygons; dropped"
            problems.append(Problem(file, row.where, message, "malformed label line"))
