from __future__ import annotations

import json
import multiprocessing
import os
import signal

import numpy as np
import pytest

from nextdetr.cli.main import run
from nextdetr.errors import ConfigError, MeasurementError
from nextdetr.export.measure import Task, _in_process, measure
from tests.export.helpers import needs_runtimes
from tests.helpers import tiny_model

pytestmark = pytest.mark.slow


def test_a_row_is_measured_in_its_own_process(tmp_path):
    ballast = np.ones(1 << 27)  # 1 GiB here, which the child's peak must not show
    found = measure(Task("fused", str(tiny_model(tmp_path)), 64, 2, 1, 0.05))
    assert ballast.nbytes == 1 << 30
    assert 0 < found["median"] <= found["p95"]
    assert 50e6 < found["memory"] < 1e9


def test_benchmark_has_a_row_for_each_runtime_and_peer(tmp_path, capsys):
    needs_runtimes()
    import onnx

    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3, "height", "width"])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph([onnx.helper.make_node("Abs", ["x"], ["y"])], "g", [x], [y])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, ir_version=9, opset_imports=opset), tmp_path / "peer.onnx")
    arguments = ["benchmark", str(tiny_model(tmp_path)), "--seconds", "0.05", "--threads", "1", "--batch", "1", "2"]
    arguments += ["--peers", str(tmp_path / "peer.onnx"), "--output", str(tmp_path / "out")]
    assert run([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    runtimes = {(row["model"], row["runtime"], row["batch"]) for row in result["rows"]}
    tiny = {("tiny", name, batch) for name in ("pytorch", "pytorch fused", "onnxruntime", "openvino") for batch in (1, 2)}
    assert runtimes == tiny | {("peer", "onnxruntime", 1), ("peer", "onnxruntime", 2)}
    assert all(row["images_per_second"] == pytest.approx(row["batch"] / row["median"]) for row in result["rows"])
    assert result["ceilings"]["1"]["gflops"] > 1
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text()) == result


def test_a_peer_that_is_none_is_refused(tmp_path, capsys):
    assert run(["benchmark", str(tiny_model(tmp_path)), "--peers", str(tmp_path / "none.onnx")]) == 2
    assert "none.onnx" in capsys.readouterr().err


def killed(argument):
    os.kill(os.getpid(), argument)


def failing(argument):
    raise ConfigError(argument)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals")
def test_a_measurement_that_is_killed_or_fails_says_so():
    with pytest.raises(MeasurementError, match=r"signal 9, as when the memory is used up: try a smaller --image-size"):
        _in_process(killed, signal.SIGKILL, 1)
    with pytest.raises(ConfigError, match="no such file"):
        _in_process(failing, "no such file.", 1)
    assert not multiprocessing.active_children()
