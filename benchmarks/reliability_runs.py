"""Small runs of ``train`` and ``pretrain`` that the parts of ``reliability.py`` interrupt and compare."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nextdetr.files import write_text_atomic
from nextdetr.weights.reader import read_tensors
from reliability_state import ROOT

LAUNCHER = Path(__file__).with_name("reliability_launch.py")
SAVE_EVERY = 0.5  # seconds
COMMANDS = ("train", "pretrain")
IMAGES = 16
CLASSES = ("square", "bar")


def make_data(folder: Path, *, images: int = IMAGES, without_boxes: Sequence[int] = (IMAGES - 1,), size: int = 96) -> Path:
    """Write a COCO data set of dark squares and bright bars on noise, once; the same for each call."""
    if (folder / "made").is_file():
        return folder
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        entries, annotations = [], []
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        (folder / "annotations").mkdir(exist_ok=True)
        for number in range(images):
            pixels = generator.integers(100, 140, (size, size, 3), dtype=np.uint8)
            for label, (width, height) in enumerate([] if number in without_boxes else [(24, 24), (40, 12)]):
                x, y = (int(value) for value in generator.integers(0, (size - width, size - height)))
                pixels[y : y + height, x : x + width] = 20 if label == 0 else 230
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, "iscrowd": 0,
                     "bbox": [x, y, width, height], "area": width * height}
                )  # fmt: skip
            Image.fromarray(pixels).save(folder / "images" / split / f"{number}.png")
            entries.append({"id": number, "file_name": f"{number}.png", "width": size, "height": size})
        categories = [{"id": number + 1, "name": name} for number, name in enumerate(CLASSES)]
        content = {"images": entries, "annotations": annotations, "categories": categories}
        write_text_atomic(folder / "annotations" / f"instances_{split}.json", json.dumps(content))
    write_text_atomic(folder / "made", "")
    return folder


def arguments(command: str, data: Path, **changes: Any) -> list[str]:
    """Return a short training command: some 24 steps at 64 px; ``changes`` are options as keywords."""
    options: dict[str, Any] = {"seed": 0, "batch_size": 4, "image_size": 64, "workers": 1, "accelerator": "cpu"}
    if command == "train":
        options |= {"data": data, "model": "nextdetr-zepto", "start": "none", "epochs": 6, "val_every": 2}
    else:
        options |= {"model": "convnextv2-zepto", "epochs": 24, "ema_decay": 0.9}
    places = [] if command == "train" else [str(data / "images" / "train")]
    words = [word for name, value in (options | changes).items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return [command, *places, *words]


@dataclass(frozen=True, slots=True)
class Ended:
    """A session that has ended.

    Attributes:
        code: exit code; negative for a signal.
        error: what it wrote to standard error.
        seconds: since its start, after the libraries were loaded.
    """

    code: int
    error: str
    seconds: float

    @property
    def sentence(self) -> str:
        """Its last line."""
        return ["", *self.error.strip().splitlines()][-1]


class Session:
    """A running process of the command line, whose steps are recorded next to its output folder."""

    def __init__(self, command: Sequence[str], steps: Path, *, environ: dict[str, str] | None = None) -> None:
        self.steps, self._said = steps, steps.with_suffix(".log").open("w+b")
        self._known = self._begun()
        whole = [sys.executable, str(LAUNCHER), str(steps), str(SAVE_EVERY), *command]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), **(environ or {})}
        self.process = subprocess.Popen(
            whole, stdout=subprocess.DEVNULL, stderr=self._said, env=environment, start_new_session=True
        )
        self.began = time.monotonic()

    def _begun(self) -> int:
        return self.steps.read_bytes().count(b'{"begin"') if self.steps.is_file() else 0

    def wait_for_beginning(self) -> None:
        """Wait until the libraries are loaded, or it has ended."""
        while self._begun() == self._known and self.process.poll() is None:
            time.sleep(0.02)
        self.began = time.monotonic()

    def wait(self, seconds: float) -> bool:
        """Wait for it to end, at most this long, and return whether it has."""
        try:
            self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self, limit: float = 600.0) -> Ended:
        """Wait for the end; after ``limit`` seconds the process is killed, with code -9."""
        if not self.wait(limit):
            self.process.kill()
            self.process.wait()
        seconds = time.monotonic() - self.began
        self._said.seek(0)
        error = self._said.read().decode(errors="replace")
        self._said.close()
        return Ended(self.process.returncode, error, seconds)


@contextmanager
def session(command: Sequence[str], steps: Path, **options: Any) -> Iterator[Session]:
    """Start a session, and make sure that it ends with the block."""
    running = Session(command, steps, **options)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()


def next_command(command: str, data: Path, run: Path) -> list[str]:
    """Return what a user would type next: the command again, or with ``--resume`` if there is a state."""
    if (run / "last.ckpt").is_file():
        return [command, "--resume", str(run)]
    return [*arguments(command, data), "--output", str(run)]


def uninterrupted(command: str, home: Path, data: Path) -> tuple[Path, float]:
    """Return the uninterrupted run, made once, and its seconds."""
    run, known = home / f"{command}-uninterrupted", home / f"{command}-uninterrupted.json"
    if not known.is_file():
        shutil.rmtree(run, ignore_errors=True)
        run.with_suffix(".steps").unlink(missing_ok=True)
        with session([*arguments(command, data), "--output", str(run)], run.with_suffix(".steps")) as running:
            running.wait_for_beginning()
            ended = running.end()
        if ended.code:
            raise SystemExit(f"The uninterrupted run failed: {ended.error[-2000:]}")
        write_text_atomic(known, json.dumps(ended.seconds))
    return run, float(json.loads(known.read_text()))


def differences(run: Path, expected: Path) -> list[str]:
    """Return the differences between a run and the uninterrupted one: rows, losses of all steps, weights, state."""
    found = []
    if _rows(run) != _rows(expected):
        found.append("metrics.csv differs")
    ours, theirs = (_steps(path.with_suffix(".steps")) for path in (run, expected))
    if ours.keys() != theirs.keys():
        found.append(f"{len(ours.keys() ^ theirs.keys())} steps are missing or too many")
    unequal = [place for place in ours if ours[place] != {*theirs.get(place, set())}]
    if unequal:
        found.append(f"the losses of {len(unequal)} steps differ, the first at {min(unequal)}")
    for file in sorted(path.name for path in expected.glob("*.safetensors")):
        if not (run / file).is_file():
            found.append(f"{file} is missing")
        elif not _equal(read_tensors(run / file).tensors, read_tensors(expected / file).tensors):
            found.append(f"{file} has other weights")
    states = [torch.load(path / "last.ckpt", weights_only=True) for path in (run, expected)]
    found += [f"last.ckpt has another {part}" for part in ("model", "optimizer", "ema") if not _equal(*_of(states, part))]
    found += [f"{path.name} is left behind" for path in run.rglob(".*") if path.name != ".lock"]
    return found


def _of(states: Sequence[dict[str, Any]], part: str) -> list[Any]:
    return [state[part] for state in states]


def damaged(run: Path) -> list[str]:
    """Return the names of a run's files that cannot be read."""
    found = []
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        try:
            if path.suffix == ".safetensors":
                read_tensors(path)
            elif path.suffix == ".ckpt":
                torch.load(path, weights_only=True)
            elif path.name == "metrics.csv":
                _rows(run)
            elif path.suffix in (".jpg", ".png"):
                with Image.open(path) as picture:
                    picture.load()
        except Exception as error:  # noqa: BLE001 - any error means that it is damaged
            found.append(f"{path.name} ({type(error).__name__})")
    return found


def _rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def _steps(path: Path) -> dict[tuple[int, int], set[str]]:
    """Return the losses of each step, from all sessions in which it ran."""
    found: dict[tuple[int, int], set[str]] = {}
    for line in path.read_text().splitlines():
        content = json.loads(line)
        if "place" in content:
            found.setdefault(tuple(content["place"]), set()).add(json.dumps(content["losses"], sort_keys=True))
    return found


def _equal(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, torch.Tensor):
        return isinstance(ours, torch.Tensor) and ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(theirs, dict):
        return isinstance(ours, dict) and ours.keys() == theirs.keys() and all(_equal(ours[k], theirs[k]) for k in theirs)
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(_equal(one, two) for one, two in zip(ours, theirs, strict=True))
    return bool(ours == theirs)
