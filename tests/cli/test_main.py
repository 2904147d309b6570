from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stderr
from types import SimpleNamespace

import pytest

from nextdetr import measures
from nextdetr.cli.main import run
from nextdetr.errors import ConfigError
from tests.helpers import squares, tiny_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    data = squares(folder / "data")
    arguments = ["train", "--data", str(data), "--model", str(tiny_model(folder)), "--epochs", "1", "--image-size", "64"]
    with redirect_stderr(io.StringIO()) as log:
        assert run([*arguments, "--batch-size", "2", "--workers", "0", "--output", str(folder / "run"), "--json"]) == 0
    (folder / "log.txt").write_text(log.getvalue(), encoding="utf-8")
    return folder / "run" / "best.safetensors", data


def result_of(capsys):
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("score", "shown"), [(0.0332893337383052, "0.0333"), (None, "undefined")])
def test_trains_last_line_rounds_the_score(score, shown, monkeypatch, capsys):
    from nextdetr.engine import train

    best = {"epoch": 2, "metrics": {"AP": score}}
    monkeypatch.setattr(train, "train", lambda *_, **__: train.TrainResult("r", 2, 1.0, 1.0, best, "r/best.safetensors"))
    assert run(["train", "--data", "photos"]) == 0
    assert capsys.readouterr().out == f"r/best.safetensors  best epoch 2  AP {shown}\n"


@pytest.mark.parametrize(
    ("command", "stored", "options"),
    [
        ("train", "teacher: t.safetensors", "--teacher-weight 0.5"),
        ("train", "unlabelled: more", "--unlabelled-weight 2"),
        ("train", "latency: 20", "--latency-of pi.json"),
        ("pretrain", "detector: true", "--head-epochs 5"),
    ],
)
def test_an_option_may_be_about_a_setting_of_the_file(command, stored, options, tmp_path, monkeypatch, capsys):
    configs = []

    def note(config, **_):
        configs.append(config)
        raise ConfigError("enough.")

    monkeypatch.setattr("nextdetr.engine.train.train", note)
    monkeypatch.setattr("nextdetr.engine.pretrain.pretrain_all", note)
    (tmp_path / "c.yaml").write_text(stored)
    assert run([command, *options.split()]) == 2
    assert options.split()[0] in capsys.readouterr().err
    assert configs == []
    assert run([command, *options.split(), "--config", str(tmp_path / "c.yaml")]) == 2
    assert capsys.readouterr().err == "nextdetr: enough.\n"
    names = {stored.partition(":")[0], options.split()[0][2:].replace("-", "_")}
    assert configs[0].model_fields_set == names


def test_val_json(trained, capsys):
    model, data = trained
    capsys.readouterr()
    assert run(["val", str(model), "--data", str(data), "--json"]) == 0
    result = result_of(capsys)
    assert set(result) == {"command", "model", "data", "split", "images", "metrics", "per_class", "seconds_per_image"}
    assert result["images"] == 6
    assert result["per_class"]["square"]["boxes"] == 5
    assert set(result["seconds_per_image"]) == {"preprocess", "model", "postprocess"}


def test_val_table(trained, capsys):
    model, data = trained
    assert run(["val", str(model), "--data", str(data)]) == 0
    assert "AP_small" in capsys.readouterr().out


def test_predict_json_and_files(trained, tmp_path, capsys):
    model, data = trained
    images = data / "images" / "val"
    arguments = ["predict", str(model), str(images), "--confidence", "0", "--max-detections", "7", "--queries", "15"]
    assert run([*arguments, "--save", "images", "json", "yolo", "--output", str(tmp_path / "out"), "--json"]) == 0
    result = result_of(capsys)
    assert len(result["images"]) == 6
    first = result["images"][0]
    assert (first["width"], first["height"]) == (96, 96)
    assert len(first["detections"]) == 7
    assert set(first["detections"][0]) == {"box", "confidence", "class_id", "class_name"}
    written = {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert written == {".jpg", ".json", ".txt", ".yaml"}  # the YAML makes the labels a data set


def test_a_log_file_has_lines_and_nothing_else(trained, tmp_path, capsys):
    model, data = trained
    assert run(["predict", str(model), str(data / "images" / "val"), "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    log = (model.parents[1] / "log.txt").read_text(encoding="utf-8")
    assert "epoch 1/1" in log
    for text in (log, shown.out, shown.err):
        assert not {"\r", "\x1b"} & set(text)


@pytest.mark.parametrize("command", ["val M", "compare M M --resamples 100"])
def test_problems_of_the_data_are_reported_once(command, trained, tmp_path, capsys):
    model, data = trained
    file = shutil.copytree(data, tmp_path / "data") / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][2] = 0
    file.write_text(json.dumps(content))
    assert run([*command.replace("M", str(model)).split(), "--data", str(tmp_path / "data"), "--device", "cpu"]) == 0
    assert capsys.readouterr().err.count("1 problem in the data") == 1


def test_an_export_reports_problems_of_the_data_once(monkeypatch):
    described = []

    def score(*_, quiet, describe, **__):
        described.append(describe and not quiet)
        return SimpleNamespace(metrics={})

    monkeypatch.setattr("nextdetr.engine.validate.score_detector", score)
    scored = measures.scorer("photos", "val")
    for part in (object(), None, None):
        scored(None, None, part)
    assert described == [False, True, False]


def test_an_unreadable_image_is_told_once(trained, tmp_path, capsys):
    model, data = trained
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    arguments = ["predict", str(model), str(data / "images" / "val"), str(broken), "--save", "json"]
    assert run([*arguments, "--output", str(tmp_path / "out")]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "broken.png" in line]
    assert len(lines) == 1
    assert lines[0].startswith("nextdetr: skipped: ")


def test_predict_class_filter(trained, tmp_path, capsys):
    model, data = trained
    source = str(data / "images" / "val" / "1.png")
    assert (
        run(["predict", str(model), source, "--confidence", "0", "--classes", "bar", "--output", str(tmp_path), "--json"])
        == 0
    )
    assert {row["class_name"] for row in result_of(capsys)["images"][0]["detections"]} == {"bar"}
    assert run(["predict", str(model), source, "--classes", "barr", "--output", str(tmp_path), "--json"]) == 2
    assert "bar" in result_of(capsys)["error"]["message"]


def test_info_json(capsys):
    assert run(["info", "nextdetr-atto", "--image-size", "64", "--json"]) == 0
    result = result_of(capsys)
    assert set(result) == {"command", "model", "rows", "parameters", "trainable_parameters", "gflop", "image_size"}
    assert set(result["rows"][0]) == {"index", "from", "repeats", "parameters", "module", "arguments"}
    assert sum(row["parameters"] for row in result["rows"]) == result["parameters"]


def test_inspect_says_whose_model_and_licence_a_checkpoint_has(trained, capsys):
    assert run(["weights", "inspect", str(trained[0])]) == 0
    told = capsys.readouterr().out
    assert "for the model: one of its own, which the file holds" in told
    assert "licence of the weights: none, as no published weights are in it" in told


def test_info_names_the_maps_that_other_rows_read(capsys):
    assert run(["info", "nextdetr-atto", "--image-size", "64"]) == 0
    heads, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert heads[:3] == ["row", "maps", "from"]
    assert [row[:2] for row in rows[:3]] == [["0", "1-4"], ["1", "5"], ["2", "6"]]
    assert [row[:2] for row in rows if "DFINEDecoder" in row] == [["19", "[16,"]]  # it writes no map


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--epoch", "3"], "--epochs"),
        (["train", "--data", "x", "--epochs", "0"], "--epochs"),
        (["train"], "--data"),
        (["trian"], "train"),  # codespell:ignore
        (["val", "nextdetr-atto"], "--data"),
        (["val", "nextdetr-atto", "--data", "nowhere"], "nowhere"),
        (["predict", "nextdetr-atto"], "images"),
        (["info", "nextdetr-ato"], "nextdetr-atto"),
        (["info", "nextdetr-atto", "--image-size", "50"], "multiple of 32"),
    ],
)
def test_mistakes_exit_with_two_and_one_sentence(arguments, message, capsys):
    assert run([*arguments, "--json"]) == 2
    error = result_of(capsys)["error"]
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err


def _seconds(*arguments: str) -> float:
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        best = min(best, time.perf_counter() - started)
    return best


def test_help_is_quick():
    assert _seconds("-m", "nextdetr", "--help") < 1.0


def test_import_is_quick_and_brings_no_torch():
    assert _seconds("-c", "import nextdetr, sys; assert 'torch' not in sys.modules") < 0.5
