"""``last.ckpt``: everything that a resumed run needs to go on exactly where it stopped.

The file holds tensors and plain containers only and opens with ``torch.load(weights_only=True)``, so that a checkpoint
from a stranger runs no code. There is no generator state in it: the randomness of a sample is a function of (seed, epoch,
index), that of a step of (seed, step), see :func:`step_seed`.
"""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from nextdetr.errors import WeightsError
from nextdetr.files import atomic_write

__all__ = ["Cursor", "read_state", "step_seed", "write_state"]

STATE_VERSION = 1


@dataclass(slots=True)
class Cursor:
    """Where a run stands.

    Attributes:
        epoch, batch: the next batch to train on (from 0).
        step: optimiser steps taken.
        seconds: wall-clock used so far.
        images: images trained on so far.
        sums: running sums of the epoch's loss terms.
        counted: batches in those sums.
        rate: learning rate of the last step.
        best_epoch, best_metrics: the best validation so far; ``best_epoch`` is -1 before the first.
        stale: validations since the best one.
        validated_at: wall-clock at the end of the last validation.
        validation_seconds: what the last validation took.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    images: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counted: int = 0
    rate: float = 0.0
    best_epoch: int = -1
    best_metrics: dict[str, float | None] = field(default_factory=dict)
    stale: int = 0
    validated_at: float = 0.0
    validation_seconds: float = 0.0


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the denoising noise and the dropped paths of one step on one process."""
    return (seed * 1_000_003 + step * 8_191 + rank) % (2**63)


def write_state(path: str | Path, cursor: Cursor, **parts: dict[str, Any]) -> None:
    """Write the cursor and the state dicts of model, average, optimiser and scaler, whole or not at all."""
    with atomic_write(path) as temporary:
        torch.save({"state_version": STATE_VERSION, "cursor": asdict(cursor), **parts}, temporary)


def read_state(path: str | Path) -> tuple[Cursor, dict[str, Any]]:
    """Return the cursor and the other parts of a ``last.ckpt``.

    Raises:
        WeightsError: the file is missing, damaged, holds more than tensors and plain values, or has another version.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file, so there is nothing to resume; start the run anew with --output.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"{path}: not a readable training state ({first}).") from error
    if not isinstance(state, dict) or state.get("state_version") != STATE_VERSION:
        raise WeightsError(f"{path}: not a training state of this version of NextDETR (expected version {STATE_VERSION}).")
    cursor = Cursor(**state.pop("cursor"))
    state.pop("state_version")
    return cursor, state
