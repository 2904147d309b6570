"""A run that is killed leaves nothing behind, and one run folder is one process's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nextdetr.cli.main import run
from tests.helpers import squares, tiny_model


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_run_folder_is_one_process_and_a_killed_one_leaves_nothing(tmp_path, capsys):
    data, model, output, temporary = squares(tmp_path / "data"), tiny_model(tmp_path), tmp_path / "run", tmp_path / "tmp"
    temporary.mkdir()
    shared = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else set()
    options = [
        "--data",
        str(data),
        "--model",
        str(model),
        "--image-size",
        "64",
        "--batch-size",
        "2",
        "--accelerator",
        "cpu",
    ]
    command = [sys.executable, "-m", "nextdetr", "train", *options, "--epochs", "100000", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--output", str(output)],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)},
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not (output / "last.ckpt").is_file():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children(recursive=True)
    for more in (["--resume", str(output)], [*options, "--epochs", "1", "--output", str(output)]):
        assert run(["train", *more, "--json"]) == 2
        assert "another process is writing there" in json.loads(capsys.readouterr().out)["error"]["message"]
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    _, left = psutil.wait_procs(workers, timeout=30)
    assert not left
    assert "Traceback" not in said
    assert not [path.name for path in temporary.iterdir() if path.name.startswith("pymp")]
    if shared:
        assert {path for path in Path("/dev/shm").iterdir() if path.name.startswith("torch")} <= shared
    (output / f".last.{'0' * 8}-1-{'0' * 8}.partial.ckpt").touch()
    os.utime(output / f".last.{'0' * 8}-1-{'0' * 8}.partial.ckpt", (1, 1))
    assert run(["train", "--resume", str(output), "--minutes", "0.0001", "--json"]) == 0, capsys.readouterr().err
    assert [path.name for path in output.rglob(".*")] == [".lock"]
