"""``benchmarks/reliability.py`` detects a run that differs, an invalid refusal, and a parser that fails."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import types
from pathlib import Path

import pytest
import torch

from nextdetr.errors import DataError
from nextdetr.weights.tensorfile import write_tensors


@pytest.fixture
def scripts(monkeypatch):
    """Import a script of the benchmarks' folder by name, with a stand-in for atheris, which CI does not have."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    atheris = types.ModuleType("atheris")
    atheris.instrument_imports = lambda include: contextlib.nullcontext()
    monkeypatch.setitem(sys.modules, "atheris", atheris)
    return importlib.import_module


@pytest.mark.parametrize(
    ("code", "sentence", "error", "seconds", "problem"),
    [
        (2, "a.png: no picture.", "", 1, None),
        (1, "the disk is full.", "nextdetr: a warning\nnextdetr: the disk is full.\n", 1, None),
        (0, "a.png: no picture.", "", 1, "exit code 0"),
        (-11, "", "", 1, "exit code -11"),
        (2, "", "", 1, "not one sentence"),
        (2, "no end", "", 1, "not one sentence"),
        (2, "two\nlines.", "", 1, "not one sentence"),
        (1, "unexpected KeyError: 'a'.", "", 1, "an unexpected error"),
        (1, "run: the folder cannot be made (a file).", "", 1, "refused for another reason"),
        (2, "a.pt: set weights_only to False.", "", 1, "control characters, or advice to run what is in a file"),
        (2, "a.png: no picture.", "Traceback (most recent call last):", 1, "a traceback"),
        (2, "a.png: no picture.", "", 100, "100 s"),
    ],
)
def test_a_refusal_is_judged(scripts, code, sentence, error, seconds, problem):
    found = scripts("reliability_bad").judge(code, sentence, error, seconds)
    assert (problem in found) if problem else (found == [])


def make_run(folder, *, weight=1.0, loss="0x1p+0", steps=3, rows="epoch,seconds,loss\n1,2.5,1\n", momentum=0.0):
    folder.mkdir()
    (folder / "metrics.csv").write_text(rows)
    write_tensors(folder / "last.safetensors", {"w": torch.tensor([weight])}, {})
    state = {"model": {"w": torch.tensor([weight])}, "optimizer": {"state": [torch.tensor(momentum)]}, "ema": {}}
    torch.save(state, folder / "last.ckpt")
    lines = [{"begin": 1}, *({"place": [0, step], "losses": {"loss": loss}} for step in range(steps))]
    folder.with_suffix(".steps").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({}, []),
        ({"rows": "epoch,seconds,loss\n1,9,1\n"}, []),
        ({"rows": "epoch,seconds,loss\n1,2.5,2\n"}, ["metrics.csv differs"]),
        ({"weight": 1 + 2**-23}, ["last.safetensors has other weights", "last.ckpt has another model"]),
        ({"momentum": 1.0}, ["last.ckpt has another optimizer"]),
        ({"loss": "0x1.0000000000001p+0"}, ["the losses of 3 steps differ, the first at (0, 0)"]),
        ({"steps": 2}, ["1 steps are missing or too many"]),
    ],
)
def test_a_run_that_differs_in_a_bit_is_seen(scripts, tmp_path, changes, what):
    runs = scripts("reliability_runs")
    expected, run = make_run(tmp_path / "expected"), make_run(tmp_path / "run", **changes)
    assert runs.differences(run, expected) == what
    assert runs.damaged(run) == []


def test_a_step_that_was_repeated_differently_and_what_is_left_behind_are_seen(scripts, tmp_path):
    runs = scripts("reliability_runs")
    expected, run = make_run(tmp_path / "expected"), make_run(tmp_path / "run")
    with run.with_suffix(".steps").open("a") as file:
        file.write(json.dumps({"place": [0, 1], "losses": {"loss": "0x1p+0"}}) + "\n")
    assert runs.differences(run, expected) == []
    with run.with_suffix(".steps").open("a") as file:
        file.write(json.dumps({"place": [0, 1], "losses": {"loss": "0x1p+1"}}) + "\n")
    (run / ".last.partial.ckpt").touch()
    assert runs.differences(run, expected) == [
        "the losses of 1 steps differ, the first at (0, 1)", ".last.partial.ckpt is left behind",
    ]  # fmt: skip
    (run / ".last.partial.ckpt").unlink()
    (run / "last.safetensors").write_bytes(b"half")
    assert runs.damaged(run) == ["last.safetensors (WeightsError)"]


def test_what_is_done_is_kept(scripts, tmp_path):
    state = scripts("reliability_state").State
    first = state(tmp_path, "kill")
    first.entries["train"] = {"kills": 3}
    first.save()
    assert state(tmp_path, "kill").entries == {"train": {"kills": 3}}
    assert state(tmp_path, "bad").entries == {}


@pytest.mark.parametrize("parser", ["coco", "voc", "yolo", "model-yaml"])
def test_the_fuzzer_sets_out_from_files_that_are_read(scripts, tmp_path, parser):
    read = scripts("reliability_fuzz_target").PARSERS[parser](tmp_path)
    seeds = scripts("reliability_fuzz").seeds(parser)
    assert seeds
    for seed in seeds:
        read(seed)


@pytest.mark.parametrize("parser", ["safetensors", "pickle"])
def test_the_fuzzer_reaches_the_tensors_of_its_seeds(scripts, tmp_path, parser, monkeypatch):
    target = scripts("reliability_fuzz_target")
    read, seen = target.PARSERS[parser](tmp_path), []
    monkeypatch.setattr(
        target, "inspect_file", lambda path: seen.append(scripts("nextdetr.weights.reader").read_tensors(path))
    )
    monkeypatch.setattr(target, "read_detector_metadata", lambda path: None)
    for seed in scripts("reliability_fuzz").seeds(parser):
        read(seed)
    assert all(file.tensors for file in seen)
    assert len(seen) >= 4


def test_the_fuzzer_notes_what_is_no_refusal(scripts, tmp_path, monkeypatch):
    target = scripts("reliability_fuzz_target")
    monkeypatch.setattr(target, "SLOW", 0.02)

    def parse(data):
        if data == b"refused":
            raise DataError("a.json: no data set.")
        if data == b"silent":
            raise DataError("")
        if data == b"crash":
            {}["key"]
        if data == b"action":
            target.watch("os.system", ("true",))
            target.watch("open", ("a", "r", 0))
        while data == b"slow" and target.time.process_time() - begun < 0.1:
            pass

    watched, begun = target.Watched(parse, tmp_path), target.time.process_time()
    watched(b"good")
    watched(b"refused")
    assert list((tmp_path / "found").iterdir()) == []
    for data in (b"silent", b"crash", b"crash", b"action", b"slow"):
        begun = target.time.process_time()
        watched(data)
    found = [json.loads(path.read_text())["kind"] for path in (tmp_path / "found").glob("*.json")]
    assert sorted(found) == ["action", "crash", "message", "slow"]
    watched.tell()
    assert json.loads((tmp_path / "progress.json").read_text())["inputs"] == 7
