"""A disk that fills up at random moments; part of ``reliability.py``.

As root on Linux the disk is a small file system in memory, filled up while the command runs. Elsewhere it is a limit on
the size of a file (``RLIMIT_FSIZE``), which meets the large files only.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nextdetr.weights.checkpoint import save_detector
from nextdetr.weights.start import start_model
from reliability_runs import COMMANDS, damaged, differences, make_data, next_command, session, uninterrupted
from reliability_state import State

SIZE = 256 << 20  # size of the small disk in bytes
SHARE = {"train": 0.4, "pretrain": 0.35, "export": 0.25}  # of the moments
FORMATS = ("onnx", "openvino", "pt2")
WORDS = ("No space left on device", "File too large")


class Disk:
    """A folder whose space can be filled and freed; ``mounted`` says whether it is a separate file system."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.filler, self.limit = folder, folder / "filler", 0
        self.mounted = False

    def __enter__(self) -> Disk:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(self.folder)]
        with contextlib.suppress(OSError):
            self.mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
        return self

    def __exit__(self, *error: object) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False)

    @contextlib.contextmanager
    def full(self, left: int) -> Iterator[None]:
        """Fill all the space except ``left`` bytes."""
        if not self.mounted:
            yield
            return
        with self.filler.open("wb") as file, contextlib.suppress(OSError):
            free = shutil.disk_usage(self.folder).free
            os.posix_fallocate(file.fileno(), 0, max(1, free - left))
        try:
            yield
        finally:
            self.filler.unlink(missing_ok=True)

    def environ(self, left: int) -> dict[str, str]:
        """Return the environment variables that set the limit if the disk is not a separate file system."""
        return {} if self.mounted else {"RELIABILITY_FILE_LIMIT": str(left)}


def run(state: State, output: Path, moments: int, seed: int) -> None:
    """Fill the disk at random moments, ``moments`` in total, and resume each run once there is space again."""
    home = output.absolute() / "disk"
    data = make_data(home / "data")
    with Disk(home / "small") as disk:
        state.entries["mounted"] = disk.mounted
        for command in COMMANDS:
            expected, length = uninterrupted(command, home, data)
            entry = entry_of(state, command)
            while entry["moments"] < round(SHARE[command] * moments):
                _fill(
                    state, entry, command, disk, data, expected, random.Random(f"{seed} {command} {entry['tries']}"), length
                )
        entry = entry_of(state, "export")
        while entry["moments"] < moments - sum(round(SHARE[command] * moments) for command in COMMANDS):
            _fill_export(state, entry, disk, home, random.Random(f"{seed} export {entry['tries']}"))


def entry_of(state: State, command: str) -> dict[str, Any]:
    entry: dict[str, Any] = state.entries.setdefault(command, {"moments": 0, "tries": 0, "good": 0, "found": []})
    return entry


def _fill(
    state: State,
    entry: dict[str, Any],
    command: str,
    disk: Disk,
    data: Path,
    expected: Path,
    draw: random.Random,
    length: float,
) -> None:
    run = disk.folder / command
    shutil.rmtree(run, ignore_errors=True)
    run.with_suffix(".steps").unlink(missing_ok=True)
    moment, left = draw.uniform(0, 0.8 * length), draw.choice((0, draw.randrange(1 << 20), draw.randrange(24 << 20)))
    words = next_command(command, data, run)
    with session(words, run.with_suffix(".steps"), environ=disk.environ(left)) as running:
        running.wait_for_beginning()
        over = disk.mounted and running.wait(moment)
        with disk.full(left):
            ended = running.end()
    entry["tries"] += 1
    if not over and ended.code != 0:  # otherwise it needed no more space
        wrong = _judge(ended.code, ended.error) + [f"{name} is damaged" for name in damaged(run)]
        with session(next_command(command, data, run), run.with_suffix(".steps")) as running:
            again = running.end()
        wrong += differences(run, expected) if again.code == 0 else [f"resumed, exit code {again.code}: {again.sentence}"]
        _count(entry, f"{command} after {moment:.1f} s with {left:,} bytes left", wrong)
    state.save()


def _judge(code: int, error: str) -> list[str]:
    last = ["", *error.strip().splitlines()][-1]
    wrong = [] if code in (1, 2) else [f"exit code {code}"]
    if not last.startswith("nextdetr: ") or not any(words in last for words in WORDS):
        wrong.append(f"no sentence about the disk, but: {last[:200]}")
    return wrong + (["a traceback"] if "Traceback" in error else [])


def _count(entry: dict[str, Any], what: str, wrong: list[str]) -> None:
    entry["moments"] += 1
    entry["good"] += int(not wrong)
    entry["found"] += [f"{what}: {problem}" for problem in wrong]
    print(f"disk: {what}: {'; '.join(wrong) or 'good'}", file=sys.stderr, flush=True)


def _fill_export(state: State, entry: dict[str, Any], disk: Disk, home: Path, draw: random.Random) -> None:
    """Export over an earlier export on a disk that is nearly full."""
    model = home / "model.safetensors"
    if not model.is_file():
        built = start_model("nextdetr-zepto", classes=["square", "bar"]).model
        save_detector(model, built.state_dict(), model_text=built.text, classes=["square", "bar"], image_size=64)
    kind = FORMATS[entry["tries"] % len(FORMATS)]
    shutil.rmtree(disk.folder / "export", ignore_errors=True)
    steps = home / "export.steps"
    words = ["export", str(model), "--format", kind, "--images", "2", "--output", str(disk.folder / "export")]
    wrong = []
    with session(words, steps) as running:
        if (first := running.end()).code:
            raise SystemExit(f"The uninterrupted export failed: {first.error[-2000:]}")
    before = _contents(disk.folder / "export")
    left = draw.randrange(max(len(content) for content in before.values()))
    inside = {"TMPDIR": str(disk.folder)} if draw.random() < 0.5 else {}
    with disk.full(left), session(words, steps, environ=disk.environ(left) | inside) as running:
        ended = running.end()
    entry["tries"] += 1
    wrong += _judge(ended.code, ended.error)
    after = _contents(disk.folder / "export")
    wrong += [f"{name} is not as it was" for name, content in before.items() if after.get(name) != content]
    wrong += [f"{name} is left behind" for name in after.keys() - before.keys()]
    with session(words, steps) as running:
        again = running.end()
    wrong += [] if again.code == 0 else [f"again, exit code {again.code}: {again.sentence}"]
    _count(entry, f"export --format {kind} with {left:,} bytes left{' and TMPDIR there' if inside else ''}", wrong)
    state.save()


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def lines(state: State, moments: int) -> list[str]:
    """Return the section of the result."""
    kinds = (*COMMANDS, "export")
    found = [f"- {what}" for command in kinds for what in entry_of(state, command)["found"]]
    how = (
        f"a file system in memory of {SIZE >> 20} MB, filled while the command runs, completely or except for a random rest"
        if state.entries.get("mounted")
        else "a limit on the size of a file (RLIMIT_FSIZE), since no file system can be mounted"
    )
    moments_done = sum(entry_of(state, command)["moments"] for command in kinds)
    return [
        "## Full disk",
        "",
        f"{moments_done} of {moments} moments; the disk is {how}. Good means: exit code 1 or 2, a sentence that names the "
        "cause, complete files, and a resumed run that equals the uninterrupted one as defined above. For an export: the "
        "earlier files are unchanged, and the next export passes its gate.",
        "",
        "| command | moments | good |",
        "|---|---|---|",
        *(
            f"| `{command}` | {entry_of(state, command)['moments']} | {entry_of(state, command)['good']} |"
            for command in kinds
        ),
        "",
        *(["Found:", "", *found, ""] if found else []),
    ]
