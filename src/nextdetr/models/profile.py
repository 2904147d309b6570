"""Time and operations of each row of a model, one forward pass per run.

Operations are counted with torch's counter (2 per multiply-add), separately from the timed runs, which it would slow down.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nextdetr.layers.winograd import direct_sums
from nextdetr.models.detection import DetectionModel

__all__ = ["RowProfile", "profile_rows"]

#: Untimed runs (memory allocation, kernel selection), and timed runs of which the median is taken.
WARM_UP, RUNS = 2, 5


@dataclass(frozen=True, slots=True)
class RowProfile:
    """Cost of one row for one image: ``seconds`` is the median of the runs, ``gflop`` counts 2 per multiply-add."""

    seconds: float
    gflop: float

    @property
    def gflop_per_second(self) -> float:
        """Arithmetic throughput of the row."""
        return self.gflop / self.seconds if self.seconds > 0 else 0.0


def profile_rows(model: DetectionModel, image_size: int, *, runs: int = RUNS, warm_up: int = WARM_UP) -> list[RowProfile]:
    """Profile an evaluation forward on one image, row by row, without side effects on the model.

    The first row's share excludes the normalisation of the image, which belongs to no row.

    Args:
        model: any detector, on the device to measure.
        image_size: side of the square input, pixels, a multiple of the model's ``stride``.
        runs: timed forward passes, at least 1.
        warm_up: untimed passes before.

    Returns:
        One profile for each row, in order.
    """
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    image = torch.rand(1, 3, image_size, image_size, device=device, generator=torch.Generator(device).manual_seed(0))
    model.eval()
    try:
        with torch.no_grad():
            counter = FlopCounterMode(display=False)
            # The counter does not see inside the CPU's fused attention, hence the plain one.
            with sdpa_kernel(SDPBackend.MATH), direct_sums(), counter:
                flop = _differences(model, image, lambda: float(counter.get_total_flops()))
            for _ in range(warm_up):
                model(image)
            timed = [_differences(model, image, lambda: _clock(device)) for _ in range(runs)]
    finally:
        for module, training in modes:
            module.training = training
    seconds = [median(row) for row in zip(*timed, strict=True)]
    return [RowProfile(took, operations / 1e9) for took, operations in zip(seconds, flop, strict=True)]


def _clock(device: torch.device) -> float:
    """Time in seconds, after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def _differences(model: DetectionModel, image: torch.Tensor, reading: Callable[[], float]) -> list[float]:
    """Run the model once and return the increase of ``reading`` in each row."""
    before: dict[nn.Module, float] = {}
    rises: dict[nn.Module, float] = {}

    def start(row: nn.Module, _: Any) -> None:
        before[row] = reading()

    def end(row: nn.Module, _: Any, __: Any) -> None:
        rises[row] = reading() - before[row]

    with ExitStack() as hooks:
        for row in model.rows:
            hooks.callback(row.register_forward_pre_hook(start).remove)
            hooks.callback(row.register_forward_hook(end).remove)
        model(image)
    return [rises[row] for row in model.rows]
