"""Rows of YOLO labels that end in a confidence or a track number, as written by CVAT and by ultralytics.

With ``save_conf``, ultralytics writes a confidence before it: such a row looks like a polygon whose last point is
(confidence, number), on or below the lower edge of the image. Without, a row looks like a box with a confidence of 0 or 1,
or more. All rows of a split together decide: a number of 2 or more is not a position in an image, and confidences are not
all whole.

A polygon with a confidence may look like a box with key points of three values. An object has any number of corners, but
all boxes of a set have as many key points, so polygons of two lengths say what they are, and so does a length that no
number of key points gives, such as that of a rotated box.
"""

from __future__ import annotations

from collections.abc import Iterator

from nextdetr.data.raw import plural
from nextdetr.data.records import Problem
from nextdetr.data.yolo_labels import Row
from nextdetr.errors import DataError

__all__ = ["Tracks"]


class Tracks:
    """Holds back rows that may end in a track number, or a polygon's confidence, until all rows of a split are read."""

    def __init__(self) -> None:
        self._held: list[tuple[int, str, Row]] = []  # number of the image, file, row
        self._polygons = 0  # rows that certainly end in a point
        self._sixth: list[tuple[int, str, Row]] = []  # likewise, rows of a box and a whole number
        self._scored: list[tuple[int, str, Row]] = []  # likewise, rows of perhaps a polygon and a confidence
        self._confidences = 0  # rows that certainly end in a confidence

    def takes(self, image: int, file: str, row: Row) -> bool:
        """Hold a row if it may end in a track number; those that cannot count as polygons."""
        if row.scored_polygon:
            self._scored.append((image, file, row))
            return True
        if row.track is None:
            self._polygons += row.values > 6
            self._confidences += row.values == 6
            return False
        if row.values == 6 and row.track <= 1 and self._confidences:
            return False
        (self._sixth if row.values == 6 else self._held).append((image, file, row))
        return True

    def settle(self, problems: list[Problem], source: str) -> Iterator[tuple[int, str, Row]]:
        """Yield the held rows with their interpretation: number of the image, file, row.

        Args:
            problems: problems and interpretations are appended.
            source: file that names the data set, for messages.

        Raises:
            DataError: they may be tracks or polygons, and nothing says which.
        """
        yield from self._polygons_with_confidence(problems)
        yield from self._numbered(problems)
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

    def _polygons_with_confidence(self, problems: list[Problem]) -> Iterator[tuple[int, str, Row]]:
        """Yield the rows of a polygon and a confidence, if their lengths, with those of track rows, say so."""
        tracked = {row.values - 2 for _, _, row in self._held if row.values > 7}
        lengths = {row.values for _, _, row in self._scored}
        certain = len({count - 1 for count in lengths} | tracked) > 1 or any((count - 5) % 3 for count in lengths)
        if not self._polygons and certain:
            yield from self._scored
            return
        why = "other rows are polygons without one" if self._polygons else "as well of a box and key points"
        for _, file, row in self._scored:
            message = f"{row.values} values, as of a polygon and a confidence, but {why}; dropped"
            problems.append(Problem(file, row.where, message, "malformed label line"))

    def _numbered(self, problems: list[Problem]) -> Iterator[tuple[int, str, Row]]:
        """Yield the rows of a box and a whole number: that of a track, unless all are 1 or other rows have a confidence."""
        certain = self._confidences or self._held
        if self._sixth and not certain and {row.track for _, _, row in self._sixth} != {1}:
            _, file, first = self._sixth[0]
            count = plural(len(self._sixth), "row")
            message = f"{count} end in the number of a track, as CVAT and ultralytics write them; it is not used"
            problems.append(Problem(file, first.where, message, "track numbers"))
            yield from ((image, name, row._replace(confidence=None)) for image, name, row in self._sixth)
            return
        for image, file, row in self._sixth:
            if row.track in (0, 1):
                yield image, file, row
                continue
            message = f"the sixth value, {row.track}, is not a confidence, which is 0 to 1, as in other rows; dropped"
            problems.append(Problem(file, row.where, message, "malformed label line"))

    def _points(self, problems: list[Problem]) -> Iterator[tuple[int, str, Row]]:
        """Yield those rows whose last two values are a point, among polygons."""
        for image, file, row in self._held:
            if row.track == 1:
                yield image, file, row
                continue
            message = f"its last value, {row.track}, is not a position in an image, and other rows are polygons; dropped"
            problems.append(Problem(file, row.where, message, "malformed label line"))
