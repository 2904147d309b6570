"""Models without memory for their weights, to look at names and shapes."""

from __future__ import annotations

from nextdetr.models.detection import DetectionModel
from nextdetr.models.graph import build_skeleton
from nextdetr.models.modelfile import ModelFile

__all__ = ["skeleton"]


def skeleton(file: str | ModelFile, num_classes: int | None) -> DetectionModel:
    """Build a model whose weights have shapes only; see ``build_skeleton``.

    Args:
        file: a shipped name or a parsed model file.
        num_classes: in place of the file's.

    Raises:
        ModelFileError: the file cannot be built.
    """
    return build_skeleton(file, num_classes=num_classes)
