"""A request to terminate that reaches a whole process group, as Slurm, systemd and ``timeout`` send it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from nextdetr.data.signals import STOPPING
from nextdetr.engine.log import Display
from nextdetr.engine.state import read_state
from nextdetr.engine.stopping import stop_on_signal
from tests.helpers import squares, tiny_model

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.mark.slow
@pytest.mark.parametrize(("command", "devices"), [("train", 1), ("train", 2), ("pretrain", 1)])
def test_a_signal_to_all_processes_leaves_a_checkpoint(tmp_path, command, devices):
    data, output = squares(tmp_path / "data", images=8), tmp_path / "run"
    own = {
        "train": ["--data", str(data), "--model", str(tiny_model(tmp_path)), "--batch-size", "2"],
        "pretrain": [str(data / "images" / "train"), "--batch-size", "2"],
    }[command]
    arguments = [
        sys.executable, "-m", "nextdetr", command, *own, "--epochs", "100000", "--image-size", "64", "--workers", "2",
        "--devices", str(devices), "--accelerator", "cpu", "--output", str(output), "--json",
    ]  # fmt: skip
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 200
        while not (output / "metrics.csv").is_file():  # an epoch is over
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 3 * devices - 1
        os.killpg(process.pid, signal.SIGTERM)
        told, said = process.communicate(timeout=100)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, said
    assert json.loads(told)["error"]["type"] == "Interrupted"
    assert "Traceback" not in said
    assert read_state(output / "last.ckpt")[0].step > 0
    _, left = psutil.wait_procs(family, timeout=15)
    assert not left


OTHERS = [kind for kind in STOPPING if kind != signal.SIGINT]


@pytest.fixture
def _own_handlers():
    before = {kind: signal.signal(kind, signal.SIG_DFL) for kind in OTHERS}
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)


@pytest.mark.usefixtures("_own_handlers")
@pytest.mark.parametrize("kind", OTHERS)
def test_a_request_that_comes_twice_is_one(kind):
    """``timeout`` sends its signal to the command and to its group; a closed terminal and its shell send one each."""
    requested = threading.Event()
    with stop_on_signal(requested, Display(enabled=False)):
        signal.raise_signal(kind)
        assert requested.is_set()
        signal.raise_signal(kind)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(kind) is signal.SIG_DFL


@pytest.mark.usefixtures("_own_handlers")
def test_a_closed_terminal_is_ignored_under_nohup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    requested = threading.Event()
    with stop_on_signal(requested, Display(enabled=False)):
        signal.raise_signal(signal.SIGHUP)
        assert not requested.is_set()
