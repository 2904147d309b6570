"""NextDETR: RT-DETR with ConvNeXt V2 backbones, from a folder of photographs to a scored detector.

Importing this package does not import torch: the public names are loaded on first use (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nextdetr.analysis.doctor.run import doctor
    from nextdetr.data.convert import convert
    from nextdetr.detector import Detector
    from nextdetr.engine.compare import compare
    from nextdetr.engine.graft import graft
    from nextdetr.engine.pretrain import pretrain
    from nextdetr.engine.runs import runs
    from nextdetr.errors import (
        ConfigError,
        DataError,
        ExportError,
        ModelFileError,
        NextDETRError,
        TrainingError,
        WeightsError,
    )

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "DataError",
    "Detector",
    "ExportError",
    "ModelFileError",
    "NextDETRError",
    "TrainingError",
    "WeightsError",
    "__version__",
    "compare",
    "convert",
    "doctor",
    "graft",
    "pretrain",
    "runs",
]

_HOMES = {
    "Detector": "nextdetr.detector",
    "compare": "nextdetr.engine.compare",
    "convert": "nextdetr.data.convert",
    "doctor": "nextdetr.analysis.doctor.run",
    "graft": "nextdetr.engine.graft",
    "pretrain": "nextdetr.engine.pretrain",
    "runs": "nextdetr.engine.runs",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'nextdetr' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES.get(name, "nextdetr.errors")), name)
    except ModuleNotFoundError as error:
        from nextdetr.extras import explained

        raise explained(error, f"nextdetr.{name}") or error from error


def __dir__() -> list[str]:
    return __all__
