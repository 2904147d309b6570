"""The objects found in an image, in NumPy arrays; supervision's type is made of them where it is asked for.

supervision imports SciPy and matplotlib, which takes longer than all else that a picture needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import supervision as sv

__all__ = ["Found", "Objects"]

#: What can be drawn, cut out and written.
Found: TypeAlias = "Objects | sv.Detections"


@dataclass(slots=True, eq=False)
class Objects:
    """Objects, a row each.

    Attributes:
        xyxy: boxes in pixels of the image, [N, 4].
        confidence: 0 to 1, [N].
        class_id: [N].
        tracker_id: [N], -1 where there is no track yet; None where nothing is tracked.
        data: further columns by name, [N] each, such as ``class_name``.
    """

    xyxy: NDArray[np.number[Any]]
    confidence: NDArray[np.floating[Any]] | None = None
    class_id: NDArray[np.integer[Any]] | None = None
    tracker_id: NDArray[np.integer[Any]] | None = None
    data: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Found) -> Objects:
        """Return what was found without supervision's type; the arrays are shared."""
        if isinstance(found, Objects):
            return found
        return cls(found.xyxy, found.confidence, found.class_id, found.tracker_id, dict(found.data))

    @classmethod
    def joined(cls, parts: Sequence[Objects]) -> Self:
        """Return the rows of all parts, one part after the other; they have the same columns, and there is at least one."""

        def column(values: list[Any]) -> Any:
            return None if values[0] is None else np.concatenate(values)

        return cls(
            column([part.xyxy for part in parts]),
            column([part.confidence for part in parts]),
            column([part.class_id for part in parts]),
            column([part.tracker_id for part in parts]),
            {name: column([part.data[name] for part in parts]) for name in parts[0].data},
        )

    def __len__(self) -> int:
        return len(self.xyxy)

    def __eq__(self, other: object) -> bool:
        """Whether all columns are the same, whichever of the two types has them."""
        if not hasattr(other, "xyxy"):
            return NotImplemented
        names = ("xyxy", "confidence", "class_id", "tracker_id")
        same = all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)
        theirs: dict[str, Any] = getattr(other, "data", {})
        return same and self.data.keys() == theirs.keys() and all(np.array_equal(self.data[k], theirs[k]) for k in theirs)

    __hash__ = None  # type: ignore[assignment] # the arrays can change

    def __getitem__(self, chosen: Any) -> Self:
        """Return some of the rows, by mask, index, indices or slice."""
        rows = np.atleast_1d(np.arange(len(self))[chosen])
        confidence, labels, tracks = self.confidence, self.class_id, self.tracker_id
        return type(self)(
            self.xyxy[rows],
            None if confidence is None else confidence[rows],
            None if labels is None else labels[rows],
            None if tracks is None else tracks[rows],
            {name: np.asarray(column)[rows] for name, column in self.data.items()},
        )

    def to_supervision(self) -> sv.Detections:
        """Return a ``supervision.Detections`` of the same arrays."""
        from nextdetr.inference._supervision import sv

        return sv.Detections(
            self.xyxy, confidence=self.confidence, class_id=self.class_id, tracker_id=self.tracker_id, data=self.data
        )
