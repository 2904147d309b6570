"""Table of a model's rows, with parameters and GFLOP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nextdetr.layers.winograd import direct_sums
from nextdetr.models.detection import DetectionModel
from nextdetr.models.profile import RowProfile, profile_rows

__all__ = ["RowSummary", "Summary", "count_gflop", "gflop_near", "summarize"]


@dataclass(frozen=True, slots=True)
class RowSummary:
    """One row of the table.

    ``maps`` are the indices of its output maps, by which ``from`` of other rows names them; ``parameters`` counts all,
    trainable or not; ``profile`` holds measurements.
    """

    index: int
    maps: tuple[int, ...]
    from_: int | list[int]
    repeats: int
    parameters: int
    module: str
    arguments: list[Any]
    profile: RowProfile | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the row for the JSON result; ``seconds`` and ``gflop`` only if they were measured."""
        row: dict[str, Any] = {
            "index": self.index, "from": self.from_, "repeats": self.repeats, "parameters": self.parameters,
            "module": self.module, "arguments": self.arguments,
        }  # fmt: skip
        return row if self.profile is None else row | {"seconds": self.profile.seconds, "gflop": self.profile.gflop}


@dataclass(frozen=True, slots=True)
class Summary:
    """The table and its totals; ``gflop`` is for one image of ``image_size`` pixels, 2 per multiply-add."""

    rows: list[RowSummary]
    parameters: int
    trainable_parameters: int
    gflop: float
    image_size: int

    def to_json(self) -> dict[str, Any]:
        """Return the summary for the JSON result."""
        return {
            "rows": [row.to_json() for row in self.rows], "parameters": self.parameters,
            "trainable_parameters": self.trainable_parameters, "gflop": round(self.gflop, 3), "image_size": self.image_size,
        }  # fmt: skip


def summarize(model: DetectionModel, image_size: int = 640, *, profile: bool = False) -> Summary:
    """Return the table of a model.

    Args:
        model: any detector; its mode is restored.
        image_size: side of the square input in pixels for the GFLOP; a multiple of the model's ``stride``.
        profile: also measure time and count operations of each row.

    Raises:
        ConfigError: the model does not accept images of this size.
    """
    model.check_size(image_size)
    measured = profile_rows(model, image_size) if profile else [None] * len(model.rows)
    rows = [
        RowSummary(
            number,
            info.writes,
            info.from_,
            info.repeats,
            sum(p.numel() for p in row.parameters()),
            info.name,
            list(info.arguments),
            cost,
        )
        for number, (row, info, cost) in enumerate(zip(model.rows, model.row_infos, measured, strict=True))
    ]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(row.parameters for row in rows)
    return Summary(rows, total, trainable, count_gflop(model, image_size), image_size)


def count_gflop(model: DetectionModel, image_size: int) -> float:
    """Count the operations of an evaluation forward on one image, without side effects on the model."""
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    counter = FlopCounterMode(display=False)
    model.eval()
    try:
        # The counter does not see inside the CPU's fused attention, hence the plain one.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), direct_sums(), counter:
            model(torch.zeros(1, 3, image_size, image_size, device=device))
    finally:
        for module, training in modes:
            module.training = training
    return float(counter.get_total_flops()) / 1e9


def gflop_near(model: DetectionModel, image_size: int) -> float:
    """Count the operations at the nearest size that the model accepts, and scale them to ``image_size`` by area."""
    side = model.stride * max(1, round(image_size / model.stride))
    return count_gflop(model, side) * (image_size / side) ** 2
