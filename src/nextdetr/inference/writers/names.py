"""Names of the files that are written of an image or a video."""

from __future__ import annotations

from pathlib import Path

from nextdetr.files import path_text
from nextdetr.inference.picture_file import of_address
from nextdetr.inference.predictor import Prediction

__all__ = ["Stems", "free_stem"]


def free_stem(path: str, taken: set[str], root: Path | None = None) -> str:
    """Return a stem that no image of this run has taken; names that differ in case alone are the same on many disks.

    Args:
        path: of the image.
        taken: stems that are, without case; gets this one.
        root: a folder, whose subfolders the stem of an image below it begins with, as in ``a/b/photo``.
    """
    if "://" in path:  # an address: what comes after its path is no part of a name
        path = of_address(path)
    below = Path(path).parent
    folder = below.relative_to(root).as_posix() if root is not None and below.is_relative_to(root) else "."
    wanted = path_text("" if folder == "." else f"{folder}/") + (path_text(Path(path).stem) or "image")
    stem, number = wanted, 1
    while stem.casefold() in taken:
        number += 1
        stem = f"{wanted}-{number}"
    taken.add(stem.casefold())
    return stem


class Stems:
    """One stem for all that is written of an image or a video.

    Args:
        root: see :func:`free_stem`.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = root
        self._taken: set[str] = set()
        self._latest: Prediction | None = None
        self._video: str | None = None
        self._stem = ""

    def of(self, prediction: Prediction) -> str:
        """Return the stem of the image or video that this prediction is of; predictions come in their order."""
        if prediction is self._latest:
            return self._stem
        same_video = prediction.frame is not None and not prediction.begins_video(self._video)
        if not same_video:
            self._stem = free_stem(prediction.path, self._taken, self._root)
        self._video = None if prediction.frame is None else prediction.path
        self._latest = prediction
        return self._stem
