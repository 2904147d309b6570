"""``kill -9`` at random moments, and resume; part of ``reliability.py``."""

from __future__ import annotations

import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from reliability_runs import COMMANDS, differences, make_data, next_command, session, uninterrupted
from reliability_state import State


def run(state: State, output: Path, moments: int, seed: int) -> None:
    """Kill runs of each command at random moments, ``moments`` in total, and resume each of them until it is done."""
    home = output / "kill"
    data = make_data(home / "data")
    for command in COMMANDS:
        expected, length = uninterrupted(command, home, data)
        entry = entry_of(state, command)
        entry["length"] = length
        while entry["kills"] < moments or entry["under_way"]:
            _session(state, entry, command, home, data, expected, moments, seed)


def entry_of(state: State, command: str) -> dict[str, Any]:
    fresh = {
        "length": 0.0, "kills": 0, "sessions": 0, "moments": [], "runs": 0, "under_way": 0, "anew": 0, "lost": 0,
        "tracebacks": 0, "found": [],
    }  # fmt: skip
    entry: dict[str, Any] = state.entries.setdefault(command, fresh)
    return entry


def _session(
    state: State, entry: dict[str, Any], command: str, home: Path, data: Path, expected: Path, moments: int, seed: int
) -> None:
    """Start or resume a run, and kill it at a random moment, if it lasts until then."""
    name = home / f"{command}-{entry['runs']}"
    if not entry["under_way"]:
        name.with_suffix(".steps").unlink(missing_ok=True)
        shutil.rmtree(name, ignore_errors=True)
        entry["under_way"] = 1
    words = next_command(command, data, name)
    entry["anew"] += int("--resume" not in words and entry["under_way"] > 1)
    moment = random.Random(f"{seed} {command} {entry['sessions']}").uniform(0, entry["length"])
    with session(words, name.with_suffix(".steps")) as running:
        running.wait_for_beginning()
        alive = entry["kills"] < moments and not running.wait(moment)
        if alive:
            running.process.kill()
        ended = running.end()
    entry["sessions"] += 1
    entry["tracebacks"] += int("Traceback" in ended.error)
    if alive:
        entry["kills"] += 1
        entry["under_way"] += 1
        entry["moments"].append(round(moment, 2))
    else:
        wrong = differences(name, expected) if ended.code == 0 else [f"exit code {ended.code}: {ended.sentence}"]
        entry["found"] += [f"{command}, run {entry['runs']}: {what}" for what in wrong]
        entry["lost"] += entry["under_way"] - 1 if wrong else 0
        if not wrong:
            shutil.rmtree(name, ignore_errors=True)
        entry["runs"] += 1
        entry["under_way"] = 0
    state.save()
    print(
        f"kill {command}: {entry['kills']} of {moments} moments, {entry['runs']} runs done, {entry['lost']} lost",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    time.sleep(0.1)  # let the workers of a killed process notice


def lines(state: State, moments: int) -> list[str]:
    """Return the section of the result."""
    rows, found = [], []
    for command in COMMANDS:
        entry = entry_of(state, command)
        rows.append(
            f"| `{command}` | {entry['length']:.1f} | {entry['kills']} of {moments} | {entry['runs']} | {entry['anew']} | "
            f"{entry['tracebacks']} | {entry['lost']} |"
        )
        found += [f"- {what}" for what in entry["found"]]
    return [
        "## kill -9",
        "",
        "Moments are random over the length of the uninterrupted run, after its libraries are loaded; one run is killed "
        "several times. A kill counts as lost if the finished run differs in anything: a row of metrics.csv except its "
        "seconds, any bit of a loss of any step, any weight, or the state of model, optimiser or average.",
        "",
        "| command | s per run | kills | runs done | restarted (no state yet) | tracebacks | lost |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        *(["Found:", "", *found, ""] if found else []),
    ]
