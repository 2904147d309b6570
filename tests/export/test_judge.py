"""Which runtimes a file passes in, and what a benchmark scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nextdetr.config import BenchmarkConfig, build_config
from nextdetr.errors import ConfigError, ModelFileError
from nextdetr.export import benchmark as benchmarks
from nextdetr.export.gate import Limits, drawn_images
from nextdetr.export.graph import sample_near
from nextdetr.export.judge import judge
from nextdetr.inference.exported import open_export
from nextdetr.inference.openvino import OpenVinoSession
from nextdetr.layers.deformable import sample_levels, sample_levels_grid
from nextdetr.structures import DetectorOutput
from tests.export.handmade import SIDE, handmade, terms
from tests.export.helpers import needs_runtimes
from tests.helpers import tiny_model


@pytest.fixture
def verdicts(tmp_path):
    needs_runtimes()
    path = tmp_path / "model.onnx"
    handmade(path)
    reference = open_export(path, runtime="onnxruntime").model
    images, limits = drawn_images(2, SIDE), Limits(1e-3, 0.99, 0.001)

    def find(score=None, before=None):
        return judge(path, terms(), reference, images, limits, before or {}, score)

    return find


def test_a_file_is_judged_in_each_runtime(verdicts):
    assert {name: verdict.failures for name, verdict in verdicts().items()} == {"onnxruntime": [], "openvino": []}


def test_a_runtime_that_finds_something_else_has_not_passed(verdicts, monkeypatch):
    run = OpenVinoSession._run

    def wrong(self, inputs):
        found = run(self, inputs)
        return {**found, "scores": found["scores"] * 0.9}

    monkeypatch.setattr(OpenVinoSession, "_run", wrong)
    found = verdicts()
    assert found["onnxruntime"].passed
    assert "0.0% of 8 detections" in found["openvino"].failures[0]


def test_a_runtime_that_loses_accuracy_has_not_passed(verdicts):
    def score(opened):
        return {"AP": 0.17 if opened.model.session.name == "onnxruntime" else 0.15}

    found = verdicts(score, {"AP": 0.1705})
    assert found["onnxruntime"].passed
    assert found["openvino"].failures == ["AP fell from 0.1705 to 0.1500; the limit is a drop of 0.001."]


def test_a_runtime_that_fails_has_not_passed(verdicts, monkeypatch):
    def broken(self, inputs):
        raise RuntimeError("no such primitive")

    monkeypatch.setattr(OpenVinoSession, "_run", broken)
    found = verdicts()
    assert found["onnxruntime"].passed
    assert "openvino cannot run it" in found["openvino"].failures[0]
    assert "no such primitive" in found["openvino"].failures[0]


def test_a_file_that_gives_no_numbers_fails(tmp_path):
    needs_runtimes()
    handmade(tmp_path / "model.onnx", scores=(0.0,) * 4)
    with pytest.raises(ModelFileError):
        open_export(tmp_path).model(torch.zeros(1, 3, SIDE, SIDE))
    images, limits = drawn_images(1, SIDE), Limits(None, 0.0, 0.005)
    reference = DetectorOutput(torch.randn(1, 4, 3), torch.rand(1, 4, 4))
    found = judge(tmp_path / "model.onnx", terms(), lambda batch: reference, images, limits, {}, None)
    assert not any(verdict.passed for verdict in found.values())


@pytest.mark.parametrize("far", [3.0, -1e3, 1e20, -3e38, torch.inf, -torch.inf])
def test_places_far_outside_read_zero(far):
    shapes = ((4, 6), (1, 1))
    value, weights = torch.rand(1, 25, 2, 3) + 1, torch.rand(1, 5, 2, 4)
    near = torch.rand(1, 5, 2, 4, 2) * 1.6 - 0.3
    for sample in (sample_levels, sample_levels_grid):
        assert torch.allclose(
            sample_near(sample, value, shapes, near, weights, (3, 1)),
            sample(value, shapes, near, weights, (3, 1)),
            atol=1e-6,
        )
        outside = near.clone()
        outside[..., 0] = far
        assert not sample_near(sample, value, shapes, outside, weights, (3, 1)).any()


def test_a_benchmark_scores_and_measures_at_one_size(tmp_path, monkeypatch):
    needs_runtimes()
    scored, measured = [], []

    def write(opened, settings):
        assert settings.image_size == opened.image_size == 96
        handmade(tmp_path / "model.onnx", terms(dynamic=True))
        return type("Done", (), {"file": str(tmp_path / "model.onnx")})

    def measure(task):
        measured.append(task.image_size)
        return {"median": 1.0, "p95": 1.0, "load": 1.0, "memory": 1.0}

    def score(opened, queries, part=None):
        scored.append((type(opened).__name__, opened.image_size))
        return {"AP": None}

    monkeypatch.setattr("nextdetr.export.run.export", write)
    monkeypatch.setattr(benchmarks, "measure", measure)
    monkeypatch.setattr(benchmarks, "ceilings", lambda threads: benchmarks.Ceilings(1.0, 1.0))
    monkeypatch.setattr(benchmarks, "preprocessing", lambda size: float(measured.append(size) or 0))
    config = build_config(BenchmarkConfig, {"image_size": 96, "data": "some", "output": tmp_path / "out"})
    benchmarks.benchmark(str(tiny_model(tmp_path)), config, score=score)
    assert scored[0] == ("OpenedModel", 96)
    assert set(measured) == {96}


def test_a_benchmark_measures_the_float_file_beside_an_8_bit_one(tmp_path, monkeypatch):
    needs_runtimes()
    for name, given in (("a_onnx", {}), ("a_onnx_int8", {"precision": "int8"}), ("a_onnx_raw", {"raw": True})):
        (tmp_path / name).mkdir()
        handmade(tmp_path / name / "model.onnx", terms(**given))
    (tmp_path / "b_onnx").mkdir()
    (tmp_path / "b_onnx" / "model.onnx").write_text("damaged")
    times = {("a_onnx", "onnxruntime"): 4.0, ("a_onnx", "openvino"): 3.0, ("a_onnx_int8", "onnxruntime"): 5.0}

    def measure(task):
        median = times.get((Path(task.source).parent.name, task.kind), 2.0)
        return {"median": median, "p95": median, "load": 1.0, "memory": 1.0}

    monkeypatch.setattr(benchmarks, "measure", measure)
    monkeypatch.setattr(benchmarks, "ceilings", lambda threads: benchmarks.Ceilings(1.0, 1.0))
    monkeypatch.setattr(benchmarks, "preprocessing", lambda size: 1.0)
    config = build_config(BenchmarkConfig, {"output": tmp_path / "out", "batch": (1,), "threads": (1,)})
    result = benchmarks.benchmark(str(tmp_path / "a_onnx_int8"), config)
    assert [row.model for row in result.rows] == ["a_onnx_int8"] * 2 + ["a_onnx"] * 2
    assert (result.deploy["1"].precision, result.deploy["1"].runtime) == ("int8", "openvino")
    assert result.deploy["1"].ratio == pytest.approx(2 / 3)
    assert benchmarks.benchmark(str(tmp_path / "a_onnx"), config).deploy == {}


@pytest.mark.parametrize(("precision", "package"), [("int8", "nncf"), ("float32", "onnxscript")])
def test_a_benchmark_that_lacks_a_package_ends_before_it_exports_or_scores(precision, package, tmp_path, monkeypatch):
    asked = []

    def is_there(name):
        asked.append(name)
        return name != package

    def fail(*arguments, **settings):
        pytest.fail("it was scored or exported first")

    monkeypatch.setattr(benchmarks, "is_installed", lambda name: True)
    monkeypatch.setattr("nextdetr.export.run.is_installed", is_there)
    monkeypatch.setattr("nextdetr.models.summary.count_gflop", fail)
    given = {"data": "some", "precision": ("float32", precision), "output": tmp_path / "out", "points": True}
    with pytest.raises(ConfigError, match=rf"the export to onnx needs the package {package}, which is not installed"):
        benchmarks.benchmark(str(tiny_model(tmp_path)), build_config(BenchmarkConfig, given), score=fail)
    assert package in asked
    assert not (tmp_path / "out").exists()
