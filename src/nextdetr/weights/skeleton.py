"""Models without memory for their weights, to look at names and shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from nextdetr.models.detection import DetectionModel
from nextdetr.models.graph import build_model, skip_backbone
from nextdetr.models.modelfile import ModelFile

__all__ = ["skeleton"]


class _Shapes(TorchFunctionMode):
    """Puts what modules allocate, parameters, on the meta device, and leaves out random initialisation.

    ``torch.device("meta")`` alone would run every operation of a constructor there, for which torch brings in its compiler:
    seconds, and more memory than the weights.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name.endswith("_") and any(word in name for word in ("normal_", "uniform_")):
            return args[0] if args else kwargs["tensor"]
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def skeleton(file: str | ModelFile, num_classes: int | None) -> DetectionModel:
    """Build a model whose weights have shapes only: they are on the meta device; its constants may be real.

    Args:
        file: a shipped name or a parsed model file.
        num_classes: in place of the file's.

    Raises:
        ModelFileError: the file cannot be built.
    """
    with _Shapes():
        return build_model(file, num_classes=num_classes, load_backbone=skip_backbone)
