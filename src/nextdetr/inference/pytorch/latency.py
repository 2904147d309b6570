"""Measuring what one image takes, as the speed contract counts it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from nextdetr.inference.speed import Setting, SpeedPoint, processor_name
from nextdetr.models.cut import cut_layers
from nextdetr.models.fuse import fuse
from nextdetr.weights.checkpoint import OpenedModel

__all__ = ["eager_point", "steady_ms"]

WARM_UP = 3  # calls
ROUNDS, CALLS, SECONDS = 5, 3, 0.25  # of each round: minimum number of calls, and minimum seconds
LIMIT = 8.0  # seconds after which no further round begins: a large model tells enough by then


def steady_ms(call: Callable[[], Any], *, clock: Callable[[], float] = time.perf_counter) -> float:
    """Milliseconds of a call: the median of a round of calls, in the best of five rounds.

    What else a machine does for a while makes some rounds longer, and none shorter.
    """
    begun = clock()
    for _ in range(WARM_UP):
        call()
        if clock() - begun > LIMIT / 4:
            break
    medians: list[float] = []
    while len(medians) < ROUNDS and (not medians or clock() - begun < LIMIT):
        taken: list[float] = []
        while sum(taken) < SECONDS or len(taken) < CALLS:
            started = clock()
            call()
            taken.append(clock() - started)
        medians.append(statistics.median(taken))
    return 1000 * min(medians)


@torch.inference_mode()
def eager_point(opened: OpenedModel, setting: Setting) -> SpeedPoint:
    """Measure a setting in PyTorch on the processor, folded, where nothing can be exported."""
    model = fuse(cut_layers(opened.model, setting.layers)).cpu().float()
    image = torch.rand(1, 3, setting.image_size, setting.image_size)
    latency = steady_ms(lambda: model(image, queries=setting.queries))
    return SpeedPoint(*setting, None, latency, "pytorch", processor_name(), torch.get_num_threads(), True)
