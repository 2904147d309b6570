"""Published weights to start from: reported, chosen, and never downloaded unasked."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextdetr.config import TrainConfig, build_config
from nextdetr.engine.start import choose_start
from nextdetr.engine.train import train
from nextdetr.errors import ConfigError
from nextdetr.models.modelfile import load_model_file
from nextdetr.weights import remote
from tests.helpers import squares, tiny_model


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setattr(remote, "_fetched", lambda *_: pytest.fail("asked the Hub"))


def chosen(recipes="nextdetr-atto", /, **settings):
    told = []
    return choose_start(TrainConfig(**settings), lambda: recipes, told.append), "\n".join(told)


def given(model, /, **settings):
    return chosen(model, model=model, **settings)


def test_without_weights_it_is_told_what_fits_the_model():
    config, told = given("nextdetr-atto")
    assert (config.weights, config.backbone_weights) == (None, None)
    for part in (
        "convnext-atto-in1k (timm/convnext_atto.d2_in1k",
        "licence Apache-2.0",
        "14.8 MB",
        "--start auto",
        "nothing was",
    ):
        assert part in told
    assert "--model" not in told
    assert given("nextdetr-atto", start="none")[1] == chosen(start="none")[1] == ""
    assert chosen(backbone_weights=Path("mine.pt"))[1] == ""
    assert given("nextdetr-zepto")[1] == ""  # no published backbone is so small
    assert given("my.yaml")[1] == ""


@pytest.mark.parametrize(
    ("recipes", "name", "model"),
    [
        ("nextdetr-zepto", "deimv2-n-coco", "deimv2-n"), ("nextdetr-atto-p2", "deimv2-n-coco", "deimv2-n"),
        ("nextdetr-pico", "dfine-s-coco", "dfine-s"), ("nextdetr-tiny", "rtdetr-r50vd-o365", "rtdetr-r50vd"),
    ],
)  # fmt: skip
def test_a_detector_is_the_start_if_the_model_is_open(recipes, name, model):
    config, told = chosen(recipes)
    assert (config.weights, config.backbone_weights) == (None, None)
    for part in (
        f"{name} (",
        "trained on ",
        f"--start auto starts from them instead of random weights, with --model {model}",
    ):
        assert part in told
    config, told = chosen(recipes, start="auto")
    assert (config.model, config.weights, config.backbone_weights) == (model, Path(name), None)
    assert f"--model {model}: the one of these weights" in told
    contract = chosen("nextdetr-atto", start="auto", latency=25.0)[0]
    assert (contract.model, contract.backbone_weights) == ("nextdetr-atto", Path("convnext-atto-in1k"))


def test_what_fits_the_backbone_of_a_model_file_is_told(tmp_path):
    mine = tmp_path / "mine.yaml"
    backbone = "backbone:\n  - [-1, 1, convnextv2_pico, [{}]]\nhead: []\n"
    mine.write_text(backbone.format(""))
    assert "convnext-pico-in1k" in given(str(mine))[1]
    config, _ = chosen(str(mine), start="auto", model=str(mine))
    assert (config.model, config.backbone_weights) == (str(mine), Path("convnext-pico-in1k"))
    mine.write_text(backbone.format("pico.pt"))
    assert given(str(mine))[1] == ""  # it brings its own
    mine.write_text(load_model_file("rtdetr-r18vd").text)
    assert "rtdetr-r18vd-o365" in given(str(mine))[1]  # a copy of a shipped model
    assert given(str(tmp_path / "gone.yaml"))[1] == ""


def test_auto_takes_what_fits_the_model():
    config, told = given("nextdetr-atto", start="auto")
    assert (config.start, config.weights, config.backbone_weights) == (None, None, Path("convnext-atto-in1k"))
    assert "licence Apache-2.0" in told
    config, _ = given("rtdetr-r50vd", start="auto")
    assert config.weights == Path("rtdetr-r50vd-o365")  # the highest AP
    with pytest.raises(ConfigError, match="no published weights are known for nextdetr-zepto"):
        given("nextdetr-zepto", start="auto")


def test_a_name_brings_its_model():
    config, told = chosen(start="rtdetr-r18vd-coco")
    assert (config.model, config.weights) == ("rtdetr-r18vd", Path("rtdetr-r18vd-coco"))
    assert "model" in config.model_fields_set  # so that the recipe leaves it
    assert "--model rtdetr-r18vd" in told
    assert chosen(start="rtdetr-r18vd-coco", model="nextdetr-atto")[0].model == "nextdetr-atto"
    assert chosen(weights=Path("PekingU/rtdetr_r34vd"))[0].model == "rtdetr-r34vd"
    assert chosen(weights=Path("mine.safetensors"))[0].model == "nextdetr-atto"
    for name in ("rtdetr-r34vd-coco@main", "PekingU/rtdetr_r34vd@v1"):
        assert chosen(weights=Path(name))[0].model == "rtdetr-r34vd"
        config, _ = chosen(start=name)
        assert (config.model, config.weights) == ("rtdetr-r34vd", Path(name))
    with pytest.raises(ConfigError, match="did you mean rtdetr-r18vd-coco"):
        chosen(start="rtdetr-r18vd-coc")


def test_training_asks_for_it(tmp_path):
    config = TrainConfig(
        data=str(squares(tmp_path / "data")), model=str(tiny_model(tmp_path)), start="nobody", output=tmp_path / "run"
    )
    with pytest.raises(ConfigError, match="--start nobody: no published weights have this name"):
        train(config, quiet=True)
    assert not (tmp_path / "run").exists()


def test_one_of_both():
    with pytest.raises(ConfigError, match="--start chooses the weights"):
        build_config(TrainConfig, {"start": "auto", "weights": "a.pt"})
