"""Scoring and timing of exports, passed to the engine and to exports, which do not import each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nextdetr.config import ValConfig

if TYPE_CHECKING:
    from nextdetr.data.records import DetectionData
    from nextdetr.export.run import Score
    from nextdetr.inference.exported import OpenedExport
    from nextdetr.inference.speed import Setting, SpeedPoint
    from nextdetr.weights.checkpoint import OpenedModel

__all__ = ["exported_meter", "scorer"]


def scorer(data: str | None, split: str, *, quiet: bool = False) -> Score | None:
    """Return the scoring function for export and benchmark, which cannot import the engine; None without data."""
    if data is None:
        return None
    from nextdetr.engine.validate import score_detector

    described = False

    def score(
        opened: OpenedModel | OpenedExport, queries: int | None, part: DetectionData | None = None
    ) -> dict[str, float | None]:
        nonlocal described
        asked = ValConfig(data=data, split=split, device="cpu", queries=queries)
        hidden = quiet or part is not None
        result = score_detector(opened, asked, quiet=hidden, data=part, describe=not described, can_split_off=False)
        described = described or not hidden  # the data set is the same each time
        return result.metrics

    return score


def exported_meter(opened: OpenedModel, setting: Setting) -> SpeedPoint:
    """Time a setting for a training with ``latency``; passed to the engine, which cannot import exports."""
    from nextdetr.export.speed import meter

    return meter()(opened, setting)
