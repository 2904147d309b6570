"""Inputs of the recipe: numbers about the data and the machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nextdetr.data.records import DetectionData

__all__ = ["DataStats", "Machine", "describe_data", "describe_machine"]


@dataclass(frozen=True, slots=True)
class DataStats:
    """Numbers about the training split, without crowds.

    Attributes:
        images: number of images.
        boxes: number of boxes.
        classes: class names.
        boxes_by_class: number of boxes of each class.
        most_boxes: largest number of boxes in an image.
        small_side: side of a small box (90 % are larger) as a fraction of the square input: the square root of its share of
            the image area. 0 without boxes.
        longest_side: longest side of a typical (median) image, pixels.
        extents: width and height of every image, pixels.
    """

    images: int
    boxes: int
    classes: tuple[str, ...]
    boxes_by_class: tuple[int, ...]
    most_boxes: int
    small_side: float
    longest_side: int
    extents: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Machine:
    """Numbers about the machine.

    Attributes:
        device: cpu, cuda or mps.
        threads: processor threads that torch uses for one operation.
        cores: processor cores that this process may use.
        memory: bytes of free main memory.
        device_memory: bytes of GPU memory; 0 without a GPU.
        processes: number of processes on this machine that train together.
    """

    device: str
    threads: int
    cores: int
    memory: int
    device_memory: int = 0
    processes: int = 1


def describe_data(data: DetectionData) -> DataStats:
    """Count the contents of a split."""
    counts = np.zeros(len(data.classes), dtype=np.int64)
    sides, most = [], 0
    for record in data.records:
        kept = ~np.asarray(record.crowd, dtype=bool)
        boxes, labels = np.asarray(record.boxes, dtype=np.float64)[kept], np.asarray(record.labels)[kept]
        counts += np.bincount(labels, minlength=len(counts))
        most = max(most, len(boxes))
        shares = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1) / max(1, record.width * record.height)
        sides.append(np.sqrt(shares))
    flat = np.concatenate(sides) if sides else np.empty(0)
    extents = tuple((record.width, record.height) for record in data.records)
    return DataStats(
        images=len(data.records), boxes=int(counts.sum()), classes=tuple(data.classes),
        boxes_by_class=tuple(counts.tolist()), most_boxes=most,
        small_side=float(np.quantile(flat, 0.1)) if len(flat) else 0.0,
        longest_side=int(np.median([max(extent) for extent in extents])) if extents else 0, extents=extents,
    )  # fmt: skip


def describe_machine(device: torch.device, processes: int = 1) -> Machine:
    """Describe this machine: the training device, usable cores, free memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = 0
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    return Machine(device.type, torch.get_num_threads(), cores, _free_memory(), memory, processes)


def _free_memory() -> int:
    """Bytes of main memory available without swapping, within a container's limit; 4 GB if unknown."""
    free = [_meminfo(Path("/proc/meminfo")), _container_room(Path("/sys/fs/cgroup"))]
    known = [value for value in free if value is not None]
    return min(known) if known else 4 * 2**30


def _meminfo(path: Path) -> int | None:
    try:
        lines: Sequence[str] = path.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _container_room(folder: Path) -> int | None:
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        return None if limit == "max" else max(0, int(limit) - used)
    except (OSError, ValueError):
        return None
