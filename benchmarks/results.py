"""Shared by all benchmark scripts: a line about the machine, interleaved timing, and the dated result file."""

from __future__ import annotations

import datetime
import json
import platform
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

K = TypeVar("K", bound=Hashable)
FOLDER = Path(__file__).parent / "results"


def machine() -> str:
    """Return one sentence about the machine and the versions."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    isa = torch.backends.cpu.get_cpu_capability()
    return f"Machine: {model}, {isa}, {torch.get_num_threads()} threads; torch {torch.__version__}."


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Store the settings that all runs in a folder share; refuse a folder with runs of others.

    Finished runs are reported and not repeated, so those of other settings would be taken for the ones requested.

    Raises:
        SystemExit: the folder was used with other settings.
    """
    noted = folder / "settings.json"
    if noted.is_file():
        earlier = json.loads(noted.read_text(encoding="utf-8"))
        other = ", ".join(name for name, value in settings.items() if (earlier.get(name) or None) != (value or None))
        if other:
            raise SystemExit(f"{folder} contains runs with another {other}; choose another --output.")
    folder.mkdir(parents=True, exist_ok=True)
    noted.write_text(json.dumps(settings), encoding="utf-8")


def take_turns(runs: Mapping[K, Callable[[], Any]], repeats: int) -> dict[K, list[float]]:
    """Time all runs in turns, ``repeats`` times, after two warm-up rounds; return the seconds of each.

    Runs take turns, so that drift in the machine's speed affects all of them. Each turn is two calls, and the second one is
    timed, because another runtime's threads may still be spinning and caches are cold.
    """
    seconds: dict[K, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 2):
        for name, run in runs.items():
            run()
            started = time.perf_counter()
            run()
            if repeat >= 2:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """Median of the ratios after / before of each turn, and a 95 % bootstrap interval over the turns."""
    ratios = np.divide(after, before)
    drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return float(np.median(ratios)), float(low), float(high)


def with_seeds(name: str, seeds: Sequence[int], usual: Sequence[int] = (0, 1, 2)) -> str:
    """Return the name of a result with its seeds, unless they are the usual ones, so that parts of a study are all kept."""
    return name if tuple(seeds) == tuple(usual) else f"{name}-seed-{'-'.join(map(str, seeds))}"


def write_result(name: str, lines: Sequence[str], *, write: bool) -> None:
    """Print the result; with ``write``, also save it as ``results/<name>-<date>.md``."""
    text = "\n".join(lines) + "\n"
    print(text)
    if write:
        FOLDER.mkdir(exist_ok=True)
        path = FOLDER / f"{name}-{datetime.datetime.now(tz=datetime.UTC).date().isoformat()}.md"
        path.write_text(text, encoding="utf-8")
        print(f"Written to {path}")


def plot_curves(
    name: str, curves: Mapping[str, Sequence[tuple[float, float]]], *, labels: tuple[str, str], write: bool
) -> Path | None:
    """With ``write``, plot curves of (x, y) points to ``results/<name>-<date>.png``; otherwise do nothing."""
    if not write:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for label, points in curves.items():
        ordered = sorted(points)
        axes.plot([x for x, _ in ordered], [y for _, y in ordered], marker=".", label=label)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}-{datetime.datetime.now(tz=datetime.UTC).date().isoformat()}.png"
    figure.savefig(path, dpi=120)
    return path
