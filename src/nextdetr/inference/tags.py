"""What a video says of how its frames are to be shown."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

__all__ = ["VideoTags"]

UNSPECIFIED = 2  # of matrix, primaries and transfer, in ITU-T H.273


@dataclass(frozen=True, slots=True)
class VideoTags:
    """How a video's frames are shown; a video that is made of them is written likewise.

    Attributes:
        rate: frames a second, about; 0 where the video does not say.
        aspect: width of a pixel divided by its height, of the frame as it stands upright.
        matrix: between RGB and YUV, by its number in ITU-T H.273 (1: BT.709, 6: BT.601).
        full_range: whether luma takes 0 to 255 rather than 16 to 235.
        primaries: of the colours, by number; 2 where the video does not say.
        transfer: characteristics, likewise.
        frames: how many there are, about; 0 where the video does not say.
    """

    rate: float = 0.0
    aspect: Fraction = Fraction(1)
    matrix: int = UNSPECIFIED
    full_range: bool = False
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    frames: int = 0

    def matrix_for(self, width: int, height: int) -> int:
        """Return the matrix; where the video names none for YUV, the one that players take: BT.709 for HD, else BT.601."""
        if self.matrix in (1, 4, 5, 6, 7, 9):
            return self.matrix
        return 1 if width >= 1280 or height > 576 else 6
