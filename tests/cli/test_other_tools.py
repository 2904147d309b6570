"""What users of other tools type is understood, or answered with the right word."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from nextdetr.cli.commands import SUMMARIES, app
from nextdetr.cli.common import settings
from nextdetr.cli.main import run
from nextdetr.cli.other_tools import COMMANDS, OPTIONS, find, own_settings, suggested_command
from nextdetr.cli.tokens import _known, prepare
from nextdetr.config import GraftConfig, PredictConfig, PretrainConfig, TrainConfig, build_config
from nextdetr.errors import ConfigError
from tests.docs.blocks import ROOT


def prepared(command):
    return " ".join(prepare(shlex.split(command)))


@pytest.mark.parametrize(
    ("typed", "ours"),
    [
        ("--json --verbose train --data a", "train --data a --json --verbose"),
        ("--json val m --data a -- b", "val m --data a --json -- b"),
        ("train --data a --imgsz 640 --batch 16", "train --data a --image-size 640 --batch-size 16"),
        ("train --img=640", "train --image-size=640"),
        ("train --data a b --data c --imgsz 64", "train --data a b --data c --image-size 64"),
        ("train --batch_size 4", "train --batch_size 4"),  # Cyclopts reads both
        ("predict m a --conf 0.4 --max_det 9", "predict m a --confidence 0.4 --max-detections 9"),
        ("serve m --batch 4", "serve m --batch 4"),  # an option of its own
        ("benchmark m --batch 1 4", "benchmark m --batch 1 4"),
        ("train --output-dir x --num-workers 2", "train --output x --workers 2"),
        ("predict m --source a b --conf 0.4", "predict m a b --confidence 0.4"),
        ("predict m --source=a --save json", "predict m a --save json"),
        ("predict --source a --weights m.pt", "predict m.pt a"),
        ("predict --model m.pt --source a --tile 64", "predict m.pt a --tile 64"),
        ("predict --tile 64 --model=m.pt --source a b", "predict m.pt a b --tile 64"),
        ("embed --model m.pt a --output v.csv", "embed m.pt a --output v.csv"),
        ("predict m a --weights w.pt", "predict m a --weights w.pt"),
        ("val m --model x", "val m --model x"),
        ("predict m - --save json -", "predict m  -  - --save json"),
        ("predict m --save images json a.png", "predict m a.png --save images json"),
        ("predict m --save images,json a.png b.png --tile 64", "predict m a.png b.png --save images,json --tile 64"),
        ("predict m --save a.png", "predict m --save a.png"),  # which is answered with the values that it takes
        ("predict m --save images jsn", "predict m --save images jsn"),
        ("predict m a --line -10,20,30,40", "predict m a --line  -10,20,30,40"),
        ("predict m --line -10,20,30,40 5,6,7,8 a.png", "predict m a.png --line  -10,20,30,40 5,6,7,8"),
        ("predict m --line=-10,20,30,40 a.png", "predict m --line=-10,20,30,40 a.png"),
        ("benchmark --threads 1 2 m.onnx", "benchmark m.onnx --threads 1 2"),
        ("graft d --backbone convnextv2-atto=atto.pt --images a", "graft d --backbone convnextv2-atto=atto.pt --images a"),
        ("serve cells=model.onnx", "serve cells=model.onnx"),
        ("train --data a -- imgsz=3", "train --data a -- imgsz=3"),
        ("weights list --json", "weights list --json"),
    ],
)
def test_words_are_understood(typed, ours):
    assert prepared(typed) == ours


def test_a_file_ends_a_list_of_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("car.png").touch()
    assert prepared("predict m --classes car bus car.png") == "predict m car.png --classes car bus"
    assert prepared("predict m --classes car bus 'photos/*.jpg'") == "predict m photos/*.jpg --classes car bus"
    assert prepared("predict m --classes car bus van.png") == "predict m --classes car bus van.png"  # no such file


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (
            "predict m a --iou 0.5",
            "non-maximum suppression: leave it out, or give --merge-iou for near-duplicates. See nextdetr predict",
        ),
        ("serve m --iou 0.5", "give --merge-iou for near-duplicates. See nextdetr serve"),
        ("train --lr0 0.01", "--learning-rate"),
        ("pretrain --optimizer=SGD", "--optimizer: AdamW"),
        ("train --project a --name b", "--output FOLDER"),
        ("val m --conf 0.001", "AP counts every detection"),
        ("predict m a --save-txt", "--save yolo"),
        ("predict m a --save-crop", "--save crops"),
        ("val m --iou 0.7", "--iou: the detector needs no non-maximum suppression: leave it out."),
        ("predict m a --half", "nextdetr export MODEL --half"),
        ("predict --source a", "the model comes first: nextdetr predict MODEL a."),
        ("detect", "try nextdetr predict MODEL IMAGES."),
        ("fit --data x", "try nextdetr train --data DATA."),
        ("Test", "try nextdetr val MODEL --data DATA --split test."),
        ("trian", "did you mean nextdetr train?"),  # codespell:ignore
        ("evalute", "try nextdetr val MODEL --data DATA."),  # codespell:ignore
        ("qwertz", "nextdetr --help lists them."),
        ("train data=coco.yaml imgsz=640", "nextdetr train --data coco.yaml --image-size 640."),
        ("detect train data=coco.yaml", "nextdetr train --data coco.yaml."),
        ("predict model=m.pt source=a.jpg conf=0.4 --json", "nextdetr predict m.pt a.jpg --json --confidence 0.4."),
        ("predict source='my photos' model=m.pt track=True", "nextdetr predict m.pt 'my photos' --track."),
        ("train data=a multi_scale=False", "nextdetr train --data a --no-multi-scale."),
        ("train data=a lr0=0.01", "nextdetr train --data a. lr0: --learning-rate is a peak rate"),
        ("detect predict m.pt a.jpg", "nextdetr predict m.pt a.jpg."),
    ],
)
def test_other_words_are_answered(typed, answer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        prepare(shlex.split(typed))
    assert answer in str(error.value)
    assert str(error.value).endswith((".", "?"))


def of_file(text, *, command="train", options=None):
    Path("c.yaml").write_text(text, encoding="utf-8")
    kinds = {"train": TrainConfig, "pretrain": PretrainConfig, "graft": GraftConfig}
    return settings(kinds[command], options, "c.yaml", command=command)


@pytest.mark.parametrize(
    ("text", "command", "ours"),
    [
        ("imgsz: 320\nbatch: 4", "train", {"image_size": 320, "batch_size": 4}),
        ("img-size: 320", "train", {"image_size": 320}),
        ("num_workers: 2\nlr: 1.0e-3\nmax_epochs: 9", "pretrain", {"workers": 2, "learning_rate": 1e-3, "epochs": 9}),
        ("output_dir: x\nwd: 0.1", "graft", {"output": Path("x"), "weight_decay": 0.1}),
        ("imgsz: 320\nproject: null\nlr0:", "train", {"image_size": 320}),  # a setting left alone asks for nothing
        ("mosaic: 0.5", "train", {"mosaic": 0.5}),  # a name of ours, too
    ],
)
def test_a_file_of_settings_may_have_names_of_other_tools(text, command, ours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = of_file(text, command=command)
    assert {name: getattr(config, name) for name in config.model_fields_set} == ours


def test_options_win_over_names_of_other_tools_in_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert of_file("imgsz: 320\nmax_epochs: 9", options=TrainConfig(image_size=64, minutes=1)).model_fields_set == {
        "image_size", "minutes",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("lr0: 0.01", "c.yaml: lr0: learning_rate is a peak rate for AdamW"),
        ("momentum: 0.9", "c.yaml: momentum: that of both optimisers is fixed: leave it out."),
        ("project: a", "c.yaml: project: output FOLDER names the folder of the results."),
        ("close_mosaic: 10", "strong_until is the share of the run"),
        ("fliplr: 0", "flip_horizontal and flip_horizontal: false turn mirroring on and off."),
        ("eval_only: true", "nextdetr val MODEL --data DATA scores a detector."),
        ("hyp: h.yaml", "--config names a file of settings."),
        ("imgsz: 64\nimage_size: 64", "c.yaml: imgsz and image_size are the same setting: keep one of them."),
        ("image_size: 64\nimgsz: 64", "c.yaml: image_size and imgsz are the same setting: keep one of them."),
        ("epoch: 3", "c.yaml: there is no setting 'epoch'; did you mean epochs?"),
        ("config_file: a", "c.yaml: there is no setting 'config_file'"),  # ours is an option, but no setting
        ("conf: 0.3", "c.yaml: there is no setting 'conf'"),  # of other commands
        ("task: detect\nmode: train\nimgsz: 64", "nextdetr import-run FOLDER takes such a run over."),
        ("imgsz: [64, 64]", "c.yaml: --image-size must be a valid integer"),
    ],
)
def test_other_names_in_a_file_are_answered(text, answer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        of_file(text)
    assert answer in str(error.value)


@pytest.mark.parametrize("command", ["train", "pretrain", "graft"])
def test_the_whole_table_holds_for_files(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fields = {"train": TrainConfig, "pretrain": PretrainConfig, "graft": GraftConfig}[command].model_fields
    for entry in OPTIONS:
        for name in entry.names.split():
            if name.replace("-", "_") in fields or find(name, command) is not entry:
                continue
            if not entry.ours:
                with pytest.raises(ConfigError, match=rf"^c\.yaml: {name.replace('-', '_')}: "):
                    own_settings({name.replace("-", "_"): 1}, command, fields, "c.yaml")
            elif f"--{entry.ours}" in _known(command) and entry.ours != "config":
                assert own_settings({name: 1}, command, fields, "") == {entry.ours.replace("-", "_"): 1}


def test_a_file_may_have_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("imgsz=640").touch()
    assert prepared("predict m imgsz=640") == "predict m imgsz=640"
    assert prepared("predict m key=value.jpg") == "predict m key=value.jpg"  # no option, of ours or others


@pytest.mark.parametrize(
    ("device", "ours"), [("0", "cuda:0"), (1, "cuda:1"), ("cpu", "cpu"), ("cuda:0", "cuda:0"), (None, None)]
)
def test_a_number_is_a_gpu(device, ours):
    assert build_config(PredictConfig, {"device": device}).device == ours
    assert build_config(TrainConfig, {"device": device}).device == ours


def test_several_gpus_are_processes():
    with pytest.raises(ConfigError, match="--devices 2 uses 2 GPUs"):
        build_config(TrainConfig, {"device": "0,1"})
    with pytest.raises(ConfigError, match="names one device, such as cuda:0") as error:
        build_config(PredictConfig, {"device": "0,1"})
    assert "--devices" not in str(error.value)


def test_a_data_set_without_its_option_is_answered(capsys):
    assert run(["train", "photos"]) == 2
    assert "'photos' is not expected here: did you mean --data photos?" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["true", "False"])
def test_a_switch_with_a_value_is_answered(value, capsys):
    assert run(["train", "--data", "photos", "--auto-turn", value]) == 2
    message = capsys.readouterr().err
    assert f"'{value}' is not expected here: a switch has no value" in message
    assert "--data" not in message


@pytest.mark.parametrize("entry", OPTIONS, ids=lambda entry: entry.names)
def test_the_table_names_what_exists(entry):
    assert bool(entry.ours) != bool(entry.answer)
    assert set(entry.commands.split()) <= set(SUMMARIES)
    commands = entry.commands.split() or [name for name in SUMMARIES if name not in ("weights", "analyze")]
    if entry.ours:
        assert any(f"--{entry.ours}" in _known(command) for command in commands)
    for name in entry.names.split():
        assert any(find(name, command) is entry for command in commands), f"another entry answers {name}"
        assert not all(f"--{name}" in _known(command) for command in commands), f"{name} is an option of ours"


@pytest.mark.parametrize("entry", [entry for entry in OPTIONS if entry.answer], ids=lambda entry: entry.names)
def test_answers_name_options_that_exist(entry):
    elsewhere = re.findall(r"nextdetr ([a-z]+)", entry.answer)
    commands = elsewhere or entry.commands.split() or ["train", "predict"]
    for option in re.findall(r"--[a-z][a-z0-9-]+", entry.answer):
        if not (elsewhere and any(option in _known(command) for command in entry.commands.split())):
            assert all(option in _known(command) for command in commands), option


def test_commands_of_other_tools_are_answered_with_commands_of_ours():
    assert not set(COMMANDS) & set(SUMMARIES)
    for answer in COMMANDS.values():
        words = shlex.split(answer.split(",")[0])
        assert words[1] in app
    assert suggested_command("completly", list(SUMMARIES)) == "did you mean nextdetr completion?"  # codespell:ignore


def test_the_page_has_the_table(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "website"))
    from command_pages import other_tools

    page = (ROOT / "docs/reference/other-tools-options.md").read_text(encoding="utf-8")
    assert page.endswith(other_tools()), "write what other_tools() returns into the page"
