"""``last.ckpt``: everything needed to resume a run exactly where it stopped.

The file holds only tensors and plain containers and opens with ``torch.load(weights_only=True)``, so an untrusted
checkpoint runs no code. It has no generator state: the randomness of a sample is a function of (seed, epoch, index), that
of a step of (seed, step), see :func:`step_seed`. Other conditions are in ``engine/resume.py``.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from nextdetr.confidence import Thresholds
from nextdetr.engine.best import Best, StoredThresholds
from nextdetr.errors import WeightsError
from nextdetr.files import atomic_write

__all__ = ["Cursor", "from_file", "non_finite_tensor", "read_state", "step_seed", "write_state"]

STATE_VERSION = 2

T = TypeVar("T")
Count: TypeAlias = Annotated[int, Field(ge=0, lt=2**62)]


@dataclass(slots=True)
class Cursor:
    """Position of a run.

    Attributes:
        epoch: the current epoch (from 0).
        place: images of this epoch trained on so far, over all processes.
        step: optimizer steps taken.
        images: images trained on so far.
        sums: running sums of the epoch's loss terms.
        counted: batches in those sums.
        rate: learning rate of the last step.
        seconds: wall-clock time so far.
        reserve: seconds reserved for the last validation.
        progress: completed fraction of the run.
        length: (epochs, minutes) that ``progress`` refers to; one of them is None.
        best: the best validation so far.
        validated: number of finished epochs at the last validation.
        metrics: its COCO metrics.
        thresholds: confidence with the best F1 of each class there.
        validated_at: wall-clock time at its end.
        validation_seconds: its duration.
    """

    epoch: Count = 0
    place: Count = 0
    step: Count = 0
    images: Count = 0
    sums: dict[str, float] = field(default_factory=dict)
    counted: Count = 0
    rate: float = 0.0
    seconds: float = 0.0
    reserve: float = 0.0
    progress: float = 0.0
    length: tuple[int | None, float | None] = (None, None)
    best: Best = field(default_factory=Best)
    validated: Count = 0
    metrics: dict[str, float | None] = field(default_factory=dict)
    thresholds: StoredThresholds = field(default_factory=Thresholds)
    validated_at: float = 0.0
    validation_seconds: float = 0.0


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the denoising noise and drop path of one step in one process."""
    return (seed * 1_000_003 + step * 8_191 + rank) % (2**63)


def non_finite_tensor(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of a tensor with NaN or infinity, or None; the usual case takes one device synchronisation."""
    names = [name for name, tensor in state.items() if tensor.is_floating_point() and tensor.numel()]
    if not names:
        return None
    largest = torch.stack([norm.float() for norm in torch._foreach_norm([state[name] for name in names], float("inf"))])
    good = torch.isfinite(largest)
    return None if bool(good.all()) else names[int(torch.argmin(good.int()))]


def write_state(path: str | Path, cursor: Cursor, **parts: dict[str, Any]) -> None:
    """Write the cursor and the other parts (state dicts, and what the run must keep) atomically."""
    with atomic_write(path) as temporary:
        torch.save({"state_version": STATE_VERSION, "cursor": asdict(cursor), **parts}, temporary)


def from_file(kind: type[T], values: Any) -> T:
    """Build a dataclass from untrusted values of a file.

    Raises:
        ValueError: not a mapping, or a field is unknown, missing or of another type; the message names it.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{kind.__name__.lower()} is not a mapping")
    unknown = values.keys() - {item.name for item in fields(kind)}  # type: ignore[arg-type]
    if unknown:
        raise ValueError(f"unknown is {min(map(str, unknown))}")
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}") from error


def read_state(path: str | Path) -> tuple[Cursor, dict[str, Any]]:
    """Return the cursor and the other parts of a ``last.ckpt``.

    Raises:
        WeightsError: the file is missing, damaged, holds more than tensors and plain values, or has another version.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file, so there is nothing to resume; start a new run with --output.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or ["it ends too early"])[0].rstrip(".")
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):  # torch advises to run the file
            reason = "damaged, or of more than tensors and plain values; nothing in it was run"
        raise WeightsError(f"{path}: not a readable training state ({reason}).") from error
    version = state.get("state_version") if isinstance(state, dict) else None
    if version != STATE_VERSION:
        earlier = isinstance(version, int) and version < STATE_VERSION
        raise WeightsError(
            f"{path}: written by an earlier NextDETR, whose runs this version cannot resume; its weights are beside it: "
            "start a new run from them."
            if earlier
            else f"{path}: not a training state of this version of NextDETR (expected version {STATE_VERSION})."
        )
    try:
        cursor = from_file(Cursor, state.pop("cursor", None))
    except ValueError as error:
        raise WeightsError(f"{path}: not a whole training state ({error}).") from error
    state.pop("state_version")
    return cursor, state
