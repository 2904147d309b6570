from __future__ import annotations

from pathlib import Path

import pytest

from nextdetr import config
from nextdetr.cli.common import settings
from nextdetr.config import ExportConfig, PredictConfig, PretrainConfig, TrainConfig, build_config
from nextdetr.config_file import dump_config, read_config_file
from nextdetr.errors import ConfigError


def test_unknown_setting_names_the_closest():
    with pytest.raises(ConfigError, match=r"run.yaml: there is no setting 'epoch'; did you mean epochs\?"):
        build_config(TrainConfig, {"epoch": 3}, source="run.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "--epochs .*greater than or equal to 1.*given: 0"),
        ({"epochs": 3, "minutes": 2}, "--epochs and --minutes"),
        ({"device": "cpu", "accelerator": "cuda"}, "--device cpu and --accelerator cuda contradict each other"),
        ({"image_size": 0}, "--image-size .*given: 0"),
        ({"precision": "8"}, "--precision"),
        ({"batch_size": "many"}, "--batch-size .*given: 'many'"),
        ({"minutes": float("inf")}, "--minutes must be a finite number .given: inf"),
        ({"learning_rate": float("nan")}, "--learning-rate must be "),
        ({"seed": 2**64}, "--seed must be less than 9223372036854775808 .given: 18446744073709551616"),
    ],
)
def test_bad_values_are_one_sentence(values, message):
    with pytest.raises(ConfigError, match=message) as error:
        build_config(TrainConfig, values)
    assert "\n" not in str(error.value)


def test_dump_and_read_give_the_same_settings(tmp_path):
    config = TrainConfig(data="bccd", minutes=24, output=Path("runs/x"), patience=4)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert build_config(TrainConfig, read_config_file(tmp_path / "config.yaml")) == config


def test_lists_may_be_given_with_commas():
    config = build_config(PredictConfig, {"classes": ["RBC,WBC", "Platelets"], "save": ["images,json"]})
    assert config.classes == ("RBC,WBC", "Platelets")  # which the detector splits: a class's name may have commas
    assert config.save == ("images", "json")
    assert build_config(PredictConfig, {"classes": [0, "RBC"]}).classes == ("0", "RBC")  # by name or number
    assert build_config(PredictConfig, {"classes": 2}).classes == ("2",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "must be a mapping"),
        ("a: [", "not valid YAML"),
        ("a: 2026-99-99\n", "not valid YAML"),
        (f"a: {'9' * 5000}\n", "not valid YAML"),
        ("a: " + "[" * 10_000, "nested too deeply"),
        (None, "cannot be read"),
    ],
)
def test_bad_config_file(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config_file(path)


def test_hyphens_and_underscores_are_the_same(tmp_path):
    (tmp_path / "c.yaml").write_text("image-size: 320\n")
    assert read_config_file(tmp_path / "c.yaml") == {"image_size": 320}


@pytest.mark.parametrize("kind", [TrainConfig, PretrainConfig])
@pytest.mark.parametrize(
    ("stored", "given", "left"),
    [
        ("epochs: 7", {"minutes": 2.0}, {"epochs": None, "minutes": 2.0}),
        ("minutes: 7\nepochs: null", {"epochs": 3}, {"epochs": 3, "minutes": None}),
        ("epochs: 7\nseed: 5", {"seed": 1}, {"epochs": 7, "minutes": None, "seed": 1}),
        ("devices: 2", {"device": "cpu"}, {"devices": 1, "device": "cpu"}),
        ("device: cuda:0", {"accelerator": "cpu"}, {"device": None, "accelerator": "cpu"}),
        ("accelerator: cuda", {"device": "cpu"}, {"device": "cpu", "accelerator": "auto"}),
    ],
)
def test_an_option_replaces_what_a_file_says_in_another_way(tmp_path, kind, stored, given, left):
    file = tmp_path / "settings.yaml"
    file.write_text(stored)
    merged = settings(kind, kind(**given), str(file))
    assert {name: getattr(merged, name) for name in left} == left


@pytest.mark.parametrize(
    ("stored", "given", "left"),
    [
        ("start: auto", {"weights": "w.pt"}, {"weights": Path("w.pt")}),
        ("start: auto\nweights: null", {"backbone_weights": "b.pt"}, {"weights": None, "backbone_weights": Path("b.pt")}),
        ("weights: w.pt\nbackbone_weights: b.pt", {"start": "auto"}, {"start": "auto"}),
        ("weights: w.pt", {"backbone_weights": "b.pt"}, {"weights": Path("w.pt"), "backbone_weights": Path("b.pt")}),
    ],
)
def test_weights_that_are_given_replace_the_start_of_a_file(tmp_path, stored, given, left):
    file = tmp_path / "settings.yaml"
    file.write_text(stored)
    merged = settings(TrainConfig, TrainConfig(**given), str(file))
    assert {name: getattr(merged, name) for name in merged.model_fields_set} == left


def test_off_is_off_in_a_file_too(tmp_path):
    (tmp_path / "settings.yaml").write_text("cache: off")  # which YAML reads as false
    assert settings(TrainConfig, None, str(tmp_path / "settings.yaml")).cache == "off"
    with pytest.raises(ConfigError, match=r"--cache must be .*given: True"):
        build_config(TrainConfig, {"cache": True})


@pytest.mark.parametrize(
    ("kind", "values", "more", "message"),
    [
        (ExportConfig, {"accuracy_drop": 0.01}, {"data": "photos"}, "--accuracy-drop is about the AP on a data set"),
        (PredictConfig, {"overlap": 0.3}, {"tile": 640}, "--overlap is that of tiles: give --tile too"),
        (PredictConfig, {"workers": 8}, {"engine": "ray", "output": "t.parquet"}, "--workers is for --engine ray"),
        (PredictConfig, {"save": "json", "output": "t.parquet"}, {"output": "t"}, "NAME.parquet is one table"),
    ],
)
def test_an_option_without_effect_is_refused(kind, values, more, message):
    with pytest.raises(ConfigError, match=message):
        build_config(kind, values)
    build_config(kind, values | more)


def test_a_file_that_sets_the_length_twice_is_refused(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("epochs: 7\nminutes: 2")
    with pytest.raises(ConfigError, match=r"settings\.yaml: --epochs and --minutes both set the length"):
        settings(TrainConfig, TrainConfig(seed=1), str(file))


#: A value of each setting that may have several.
ONE = {
    "classes": "cat", "line": "1,2,3,4", "zone": "1,2,3,4,5,6", "save": "images", "precision": "half", "threads": 4,
    "batch": 8, "peers": Path("peer.onnx"), "cors_origins": "https://example.org", "data": Path("photos"), "log": "csv",
    "unlabelled": "more", "images": "folder",
}  # fmt: skip


@pytest.mark.parametrize("kind", [getattr(config, name) for name in config.__all__ if name.endswith("Config")])
def test_one_value_is_enough_where_several_are_possible(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("peer.onnx").write_bytes(b"")
    for name, field in kind.model_fields.items():
        if "tuple[" in str(field.annotation):
            one = getattr(build_config(kind, {name: ONE[name]}), name)
            assert one == getattr(build_config(kind, {name: [ONE[name]]}), name)
            assert [str(value) for value in one] == [str(ONE[name])]
