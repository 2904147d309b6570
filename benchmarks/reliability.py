"""Test reliability: kills, bad inputs, fuzzing, a full disk, and two processes of which one fails.

    python benchmarks/reliability.py --output DIR [--part kill,bad,fuzz,disk,processes] [--write]

Takes minutes to hours. Finished work is stored in ``DIR``, with one JSON file per part, and another call continues from
there. Parts may run one by one or at the same time. ``--write`` writes the dated result of all parts so far.
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

import reliability_bad
import reliability_disk
import reliability_fuzz
import reliability_kill
import reliability_processes
from nextdetr.files import exclusive
from reliability_state import State
from results import machine, write_result

PARTS = ("kill", "bad", "fuzz", "disk", "processes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for all files, including the state of each part")
    parser.add_argument("--part", default=",".join(PARTS), help="comma-separated parts to run; none: only the result")
    parser.add_argument("--kills", type=int, default=50, help="number of kills per command")
    parser.add_argument("--moments", type=int, default=20, help="number of times that the disk fills up")
    parser.add_argument("--fuzz-minutes", type=float, default=20, help="CPU minutes per parser, over all calls")
    parser.add_argument(
        "--fuzz-wall", type=float, help="minutes of fuzzing in this call (default: until all parsers are done)"
    )
    parser.add_argument("--fuzz-jobs", type=int, default=1, help="number of parsers to fuzz at the same time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    parts = [part for part in options.part.split(",") if part != "none"]
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--part {unknown[0]}: unknown; choose from {', '.join(PARTS)}")
    output = options.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    states = {name: State(output, name) for name in PARTS}
    for name in parts:
        with exclusive(states[name].file):
            _run(name, states[name], output, options)
    write_result("reliability", _lines(states, options), write=options.write)


def _run(name: str, state: State, output: Path, options: argparse.Namespace) -> None:
    if name == "kill":
        reliability_kill.run(state, output, options.kills, options.seed)
    elif name == "bad":
        reliability_bad.run(state, output)
    elif name == "fuzz":
        reliability_fuzz.run(state, output, options.fuzz_minutes, options.fuzz_wall, options.fuzz_jobs)
    elif name == "disk":
        reliability_disk.run(state, output, options.moments, options.seed)
    else:
        reliability_processes.run(state, output, options.seed)


def _lines(states: dict[str, State], options: argparse.Namespace) -> list[str]:
    sections = {
        "kill": lambda state: reliability_kill.lines(state, options.kills), "bad": reliability_bad.lines,
        "fuzz": lambda state: reliability_fuzz.lines(state, options.fuzz_minutes),
        "disk": lambda state: reliability_disk.lines(state, options.moments), "processes": reliability_processes.lines,
    }  # fmt: skip
    lines = [
        "# Reliability",
        "",
        f"`python benchmarks/reliability.py`, seed {options.seed}. {machine()} {platform.system()} {platform.release()}"
        f"{', as root' if hasattr(os, 'geteuid') and os.geteuid() == 0 else ''}.",
        "",
        "Commits: "
        + "; ".join(f"{name} at {', '.join(state.commits)}" for name, state in states.items() if state.commits)
        + ".",
        "",
    ]
    for name, section in sections.items():
        lines += section(states[name]) if states[name].entries else [f"The part {name} has not been run.", ""]
    return lines


if __name__ == "__main__":
    main()
