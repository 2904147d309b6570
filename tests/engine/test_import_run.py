"""Runs of ultralytics, generated here: settings, weights, data and scores are imported, and no code is run."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch
import yaml

from nextdetr.cli.main import run
from nextdetr.config import TrainConfig
from nextdetr.config_file import read_config_file
from nextdetr.engine.foreign_arguments import ARGUMENTS
from nextdetr.engine.import_run import import_run
from nextdetr.engine.runs import runs
from nextdetr.errors import ConfigError, DataError, WeightsError
from nextdetr.models.graph import build_model, parse_model_text
from nextdetr.weights.checkpoint import open_model
from tests.docs.blocks import ROOT
from tests.helpers import TINY_MODEL
from tests.weights.test_detectors import _ultralytics
from tests.weights.torch_files import Runs

ARGS = {
    "task": "detect", "mode": "train", "model": "tiny.yaml", "data": "coins.yaml", "epochs": 40, "time": None,
    "patience": 10, "batch": 4, "imgsz": 300, "cache": "ram", "device": "cpu", "workers": 2, "pretrained": True,
    "optimizer": "AdamW", "seed": 3, "cos_lr": True, "close_mosaic": 10, "amp": True, "freeze": None, "multi_scale": 0.0,
    "plots": False, "lr0": 2e-4, "lrf": 0.01,
    "momentum": 0.9, "weight_decay": 5e-4, "warmup_epochs": 4.0, "nbs": 64, "hsv_h": 0.015, "flipud": 0.5, "fliplr": 0.0,
    "mosaic": 0.3, "mixup": 0.0, "iou": 0.7, "nms": None, "save_dir": "runs/detect/train", "from_tomorrow": 1,
}  # fmt: skip
RESULTS = """ epoch, time, train/giou_loss, train/cls_loss, train/l1_loss,metrics/mAP50(B),metrics/mAP50-95(B),  lr/pg0
1,10.5,0.5,0.25,0.25,0.4,0.2,0.0001
2,20.5,0.25,0.25,0.25,0.6,0.3,0.0002
"""


@pytest.fixture
def theirs(tmp_path):
    """A run's folder, with a state dict in the place of the pickled model."""
    folder = tmp_path / "train"
    (folder / "weights").mkdir(parents=True)
    (folder / "args.yaml").write_text(yaml.safe_dump(ARGS))
    (folder / "results.csv").write_text(RESULTS)
    (folder / "data.yaml").write_text("path: .\ntrain: images\nval: images\nnames: [ring, coin]\n")
    model = build_model(parse_model_text(TINY_MODEL, "m.yaml"))
    content = {
        "model": _ultralytics(model, 3), "names": {0: "ring", 1: "coin"}, "train_args": ARGS,
        "yaml": yaml.safe_load(TINY_MODEL) | {"channels": 3, "yaml_file": "tiny.yaml"},
    }  # fmt: skip
    torch.save(content, folder / "weights" / "best.pt")
    return folder


def test_settings_weights_data_and_scores_come_over(theirs, tmp_path):
    result = import_run(theirs)
    output = tmp_path / "train-nextdetr"
    assert (result.output, result.epochs, result.weights_licence) == (str(output), 2, "AGPL-3.0")
    written = read_config_file(output / "config.yaml")
    assert {"model", "epochs", "learning_rate"} <= set(written)
    assert not {"augmentation", "ema_decay", "backbone_rate_factor"} & set(written)  # for the recipe to choose
    config = TrainConfig(**written)
    assert config.model_dump(exclude_defaults=True) == {
        "data": str(theirs / "data.yaml"), "model": str(output / "model.yaml"), "weights": output / "best.safetensors",
        "epochs": 40, "patience": 10, "val_every": 1, "batch_size": 4, "image_size": 320, "cache": "full", "device": "cpu",
        "workers": 2, "seed": 3, "flat": 0.0, "strong_until": 0.75, "multi_scale": False, "report": False,
        "learning_rate": 2e-4, "weight_decay": 5e-4, "warmup": 0.1, "flip_vertical": True, "flip_horizontal": False,
        "mosaic": 0.3,
    }  # fmt: skip
    opened = open_model(output / "best.safetensors")
    assert opened.classes == ["ring", "coin"]
    assert opened.image_size == 320
    for number, (name, tensor) in enumerate(opened.model.state_dict().items()):
        assert torch.equal(tensor, torch.full_like(tensor, number)), name
    assert build_model(str(output / "model.yaml")).row_infos == opened.model.row_infos
    (listed,) = runs(output).runs
    assert (listed.AP, listed.AP50, listed.best_epoch, listed.loss, listed.seconds) == (0.3, 0.6, 2, 0.75, 20.5)


def test_the_working_folder_is_a_run_like_any_other(theirs, tmp_path, monkeypatch):
    monkeypatch.chdir(theirs)
    assert import_run(".").output == str(tmp_path / "train-nextdetr")
    monkeypatch.chdir(theirs / "weights")
    assert import_run("..").output == str(tmp_path / "train-nextdetr-2")


def test_every_argument_is_told_of(theirs, capsys):
    assert run(["import-run", str(theirs), "--json"]) == 0
    found = {argument["name"]: argument for argument in json.loads(capsys.readouterr().out)["arguments"]}
    assert found.keys() == ARGS.keys()
    outcomes = {name: argument["outcome"] for name, argument in found.items()}
    assert (outcomes["imgsz"], outcomes["data"], outcomes["nbs"], outcomes["nms"]) == ("set", "set", "left", "none")
    assert found["from_tomorrow"]["note"] == "Not an argument that is known here."
    assert run(["import-run", str(theirs)]) == 0
    captured = capsys.readouterr()
    assert "imgsz: 300  ->  image_size: 320" in captured.out
    assert re.search(r"no counterpart: .*momentum", captured.out)
    assert "train-nextdetr-2" in captured.out  # the first one is left as it is
    assert "ultralytics' own evaluation" in captured.err


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"time": 1.5}, {"minutes": 90.0}),
        ({"epochs": -3}, {}),
        ({"imgsz": [640, 320]}, {"image_size": 640}),
        ({"imgsz": "large"}, {}),
        ({"batch": 0.7}, {}),
        ({"device": "0,1"}, {"devices": 2, "accelerator": "cuda"}),
        ({"device": [0, 1]}, {"devices": 2, "accelerator": "cuda"}),
        ({"device": 1}, {"device": "cuda:1"}),
        ({"device": None}, {}),
        ({"epochs": 50, "freeze": 1}, {"epochs": 50, "freeze_backbone_epochs": 50}),
        ({"freeze": 3}, {}),
        ({"amp": "bf16"}, {"precision": "bf16-mixed"}),
        ({"epochs": 50, "patience": 100}, {"epochs": 50}),
        ({"optimizer": "auto", "lr0": 0.01, "weight_decay": 1.0}, {}),
        ({"workers": "many", "seed": -1, "mosaic": 7}, {}),
        ({"cache": "disk"}, {}),
        ({"cache": False}, {"cache": "off"}),
    ],
)
def test_values(theirs, changes, settings):
    """Odd ones are left out, one by one."""
    (theirs / "args.yaml").write_text(yaml.safe_dump({"task": "detect", **changes}))
    result = import_run(theirs)
    assert {key: value for argument in result.arguments for key, value in argument.settings.items()} == settings


def test_what_is_missing_or_another_thing_is_said(theirs, tmp_path):
    weights = theirs / "weights" / "best.pt"
    with pytest.raises(ConfigError, match=r"no args\.yaml"):
        import_run(tmp_path)
    (theirs / "results.csv").write_text("epoch,time\none,2\n")
    with pytest.raises(DataError, match="delete it to leave it out"):
        import_run(theirs)
    (theirs / "results.csv").unlink()
    weights.rename(theirs / "weights" / "last.pt")
    (theirs / "data.yaml").unlink()
    result = import_run(theirs, tmp_path / "out")
    assert any("last.pt was taken" in note for note in result.notes)
    assert any("coins.yaml is not here" in note for note in result.notes)
    assert (result.data, result.epochs) == (None, 0)
    (theirs / "weights" / "last.pt").unlink()
    with pytest.raises(ConfigError, match=r"no weights/best\.pt"):
        import_run(theirs)
    (theirs / "args.yaml").write_text("task: segment\n")
    with pytest.raises(ConfigError, match="the task segment"):
        import_run(theirs)


def test_nothing_in_a_run_is_run(theirs, tmp_path):
    marker = tmp_path / "was-run"
    torch.save({"model": Runs(marker.touch)}, theirs / "weights" / "best.pt")
    with pytest.raises(WeightsError):
        import_run(theirs)
    assert not marker.exists()
    assert not (tmp_path / "train-nextdetr").exists()
    (theirs / "args.yaml").write_text(f"task: !!python/object/apply:pathlib.Path.touch [{marker}]\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        import_run(theirs)
    assert not marker.exists()


def test_the_page_shows_the_table():
    """docs/how-to/coming-from-ultralytics.md has a line for each argument, as the table has it."""
    page, chinese = (
        (ROOT / "docs" / "how-to" / f"coming-from-ultralytics{language}.md").read_text(encoding="utf-8")
        for language in ("", ".zh")
    )
    for name, argument in ARGUMENTS.items():
        ours = "\N{EN DASH}" if argument.ours is None else f"`{argument.ours}`"
        assert f"| `{name}` | {ours} | {argument.note} |" in page, name
        row = re.search(re.escape(f"| `{name}` | {ours} | ") + "(.*) [|]$", chinese, re.MULTILINE)
        assert row is not None, name
        assert bool(row[1].strip()) == bool(argument.note), name


def test_options_of_the_table_exist(monkeypatch):
    """Each command that the table names takes the options that it names."""
    monkeypatch.syspath_prepend(str(ROOT / "website"))
    from command_pages import command_pages

    pages = {name: text.replace("--[no-]", "--") for name, text in command_pages().items()}
    sys.modules.pop("command_pages")
    for name, argument in ARGUMENTS.items():
        commands = [word for word in re.findall(r"[a-z-]+", argument.ours or "") if f"{word}.md" in pages]
        for option in re.findall(r"(--[a-z0-9-]+)", argument.ours or ""):
            assert all(option in pages[f"{command}.md"] for command in commands), (name, option)
