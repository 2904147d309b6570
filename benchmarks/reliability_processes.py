"""Two processes on gloo, one of which has no boxes or no images, or dies; part of ``reliability.py``."""

from __future__ import annotations

import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from reliability_runs import Ended, Session, arguments, make_data, session
from reliability_state import State

LIMIT = 60.0  # seconds without any sign of life that count as a hang
TWO = {"devices": 2, "batch_size": 1}


@dataclass(frozen=True, slots=True)
class Case:
    """Something that happens to a run of two processes.

    Attributes:
        name: for the table.
        command: ``train`` or ``pretrain``.
        data: options of ``make_data``.
        options: further options of the command.
        happens: is called once the run takes steps; None if only the data is special.
        completes: whether the run should succeed; otherwise it must end with a sentence, unless the first process dies.
    """

    name: str
    command: str
    data: dict[str, Any]
    options: dict[str, Any]
    happens: Callable[[Session, Path, random.Random], None] | None = None
    completes: bool = False


def _second(running: Session) -> psutil.Process:
    children = psutil.Process(running.process.pid).children()
    return next(child for child in children if any("children" in word for word in child.cmdline()))


def _kill_second(running: Session, data: Path, draw: random.Random) -> None:
    time.sleep(draw.uniform(0, 4))
    _second(running).kill()


def _kill_first(running: Session, data: Path, draw: random.Random) -> None:
    time.sleep(draw.uniform(0, 4))
    running.process.kill()


def _kill_worker(running: Session, data: Path, draw: random.Random) -> None:
    """Kill a process that loads images for the second process."""
    workers = _second(running).children()
    workers[draw.randrange(len(workers))].kill()


def _remove_images(running: Session, data: Path, draw: random.Random) -> None:
    for path in sorted((data / "images" / "train").iterdir())[1:]:
        path.unlink()


def cases() -> list[Case]:
    """Return all cases; runs that are to be ended are long."""
    none, long = {"images": 4, "without_boxes": (1, 2, 3)}, {"epochs": 100_000}
    one, all_ = {"images": 1, "without_boxes": ()}, {"images": 8, "without_boxes": ()}
    uncached: dict[str, dict[str, Any]] = {"train": {"cache": "off"}, "pretrain": {"cache_gigabytes": 0}}
    found = [
        Case("no boxes in most images, so that a process often has none", "train", none, {"epochs": 4}, completes=True),
        Case("one image for two processes", "train", one, {"epochs": 4}, completes=True),
        Case("one image for two processes", "pretrain", one, {"epochs": 8}, completes=True),
        Case(
            "one image, half the run with a frozen backbone", "train", one, {"epochs": 4, "freeze_backbone_epochs": 2},
            completes=True,
        ),
    ]  # fmt: skip
    for command in ("train", "pretrain"):
        found.append(Case("images are removed during the run", command, all_, long | uncached[command], _remove_images))
        found += [
            Case(f"the second process is killed ({number})", command, all_, long, _kill_second) for number in (1, 2, 3)
        ]
        found.append(Case("the first process is killed", command, all_, long, _kill_first))
        found.append(Case("a loader of the second process is killed", command, all_, long, _kill_worker))
    return found


def run(state: State, output: Path, seed: int) -> None:
    """Run all cases that have not been run."""
    for number, case in enumerate(cases()):
        key = f"{case.command}: {case.name}"
        if key not in state.entries:
            state.entries[key] = _try(
                case, output.absolute() / "processes" / str(number), random.Random(f"{seed} {number}")
            )
            state.save()
            print(f"processes: {key}: {state.entries[key]}", file=sys.stderr, flush=True)


def _try(case: Case, home: Path, draw: random.Random) -> dict[str, Any]:
    shutil.rmtree(home, ignore_errors=True)
    data = make_data(home / "data", **case.data)
    run = home / "run"
    words = [*arguments(case.command, data, **(TWO | case.options)), "--output", str(run)]
    with session(words, run.with_suffix(".steps")) as running:
        members: dict[int, psutil.Process] = {}
        if case.happens is not None:
            _wait_for_steps(running, run, members)
            case.happens(running, data, draw)
        happened = time.monotonic()
        quiet = _wait_quietly(running, run, members)
        ended = running.end(0)
    _, alive = psutil.wait_procs(list(members.values()), timeout=max(0.0, LIMIT - (time.monotonic() - happened)))
    wrong = _judge(case, ended, quiet) + [f"process {process.pid} outlived the run" for process in alive]
    for process in alive:
        process.kill()
    seconds = time.monotonic() - happened
    return {"seconds": round(seconds, 1), "code": ended.code, "sentence": ended.sentence[:300], "problems": wrong}


def _wait_for_steps(running: Session, run: Path, members: dict[int, psutil.Process]) -> None:
    steps = run.with_suffix(".steps")
    deadline = time.monotonic() + 10 * LIMIT
    while running.process.poll() is None and time.monotonic() < deadline:
        _note(running, members)
        if steps.is_file() and steps.read_bytes().count(b'"place"') >= 3:
            return
        time.sleep(0.2)


def _wait_quietly(running: Session, run: Path, members: dict[int, psutil.Process]) -> float:
    """Wait for the end, or until nothing happens for too long; return the longest time without a sign of life."""
    files = [run.with_suffix(".steps"), run.with_suffix(".log")]
    before, since, longest = -1, time.monotonic(), 0.0
    while not running.wait(0.2):
        _note(running, members)
        now = sum(path.stat().st_size for path in files if path.is_file())
        if now != before:
            before, since = now, time.monotonic()
        longest = max(longest, time.monotonic() - since)
        if longest > LIMIT:
            break
    return longest


def _note(running: Session, members: dict[int, psutil.Process]) -> None:
    """Remember the processes of the run, to check that none remains."""
    try:
        for process in psutil.Process(running.process.pid).children(recursive=True):
            members[process.pid] = process
    except psutil.Error:
        pass


def _judge(case: Case, ended: Ended, quiet: float) -> list[str]:
    wrong = [f"nothing happened for {quiet:.0f} s"] if quiet > LIMIT else []
    if "Traceback" in ended.error:
        wrong.append("a traceback")
    if case.happens is _kill_first:
        return wrong
    if case.completes and ended.code != 0:
        wrong.append(f"exit code {ended.code}")
    if not case.completes and (ended.code not in (1, 2) or not ended.sentence.startswith("nextdetr: ")):
        wrong.append(f"exit code {ended.code} without a sentence")
    return wrong


def lines(state: State) -> list[str]:
    """Return the section of the result."""
    rows = []
    for case in cases():
        entry = state.entries.get(f"{case.command}: {case.name}")
        if entry is not None:
            good = "; ".join(entry["problems"]) or "no"
            rows.append(f"| `{case.command}` | {case.name} | {entry['code']} | {entry['seconds']:.0f} | {good} |")
    return [
        "## Two processes",
        "",
        f"`--devices 2` on gloo. Seconds are counted from the event (or the start of the run) until all of its processes "
        f"have ended; a run that shows no sign of life for {LIMIT:.0f} s counts as a hang.",
        "",
        "| command | event | exit code | s until all had ended | problems |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]
