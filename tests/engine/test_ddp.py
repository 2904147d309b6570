"""Two processes on gloo: they train, agree on the weights, and a process whose batch has no box does not hang the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.helpers import squares, tiny_model


@pytest.mark.slow
def test_two_processes_train_and_score(tmp_path):
    data = squares(tmp_path / "data", images=5)
    command = [
        sys.executable, "-m", "nextdetr", "train", "--data", str(data), "--model", str(tiny_model(tmp_path)),
        "--epochs", "2", "--image-size", "64", "--batch-size", "1", "--workers", "0", "--devices", "2",
        "--accelerator", "cpu",
        "--output", str(tmp_path / "run"), "--json",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["epochs"] == 2
    assert (tmp_path / "run" / "best.safetensors").is_file()
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 3
