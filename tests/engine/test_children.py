"""Processes of a run: what they are given, what they report, and that none outlives the first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nextdetr.config import TrainConfig
from nextdetr.engine import children
from nextdetr.errors import DataError, TrainingError, WriteError


def take_part(config, *, quiet):
    """What a run does in a further process; ``model`` says how it ends."""
    assert quiet
    if config.model == "early":
        raise WriteError("é: cannot be written (No space left on device).")
    Path(config.output).write_text(f"{children.own_place().rank} {config.epochs} {os.getpid()}", encoding="utf-8")
    children.ready()
    sys.stdout.write("a library prints\n")
    if config.model == "data":
        raise DataError("7.jpg: cannot be read.")
    if config.model == "bug":
        raise ZeroDivisionError("a\nb")
    if config.model == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if config.model == "hangs":
        time.sleep(1000)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


def begin(tmp_path, model, count=2):
    config = TrainConfig(model=model, data="x", epochs=3, output=tmp_path / "größe")
    return children.started(config, take_part, count, port=1)


def test_others_get_the_settings_and_end_with_the_first(tmp_path):
    with begin(tmp_path, "hangs") as others:
        assert others._members[0].process.poll() is None
        os.kill(others._members[0].process.pid, signal.SIGTERM)  # of a whole group: the first process answers
        time.sleep(0.1)
        assert others._members[0].process.poll() is None
    rank, epochs, process = (tmp_path / "größe").read_text().split()
    assert (rank, epochs) == ("1", "3")
    with pytest.raises(ProcessLookupError):
        os.kill(int(process), 0)


@pytest.mark.parametrize(
    ("model", "kind", "said"),
    [
        ("data", DataError, r"^7\.jpg: cannot be read\.$"),
        ("bug", TrainingError, r"process 1 of the run failed \(ZeroDivisionError: a b\)"),
        ("killed", TrainingError, "process 1 of the run was killed .signal 9., most often because memory"),
    ],
)
def test_what_another_process_failed_with_is_told(tmp_path, model, kind, said):
    """Before this process has begun, or when it has lost its connection."""
    with pytest.raises(kind, match=said), begin(tmp_path, model) as others:
        raise others.failure()


def test_a_process_that_fails_before_it_begins_keeps_nobody_waiting(tmp_path):
    with pytest.raises(WriteError, match="é: cannot be written"), begin(tmp_path, "early", count=3):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_none_outlives_a_first_process_that_is_killed(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom tests.engine import test_children as t\n"
        "with t.begin(Path(sys.argv[1]), 'hangs'):\n    print('begun', flush=True)\n    time.sleep(100)"
    )
    first = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "begun\n"
    first.kill()
    first.wait()
    first.stdout.close()
    deadline = time.monotonic() + 30
    process = int((tmp_path / "größe").read_text().split()[2])
    import psutil

    while psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_processes_of_torchrun_and_slurm_are_taken_as_they_are(monkeypatch):
    for name in ("LOCAL_RANK", "SLURM_NTASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    assert not children.started_elsewhere()
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert not children.started_elsewhere()  # sbatch with one task and several devices
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert children.started_elsewhere()
    monkeypatch.delenv("SLURM_NTASKS")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert children.started_elsewhere()
