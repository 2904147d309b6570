"""Commands that use a detector refuse incomplete weights unless allowed; they and training report what was loaded."""

from __future__ import annotations

import json
import shutil

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import nextdetr
from nextdetr import Detector
from nextdetr.cli.main import run
from nextdetr.errors import ConfigError, WeightsError
from nextdetr.export import benchmark
from nextdetr.export.measure import Ceilings
from nextdetr.inference.opened import stored_bits
from nextdetr.models.graph import build_model, parse_model_text
from nextdetr.serve.run import start as start_server
from nextdetr.weights.checkpoint import save_detector
from nextdetr.weights.tensorfile import read_metadata, write_tensors
from tests.helpers import TINY_MODEL, squares, tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data set, a model, and two files of its weights: whole, and without the decoder's heads."""
    folder = tmp_path_factory.mktemp("partial")
    squares(folder / "data")
    model = tiny_model(folder)
    state = build_model(parse_model_text(TINY_MODEL, "m.yaml"), num_classes=2).state_dict()
    few = {name: tensor for name, tensor in state.items() if "_head." not in name}
    for name, tensors in (("whole", state), ("gaps", few)):
        path = folder / f"{name}.safetensors"
        save_detector(path, tensors, model_text=TINY_MODEL, classes=["square", "disc"], image_size=64)
    return folder, str(model)


def commands(folder, model, tmp_path):
    data = str(folder / "data")
    picture = str(next((folder / "data").rglob("*.png"), None) or next((folder / "data").rglob("*.jpg")))
    small = ["--image-size", "64"]
    return {
        "val": ["val", model, "--data", data, *small],
        "predict": ["predict", model, picture, "--output", str(tmp_path / "out"), *small],
        "info": ["info", model, *small],
        "embed": ["embed", model, picture, "--output", str(tmp_path / "vectors.npz"), *small],
        "export": ["export", model, "--format", "pt2", "--output", str(tmp_path / "export"), *small, "--images", "1"],
        "benchmark": ["benchmark", model, "--output", str(tmp_path / "benchmark"), *small],
        "attention": ["analyze", "attention", model, picture, "--output", str(tmp_path / "attention"), *small],
        "doctor": ["doctor", data, "--model", model, *small],
    }


@pytest.mark.parametrize("name", ["val", "predict", "info", "embed", "export", "benchmark", "attention", "doctor"])
def test_every_command_refuses_a_file_with_gaps(place, tmp_path, capsys, name):
    folder, model = place
    given = [*commands(folder, model, tmp_path)[name], "--weights", str(folder / "gaps.safetensors"), "--json"]
    assert run(given) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "WeightsError"
    assert "incomplete: " in error["message"]
    assert "_head." in error["message"]
    assert "--allow-partial" in error["message"]


@pytest.mark.parametrize("name", ["val", "predict", "info", "embed", "attention"])
def test_what_was_loaded_is_said(place, tmp_path, capsys, name):
    folder, model = place
    given = [*commands(folder, model, tmp_path)[name], "--json", "--weights"]
    assert run([*given, str(folder / "whole.safetensors")]) == 0
    told = capsys.readouterr()
    assert "tensors loaded." in told.err
    json.loads(told.out)
    assert run([*given, str(folder / "gaps.safetensors"), "--allow-partial"]) == 0
    assert " missing" in capsys.readouterr().err


def test_a_server_and_the_doctor_load_weights_and_say_what_they_lack(place, caplog):
    folder, model = place
    whole, gaps = folder / "whole.safetensors", folder / "gaps.safetensors"
    for given, told in (({"weights": whole}, []), ({"weights": gaps, "allow_partial": True}, [" missing"])):
        caplog.clear()
        with start_server(model, image_size=64, **given) as server:
            assert httpx.get(f"{server.url}/model", trust_env=False).json()["model"] == model
        assert [part in line for line, part in zip(caplog.messages, told, strict=True)] == [True] * len(told)
        caplog.clear()
        nextdetr.doctor(folder / "data", model=model, **given)
        assert [part in line for line, part in zip(caplog.messages, told, strict=True)] == [True] * len(told)
    with pytest.raises(WeightsError, match="--allow-partial"):
        start_server(model, image_size=64, weights=gaps)
    for call, message in (
        (lambda: start_server(model, f"other={model}", weights=whole), "--weights are for one model, not for 2"),
        (lambda: Detector(model).serve(weights=whole), "this detector has its own already"),
        (lambda: nextdetr.doctor(folder / "data", weights=whole), "--weights are for the detector that --model names"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()


def test_what_a_checkpoint_knows_of_its_data_comes_with_its_weights(place, tmp_path):
    _, model = place
    state = build_model(parse_model_text(TINY_MODEL, "m.yaml"), num_classes=2).state_dict()
    known = {"category_ids": "[7, 9]", "bits": "12"}
    path = save_detector(
        tmp_path / "known.safetensors", state, model_text=TINY_MODEL, classes=["a", "b"], image_size=64, extra=known
    )  # fmt: skip
    opened = Detector(model, weights=path).opened
    assert {name: opened.metadata[name] for name in known} == known
    assert stored_bits(opened.metadata) == 12


def test_info_of_a_checkpoint_without_metrics_and_of_an_export(place, tmp_path, capsys):
    folder, _ = place
    whole = folder / "whole.safetensors"
    metadata = read_metadata(whole)
    del metadata["metrics"]
    path = write_tensors(tmp_path / "bare.safetensors", load_file(whole), metadata)
    assert run(["info", str(path), "--image-size", "64"]) == 0
    assert "not scored yet" in capsys.readouterr().out
    (tmp_path / "model.onnx").write_bytes(b"any")
    for option in (["--weights", str(whole)], ["--image-size", "64"], ["--profile"]):
        assert run(["info", str(tmp_path / "model.onnx"), *option]) == 2
        assert "has its weights inside, its own image size, and no rows" in capsys.readouterr().err


def test_the_vectors_are_those_of_the_weights(place, tmp_path, capsys):
    folder, model = place
    whole = str(folder / "whole.safetensors")
    vectors = []
    for start in ([model, "--weights", whole], [whole]):  # the second has them itself
        _, _, *rest = commands(folder, model, tmp_path)["embed"]
        assert run(["embed", *start, *rest]) == 0
        vectors.append(np.load(tmp_path / "vectors.npz")["embeddings"])
    np.testing.assert_array_equal(*vectors)


def test_the_export_is_that_of_the_weights(place, tmp_path, capsys):
    folder, model = place
    whole = folder / "whole.safetensors"
    assert run([*commands(folder, model, tmp_path)["export"], "--weights", str(whole), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["passed"], result["weights"]) == (True, str(whole))
    program = torch.export.load(result["file"]).module()
    image = torch.rand(1, 3, 64, 64)
    _, scores, _ = program(image, torch.tensor([[64, 64]]))
    with torch.inference_mode():
        logits = Detector(whole).opened.model.eval()(image).logits
    assert scores.max().item() == pytest.approx(logits.sigmoid().max().item(), abs=1e-4)


def test_the_benchmark_is_of_the_weights(place, tmp_path, monkeypatch, capsys):
    folder, model = place
    measured = []

    def measure(task):
        measured.append(task)
        return {"median": 1.0, "p95": 1.0, "load": 1.0, "memory": 1.0}

    monkeypatch.setattr(benchmark, "measure", measure)
    monkeypatch.setattr(benchmark, "ceilings", lambda threads: Ceilings(1.0, 1.0))
    monkeypatch.setattr(benchmark, "is_installed", lambda package: False)  # rows of PyTorch alone
    whole = folder / "whole.safetensors"
    assert run([*commands(folder, model, tmp_path)["benchmark"], "--weights", str(whole), "--json"]) == 0
    assert {row["model"] for row in json.loads(capsys.readouterr().out)["rows"]} == {"tiny"}
    used = load_file(measured[0].source)
    assert all(torch.equal(tensor, used[name]) for name, tensor in load_file(whole).items())


def test_the_benchmark_of_a_run_has_the_size_of_its_file(place, tmp_path, monkeypatch, capsys):
    folder, model = place
    whole = folder / "whole.safetensors"
    (tmp_path / "cells").mkdir()
    shutil.copy(whole, tmp_path / "cells" / "best.safetensors")
    monkeypatch.setattr(benchmark, "measure", lambda task: {"median": 1.0, "p95": 1.0, "load": 1.0, "memory": 1.0})
    monkeypatch.setattr(benchmark, "ceilings", lambda threads: Ceilings(1.0, 1.0))
    monkeypatch.setattr(benchmark, "is_installed", lambda package: False)
    command = commands(folder, model, tmp_path)["benchmark"]
    assert run([command[0], str(tmp_path / "cells"), *command[2:], "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {(row["model"], row["bytes"]) for row in rows} == {("cells", whole.stat().st_size)}


def test_the_same_in_python_and_training_goes_on(place):
    folder, model = place
    with pytest.raises(WeightsError, match="incomplete"):
        Detector(model, weights=folder / "gaps.safetensors")
    detector = Detector(model, weights=folder / "gaps.safetensors", allow_partial=True)
    assert not detector.load_reports[0].complete
    output = ["--output", str(folder / "run"), "--epochs", "1", "--image-size", "64"]
    data = ["--data", str(folder / "data"), "--weights", str(folder / "gaps.safetensors")]
    assert run(["train", "--model", model, *data, *output]) == 0


def test_the_folder_of_a_run_and_what_lies_in_it_as_the_model(place, tmp_path, capsys):
    folder, model = place
    detector = Detector(model, weights=folder / "whole.safetensors")
    saved = detector.save_pretrained(tmp_path / "saved")
    runs = tmp_path / "run"
    runs.mkdir()
    detector.save(runs / "best.safetensors")
    (runs / "last.ckpt").write_bytes(b"state")
    for named in (saved, runs):
        assert Detector(named).classes == ["square", "disc"]
        assert run(["info", str(named)]) == 0
    capsys.readouterr()
    other = tmp_path / "theirs.pt"
    other.write_bytes(b"anything")
    (tmp_path / "empty").mkdir()
    for named, what in (
        (runs / "last.ckpt", f"name {runs / 'best.safetensors'} to use the detector"),
        (other, f"--weights {other}"),
        (tmp_path / "empty", "a folder with neither best.safetensors"),
    ):
        assert run(["info", str(named)]) == 2
        assert what in capsys.readouterr().err
    (runs / "best.safetensors").unlink()
    assert run(["info", str(runs)]) == 2
    assert f"--resume {runs}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.onnx", "model.xml", "."])
@pytest.mark.parametrize(
    "command",
    [
        "train --data photos --model FILE",
        "train --data photos --weights FILE",
        "embed FILE a.png --output v.csv",
        "weights convert FILE --to nextdetr",
        "analyze collapse FILE --images photos",
    ],
)
def test_an_exported_detector_has_no_weights_to_load(command, name, tmp_path, monkeypatch, capsys):
    (tmp_path / "export").mkdir()
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "photos" / "a.png")
    for file in ("model.onnx", "model.xml", "model.bin"):
        (tmp_path / "export" / file).write_text("<?xml version='1.0'?>")
    monkeypatch.chdir(tmp_path)
    assert run(command.replace("FILE", f"export/{name}").split()) == 2
    assert "an exported detector, from which no weights can be loaded" in capsys.readouterr().err
