"""supervision, imported without its advice to install OpenCV: NumPy does all that is asked of it here."""

import warnings
from typing import Any

from numpy.typing import NDArray

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="OpenCV", category=UserWarning)
    import supervision as sv

__all__ = ["rows", "sv"]


def rows(detections: sv.Detections, chosen: NDArray[Any]) -> sv.Detections:
    """Return the chosen detections, by mask or index: of ``detections[chosen]`` the type alone would not say so."""
    result = detections[chosen]
    assert isinstance(result, sv.Detections)
    return result
