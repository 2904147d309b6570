"""The speed contract: what a detector takes and finds at several input sizes, numbers of queries and decoder layers.

One training serves all of them, since sizes vary from batch to batch and each decoder layer is supervised (RT-DETR, arXiv
2304.08069, section 4.4). The table of the best of them is in the checkpoint's metadata; prediction, export and benchmark
pick from it. No torch.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from nextdetr.errors import ConfigError, WeightsError

__all__ = [
    "SPEED", "Setting", "SpeedPoint", "SpeedTable", "choose", "pareto", "processor_name", "read_points", "read_table",
]  # fmt: skip

#: Key of a detector's metadata: its table.
SPEED = "speed"
WITHIN = 0.1  # of the latency asked for: so near below it a point uses what it may take
MARGIN = 0.005  # of AP: what a point so near may lose against the best one; images of a validation differ by more


class Setting(NamedTuple):
    """What can be chosen without training: side of the square input in pixels, object queries, decoder layers."""

    image_size: int
    queries: int
    layers: int

    @property
    def text(self) -> str:
        """For messages."""
        return f"{self.image_size} px, {self.queries} queries, {self.layers} decoder layer{'s' if self.layers > 1 else ''}"


@dataclass(frozen=True, slots=True)
class SpeedPoint:
    """A setting, and what it takes and finds.

    Attributes:
        image_size, queries, layers: see ``Setting``.
        AP: on the validation part, 0 to 1; None where it is not known.
        latency_ms: milliseconds of one image through the network, without reading and resizing it.
        runtime: ``openvino``, ``onnxruntime``, or ``pytorch`` where nothing was exported.
        processor: its name.
        threads: of the runtime.
        measured: whether this very setting was measured, and not estimated from others.
    """

    image_size: int
    queries: int
    layers: int
    AP: float | None
    latency_ms: float
    runtime: str
    processor: str
    threads: int
    measured: bool

    @property
    def setting(self) -> Setting:
        """What was chosen."""
        return Setting(self.image_size, self.queries, self.layers)

    @property
    def score(self) -> float:
        """AP, 0 where it is undefined."""
        return self.AP or 0.0

    @property
    def text(self) -> str:
        """For messages."""
        found = "" if self.AP is None else f", AP {self.AP:.4f}"
        how = "" if self.measured else ", estimated"
        return f"{self.latency_ms:.1f} ms ({self.setting.text}{found}; {self.machine}{how})"

    @property
    def machine(self) -> str:
        """What it was measured on, and in."""
        return f"{self.runtime} on {self.processor}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    @classmethod
    def from_json(cls, values: Any) -> SpeedPoint:
        """Read a point.

        Raises:
            ValueError: it is none.
        """
        if not isinstance(values, dict):
            raise ValueError("a point is no mapping")
        whole: dict[str, Any] = {name: values.get(name) for name in ("image_size", "queries", "layers", "threads")}
        for name, number in whole.items():
            if type(number) is not int or not 0 < number < 1 << 20:
                raise ValueError(f"{name} is {number!r}")
        score, latency = values.get("AP"), values.get("latency_ms")
        if not _is_number(latency) or latency <= 0:
            raise ValueError(f"latency_ms is {latency!r}")
        if score is not None and not (_is_number(score) and 0 <= score <= 1):
            raise ValueError(f"AP is {score!r}")
        size, queries, layers, threads = whole.values()
        runtime, processor = (str(values.get(name, "unknown"))[:200] for name in ("runtime", "processor"))
        measured = values.get("measured") is True
        return cls(size, queries, layers, score, float(latency), runtime, processor, threads, measured)


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class SpeedTable:
    """The points of a detector.

    Attributes:
        asked_ms: the latency that its training was asked for.
        chosen: the point that keeps it; None where none does.
        points: from the fastest to the slowest, each more accurate than all faster ones; ``chosen`` is among them.
        images: validation images that AP was measured on.
    """

    asked_ms: float
    chosen: SpeedPoint | None
    points: tuple[SpeedPoint, ...]
    images: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as in the JSON results and in metadata."""
        return asdict(self) | {"points": [asdict(point) for point in self.points]}

    @classmethod
    def from_json(cls, values: Any) -> SpeedTable:
        """Read a table.

        Raises:
            ValueError, LookupError, TypeError: it is none.
        """
        points = tuple(SpeedPoint.from_json(point) for point in values["points"])
        chosen = None if values["chosen"] is None else SpeedPoint.from_json(values["chosen"])
        asked, images = values["asked_ms"], values["images"]
        if not points or not _is_number(asked) or asked <= 0 or type(images) is not int:
            raise ValueError("it has no points, or does not say what was asked")
        return cls(float(asked), chosen, points, images)


def read_table(metadata: Mapping[str, str], source: str) -> SpeedTable | None:
    """Return the table in a detector's metadata; None where it has none.

    Raises:
        WeightsError: it is damaged.
    """
    if SPEED not in metadata:
        return None
    try:
        return SpeedTable.from_json(json.loads(metadata[SPEED]))
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise WeightsError(f"{source}: its metadata is damaged: the table of speeds cannot be read ({error}).") from error


def read_points(path: str | Path, model: str | None = None) -> list[SpeedPoint]:
    """Return the points that ``nextdetr benchmark`` measured, perhaps on another machine.

    Args:
        path: ``benchmark.json``, or what ``benchmark --json`` printed.
        model: digest of the model file that they must be of (see ``model_digest``); None takes any.

    Raises:
        ConfigError: the file cannot be read, holds no points, none that were measured there, or those of another model.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        points = [SpeedPoint.from_json(point) for point in values["points"]]
    except OSError as error:
        raise ConfigError(f"--latency-of {path}: it cannot be read ({error.strerror or error}).") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"--latency-of {path}: it holds no measured points ({error}): write it on the machine in question with "
            "nextdetr benchmark MODEL --points --json."
        ) from error
    if not points:
        raise ConfigError(
            f"--latency-of {path}: it holds no measured points: run nextdetr benchmark MODEL with --points there."
        )
    if values.get("points_measured") is False:
        raise ConfigError(
            f"--latency-of {path}: its points are those of the model's own table, not measured there: run nextdetr "
            "benchmark with --points there."
        )
    if model is not None and values.get("model_digest", model) != model:
        raise ConfigError(
            f"--latency-of {path}: it was measured with another model ({values.get('model', 'unknown')}): run "
            "nextdetr benchmark with --points there on this one."
        )
    return points


def pareto(points: Iterable[SpeedPoint]) -> list[SpeedPoint]:
    """Return the points to which none is both as fast and as accurate, from the fastest to the slowest."""
    kept: list[SpeedPoint] = []
    for point in sorted(points, key=lambda p: (p.latency_ms, -p.score)):
        if not kept or point.score > kept[-1].score:
            kept.append(point)
    return kept


def choose(points: Sequence[SpeedPoint], latency: float) -> SpeedPoint | None:
    """Return the most accurate point that takes at most ``latency`` milliseconds; None where none does.

    Of points within ``MARGIN`` of its AP, which the images of a validation cannot tell apart, one that uses the time
    (no less than 1 - ``WITHIN`` of it) is preferred: more pixels and queries are worth more on other images than on these.
    """
    possible = [point for point in points if point.latency_ms <= latency]
    if not possible:
        return None
    best = max(possible, key=lambda p: (p.score, -p.latency_ms))
    near = [p for p in possible if p.latency_ms >= (1 - WITHIN) * latency and p.score >= best.score - MARGIN]
    return max(near, key=lambda p: (p.score, p.latency_ms)) if near else best


@cache
def processor_name() -> str:
    """Name of this machine's processor, as the system gives it."""
    if sys.platform.startswith("linux"):
        try:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
            name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
        except OSError:
            name = ""
    elif sys.platform == "darwin":
        import subprocess

        asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            name = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=False).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            name = ""
    else:
        name = os.environ.get("PROCESSOR_IDENTIFIER", "")
    return name or platform.processor() or platform.machine() or "unknown processor"
