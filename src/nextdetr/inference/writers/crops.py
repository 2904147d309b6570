"""A picture of each object, cut out of its image, in a folder for each class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from nextdetr.files import path_text
from nextdetr.inference.picture_file import picture_suffix, write_picture
from nextdetr.inference.predictor import Prediction
from nextdetr.inference.writers.names import Stems

__all__ = ["CropFiles", "class_folders"]

_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}


class CropFiles:
    """Writes ``<class>/<stem>-<n>.jpg`` of the n-th object of an image, and ``<class>/<stem>_<frame>_<n>.jpg`` of a frame.

    Counting begins with 1, the surest. No two objects have the same name: the number is what follows the last dash of an
    image's, or the last underscore of a frame's, and the stems of a run all differ.

    Args:
        folder: where to.
        stems: names the files.
        classes: names in the order of the indices; None takes those of the detections.
    """

    def __init__(self, folder: Path, stems: Stems, classes: Sequence[str] | None = None) -> None:
        self._folder, self._stems = folder, stems
        self._folders = {} if classes is None else dict(enumerate(class_folders(classes)))

    def add(self, prediction: Prediction) -> None:
        """Write the objects of an image or frame, each whole or not at all."""
        if prediction.image is None or len(prediction.found) == 0:
            return
        stem = self._stems.of(prediction)
        stem += "-" if prediction.frame is None else f"_{prediction.frame:06d}_"
        rows = prediction.to_json()["detections"]
        for number, (row, picture) in enumerate(zip(rows, prediction.crops(), strict=True), start=1):
            folder = self._folder / self._folder_of(row["class_id"], row["class_name"])
            write_picture(picture, folder / f"{stem}{number}{picture_suffix(picture)}")

    def commit(self) -> None:
        """Do nothing: each picture has its name already."""

    def abort(self) -> None:
        """Do nothing: those that are there are whole."""

    def _folder_of(self, label: int, name: str) -> str:
        if label not in self._folders:
            (wanted,) = class_folders([name])
            used = {folder.casefold() for folder in self._folders.values()}
            self._folders[label] = wanted if wanted.casefold() not in used else f"{wanted}-{label}"
        return self._folders[label]


def class_folders(classes: Sequence[str]) -> list[str]:
    """Return the name of a folder for each class: its own where that can be one, and no name twice on any disk."""
    taken: set[str] = set()
    folders = []
    for number, name in enumerate(classes):
        wanted = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]', "_", path_text(name)).strip(". ")[:100]
        if not wanted or wanted.casefold() in _RESERVED:
            wanted = f"class {number}"
        folder = wanted
        while folder.casefold() in taken:
            folder = f"{wanted}-{number}" if folder == wanted else f"{folder}-{number}"
        taken.add(folder.casefold())
        folders.append(folder)
    return folders
