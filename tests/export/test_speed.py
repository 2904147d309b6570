"""The speed contract's points, measured and exported."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from nextdetr.cli.main import run
from nextdetr.detector import Detector
from nextdetr.errors import ConfigError
from nextdetr.export import measure, speed
from nextdetr.export.speed import meter, points_of
from nextdetr.extras import is_installed
from nextdetr.inference.speed import SPEED, Setting, SpeedPoint, SpeedTable, processor_name
from nextdetr.inference.times import model_digest
from nextdetr.weights.checkpoint import open_model, save_opened
from tests.export.helpers import checkpoint, needs_runtimes
from tests.helpers import tiny_model


def formula(opened, setting):
    return SpeedPoint(*setting, None, setting.image_size / 10 + setting.layers, "formula", "paper", 1, True)


@pytest.fixture(scope="module")
def contracted(tmp_path_factory):
    """A checkpoint with a table: 64 px with one layer, 96 px with two."""
    folder = tmp_path_factory.mktemp("contract")
    path = checkpoint(folder, tiny_model(folder), 64, ["square", "bar"])
    opened = open_model(path)
    points = tuple(
        SpeedPoint(size, queries, layers, score, ms, "openvino", "some processor", 2, True)
        for size, queries, layers, score, ms in ((64, 10, 1, 0.4, 5.0), (96, 20, 2, 0.6, 9.0))
    )
    table = SpeedTable(10.0, points[1], points, 6)
    save_opened(path, opened, extra={SPEED: json.dumps(table.to_json())})
    return path


def test_without_runtimes_pytorch_is_measured(monkeypatch, contracted):
    monkeypatch.setattr(speed, "possible_runtimes", lambda path: [])
    threads = torch.get_num_threads()
    point = meter(1)(open_model(contracted), Setting(64, 10, 1))
    assert (point.setting, point.runtime, point.processor) == (Setting(64, 10, 1), "pytorch", processor_name())
    assert point.latency_ms > 0
    assert point.measured
    assert torch.get_num_threads() == threads


def test_the_points_of_a_table_are_measured_again(contracted):
    opened, told = open_model(contracted), []
    stored = points_of(opened, again=False, threads=1, tell=told.append)
    assert [p.latency_ms for p in stored] == [5.0, 9.0]
    again = points_of(opened, again=True, threads=1, tell=told.append, measure=formula)
    assert [(p.setting, p.AP, p.latency_ms, p.processor) for p in again] == [
        (Setting(64, 10, 1), 0.4, 7.4, "paper"),
        (Setting(96, 20, 2), 0.6, 11.6, "paper"),
    ]
    assert told == [
        "measuring 64 px, 10 queries, 1 decoder layer",
        "measuring 96 px, 20 queries, 2 decoder layers",
    ]


def test_of_a_model_without_a_table_a_grid_is_measured(tmp_path):
    opened = open_model(tiny_model(tmp_path))
    assert points_of(opened, again=False, threads=1, tell=print) == []
    found = points_of(opened, again=True, threads=1, tell=lambda text: None, measure=formula)
    small = {Setting(32, 5, layers) for layers in (1, 2)}  # as many queries as there are tokens
    assert {p.setting for p in found} == small | {Setting(64, 10, 1), Setting(64, 20, 2)}


def test_info_shows_table_and_plot(contracted, tmp_path, capsys):
    assert run(["info", str(contracted), "--image-size", "64", "--plot", str(tmp_path / "p.png")]) == 0
    shown = capsys.readouterr().out
    assert "speed contract: at most 10 ms an image; kept by 9.0 ms (96 px, 20 queries, 2 decoder layers" in shown
    assert "AP +---" in shown
    assert (tmp_path / "p.png").is_file()
    assert run(["info", str(contracted), "--image-size", "64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["speed"]["chosen"]["image_size"] == 96
    assert run(["info", str(tiny_model(tmp_path)), "--image-size", "64", "--plot", "x.png"]) == 2
    assert "no table of speeds" in capsys.readouterr().err
    assert run(["info", str(contracted), "--plot", str(tmp_path / "p.text")]) == 2
    assert "cannot be written as .text: end the name in .png" in capsys.readouterr().err
    assert not (tmp_path / "p.text").exists()


def test_prediction_says_what_it_chose_and_whose_times_these_are(contracted, tmp_path, capsys):
    Image.new("RGB", (80, 60)).save(tmp_path / "a.png")
    arguments = ["predict", str(contracted), str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]
    assert run([*arguments, "--latency", "6"]) == 0
    said = capsys.readouterr().err
    assert "--latency 6: 5.0 ms (64 px, 10 queries, 1 decoder layer, AP 0.4000; openvino on some processor" in said
    assert "another processor" in said
    assert run([*arguments, "--latency", "4"]) == 2
    assert "the fastest takes 5.0 ms" in capsys.readouterr().err
    assert run([*arguments, "--latency-of", "x.json"]) == 2
    assert "give both" in capsys.readouterr().err


def test_an_export_has_the_point_that_was_asked_for(contracted, tmp_path, capsys):
    needs_runtimes()
    result = Detector(contracted).export("onnx", latency=6.0, images=1, output=tmp_path / "out")
    assert (result.image_size, result.queries, result.decoder_layers) == (64, 10, 1)
    exported = Detector(result.file)
    image = torch.zeros(48, 48, 3, dtype=torch.uint8).numpy()
    assert len(exported.predict(image, latency=6.0)) == 1
    Image.new("RGB", (80, 60)).save(tmp_path / "a.png")
    arguments = ["predict", result.file, str(tmp_path / "a.png"), "--output", str(tmp_path / "found"), "--latency", "10"]
    assert run(arguments) == 0
    said = capsys.readouterr().err
    assert "--latency 10: 5.0 ms (64 px, 10 queries" in said  # what the file has, not the best of all
    assert "nextdetr benchmark CHECKPOINT --points" in said
    larger = Detector(contracted).export("onnx", latency=10.0, images=1, output=tmp_path / "larger")
    with pytest.raises(ConfigError, match=r"exported with 96 px, 20 queries, 2 decoder layers, which takes 9.0 ms, and"):
        Detector(larger.file).predict(image, latency=6.0)


def test_pytorch_is_timed_with_the_queries_of_the_export(contracted, tmp_path, monkeypatch):
    needs_runtimes()
    timed = []
    monkeypatch.setattr("nextdetr.export.run.latency", lambda model, image: timed.append(model(image[None])) or 1.0)
    result = Detector(contracted).export("onnx", latency=6.0, images=1, output=tmp_path / "out", quiet=True)
    assert result.seconds_per_image["pytorch"] == 1.0
    assert [output.logits.shape[1] for output in timed] == [result.queries] == [10]


def test_a_file_that_has_fewer_tokens_than_queries_is_measured(contracted, tmp_path):
    needs_runtimes()
    result = Detector(contracted).export("onnx", queries=30, images=1, output=tmp_path / "out", quiet=True)
    assert result.queries == 20  # as many as there are tokens at 64 px
    found = measure._step(measure.Task("onnxruntime", result.file, 64, 1, 1, 0.0, queries=30))()
    assert found.boxes.shape[0] == 1


def test_points_of_an_exported_file_are_refused(contracted, tmp_path, capsys):
    needs_runtimes()
    file = Detector(contracted).export("onnx", latency=6.0, images=1, output=tmp_path / "out", quiet=True).file
    assert run(["benchmark", file, "--points", "--output", str(tmp_path / "benchmark")]) == 2
    assert "an exported file has one: name the checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "benchmark").exists()


@pytest.mark.slow
def test_the_faster_runtime_is_measured_and_benchmark_writes_what_latency_of_reads(contracted, tmp_path, capsys):
    needs_runtimes()
    assert is_installed("onnxruntime")
    arguments = ["benchmark", str(contracted), "--seconds", "0.02", "--threads", "1", "--points", "--latency", "6"]
    assert run([*arguments, "--output", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(p["image_size"], p["AP"], p["measured"]) for p in result["points"]] == [(64, 0.4, True), (96, 0.6, True)]
    assert all(p["runtime"] in ("onnxruntime", "openvino") for p in result["points"])
    assert result["image_size"] == 64
    assert result["points_measured"]
    assert result["model_digest"] == model_digest(open_model(contracted).model.text)
    file = tmp_path / "out" / "benchmark.json"
    slowest = max(p["latency_ms"] for p in result["points"])
    assert run(["predict", str(contracted), "none.png", "--latency", str(slowest), "--latency-of", str(file)]) == 2
    assert "none.png" in capsys.readouterr().err
