"""Bad inputs, each of which must end in one sentence; part of ``reliability.py``.

Commands run in this process as on the command line, with captured streams; every tenth runs in a separate process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nextdetr.cli.main import run as run_command
from nextdetr.weights.checkpoint import save_detector
from nextdetr.weights.start import start_model
from reliability_bad_data import Bad, labels, yamls
from reliability_bad_files import images, states, weights
from reliability_state import ROOT, State

FAMILIES = ("images", "labels", "yamls", "weights", "states")
LIMIT = 60.0  # seconds a refusal may take
SHARE = 10  # one in this many runs in a separate process


def run(state: State, output: Path) -> None:
    """Try all remaining inputs; an input that ended this process in the last call counts as a crash."""
    home = (output / "bad").absolute()
    home.mkdir(parents=True, exist_ok=True)
    marker = home / "marker"
    tried: dict[str, Any] = state.entries.setdefault("tried", {})
    if (name := state.entries.pop("trying", None)) is not None:
        tried[name] = {"family": name.split(",")[0], "problems": ["the process did not survive it"], "sentence": ""}
    for family in FAMILIES:
        for number, (name, tokens) in enumerate(_inputs(family, home, marker)):
            if name in tried:
                continue
            state.entries["trying"] = name
            state.save()
            own = number % SHARE == 0
            marker.unlink(missing_ok=True)
            started = time.monotonic()
            code, sentence, error = (_apart if own else _here)(tokens)
            problems = judge(code, sentence, error, time.monotonic() - started)
            if marker.exists():
                problems.append("code was run")
            del state.entries["trying"]
            tried[name] = {
                "family": family,
                "own process": own,
                "problems": problems,
                "code": code,
                "sentence": sentence[:600],
            }
            if problems:
                print(f"bad: {name}: {'; '.join(problems)}: {sentence[:300]}", file=sys.stderr, flush=True)
        state.save()


def _inputs(family: str, home: Path, marker: Path) -> Iterator[Bad]:
    folder = home / family
    folder.mkdir(exist_ok=True)
    model = home / "model.safetensors"
    if not model.is_file():
        started = start_model("nextdetr-zepto", classes=["square", "bar"])
        save_detector(
            model, started.model.state_dict(), model_text=started.model.text, classes=["square", "bar"], image_size=64
        )
    if family == "images":
        return images(folder, model)
    if family == "weights":
        (home / "labels").mkdir(exist_ok=True)
        return weights(folder, model, marker)
    return labels(folder) if family == "labels" else (yamls if family == "yamls" else states)(folder, marker)


def _here(tokens: list[str]) -> tuple[int, str, str]:
    """Run a command in this process; return its exit code, its sentence, and all of its standard error."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        sys.stderr.flush()
        kept = [os.dup(1), os.dup(2)]
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        try:
            code = run_command([*tokens, "--json"])
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            for number, handle in enumerate(kept, start=1):
                os.dup2(handle, number)
                os.close(handle)
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
    try:
        sentence = str(json.loads(said[0])["error"]["message"])
    except (ValueError, KeyError, TypeError):
        sentence = ""
    return code, sentence, said[1]


def _apart(tokens: list[str]) -> tuple[int, str, str]:
    """Run a command as a process, as users do, without ``--json``."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "nextdetr", *tokens]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=5 * LIMIT, env=environ, check=False
        )
    except subprocess.TimeoutExpired:
        return -9, "", ""
    last = ["", *done.stderr.strip().splitlines()][-1]
    return done.returncode, last.removeprefix("nextdetr: ") if last.startswith("nextdetr: ") else "", done.stderr


def judge(code: int, sentence: str, error: str, seconds: float) -> list[str]:
    """Return the problems of a refusal."""
    problems = []
    if code not in (1, 2):
        problems.append(f"exit code {code}")
    if not sentence or "\n" in sentence.strip() or not re.search(r"[.?!]$", sentence.strip()):
        problems.append("not one sentence")
    if sentence.startswith("unexpected "):
        problems.append("an unexpected error")
    if "folder cannot be made" in sentence:
        problems.append("refused for another reason")
    if re.search(r"[\x00-\x1f]|weights_only", sentence):
        problems.append("control characters, or advice to run what is in a file")
    if "Traceback" in error:
        problems.append("a traceback")
    if seconds > LIMIT:
        problems.append(f"{seconds:.0f} s")
    return problems


def lines(state: State) -> list[str]:
    """Return the section of the result."""
    tried = state.entries.get("tried", {})
    rows = []
    for family in FAMILIES:
        found = [entry for entry in tried.values() if entry["family"] == family]
        problems = Counter(problem for entry in found for problem in entry["problems"])
        rows.append(
            f"| {family} | {len(found)} | {sum(entry.get('own process', False) for entry in found)} | "
            f"{sum(not entry['problems'] for entry in found)} | {problems['a traceback']} | {problems['code was run']} |"
        )
    failed = [f"- {name}: {'; '.join(entry['problems'])}" for name, entry in tried.items() if entry["problems"]]
    return [
        "## Bad inputs",
        "",
        f"{len(tried)} inputs, {len(tried) - len(failed)} refused: exit code 1 or 2, one sentence, within {LIMIT:.0f} s, "
        "and without a traceback or any code of the input being run.",
        "",
        "| | inputs | of these in a separate process | one sentence | tracebacks | code run |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        *(["Failed:", "", *failed, ""] if failed else []),
    ]
