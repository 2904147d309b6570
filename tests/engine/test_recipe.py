"""The recipe: a function of settings, data and machine; what is given stays; the reasons say what was chosen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nextdetr.cli.commands import app
from nextdetr.config import TrainConfig, build_config
from nextdetr.config_file import read_config_file
from nextdetr.data.records import DetectionData, ImageRecord
from nextdetr.data.sources import load_data
from nextdetr.engine.loading import build_training_loader
from nextdetr.engine.recipe import GIGABYTES, QUERIES, QUERIES_ELSEWHERE, choose_recipe
from nextdetr.engine.recipe_length import COST
from nextdetr.engine.statistics import DataStats, Machine, describe_data, describe_machine
from nextdetr.engine.train import train
from nextdetr.models.modelfile import available_models, load_model_file
from tests.helpers import squares, tiny_model

CELLS = DataStats(
    images=205, boxes=2804, classes=("Platelets", "RBC", "WBC"), boxes_by_class=(214, 2381, 209), most_boxes=28,
    small_side=0.146, longest_side=640, extents=((640, 480),) * 205,
)  # fmt: skip
LAPTOP = Machine("cpu", threads=2, cores=2, memory=16 * 2**30)
GPU = Machine("cuda", threads=8, cores=16, memory=64 * 2**30, device_memory=24 * 2**30)
MODELS = available_models()
DEEPER = "[-1, 1, Conv, [32, 3, 2]]"  # a map of stride 64


def choose(data=CELLS, machine=LAPTOP, backbone=None, without_labels=False, **settings):
    config = TrainConfig(data="cells", **settings)
    return choose_recipe(config, data, machine, models=MODELS, backbone=backbone, without_labels=without_labels)


def test_cells_on_a_laptop():
    recipe = choose()
    config = recipe.config
    assert (config.model, config.image_size, config.batch_size, config.epochs) == ("nextdetr-zepto", 320, 8, 73)
    assert (config.minutes, config.optimizer, config.learning_rate) == (None, "muon", 1.6e-3)
    assert (config.workers, config.cache) == (1, "full")
    assert (config.augmentation, config.flip_horizontal, config.backbone_rate_factor) == ("mild", True, 1.0)
    assert (config.mosaic, config.mixup, config.copy_paste) == (0, 0, 0)
    assert config.data == ("cells",)
    assert 4 <= len(recipe.text.splitlines()) <= 10
    for words in (
        "--model nextdetr-zepto",
        "--image-size 320",
        "--batch-size 8",
        "--epochs 73",
        "--cache full",
    ):
        assert words in recipe.text
    assert "the fastest for 2 threads" in recipe.text
    assert recipe == choose()


def test_few_images_may_have_no_up():
    few = replace(CELLS, images=50, boxes=700)
    assert choose(few).config.auto_turn
    assert "--auto-turn: if the detector turns out to find turned objects too" in choose(few).text
    for given in ({"rotate90": False}, {"flip_vertical": True}, {"auto_turn": False}, {"flip_horizontal": False}):
        assert not choose(few, **given).config.auto_turn
    assert not choose().config.auto_turn
    assert not choose(replace(few, classes=("left", "RBC", "WBC"))).config.auto_turn


@pytest.mark.parametrize("stride", [16, 32, 48, 64, 128])
@pytest.mark.parametrize("side", [0.146, 0.04, 0.027, 0.001])
def test_sizes_are_multiples_of_the_models_stride(stride, side):
    data = replace(CELLS, small_side=side)
    recipe = choose_recipe(TrainConfig(data="cells", model="own.yaml"), data, LAPTOP, models=MODELS, stride=stride)
    assert recipe.config.image_size % stride == 0
    assert 320 - stride < recipe.config.image_size <= 640


def test_a_run_draws_its_sizes_from_the_models_strides(tmp_path):
    text = tiny_model(tmp_path).read_text().replace("[3, 1, Conv, [32, 1, 1]]", DEEPER).replace("[6, 5]", "[5, 6]")
    (tmp_path / "own.yaml").write_text(text)
    run = train(
        TrainConfig(
            data=str(squares(tmp_path / "data")),
            model=str(tmp_path / "own.yaml"),
            image_size=128,
            epochs=2,
            batch_size=2,
            workers=0,
            output=tmp_path / "run",
        ),
        quiet=True,
    )
    assert run.epochs == 2
    data = load_data(str(tmp_path / "data"), "train")
    loader = build_training_loader(TrainConfig(data="photos", image_size=256), data, stride=64, rank=0, world=1)
    assert loader.sampler.multi_scale == (192, 256, 320)


@pytest.mark.parametrize("machine", [LAPTOP, GPU])
@pytest.mark.parametrize("start", [{}, {"backbone_weights": "b.safetensors"}, {"weights": "w.safetensors"}])
def test_what_is_given_stays(machine, start):
    given = {
        "model": "rtdetr-l", "image_size": 480, "batch_size": 3, "minutes": 5.0, "learning_rate": 1e-3, "workers": 0,
        "cache": "off", "cache_gigabytes": 0.5, "augmentation": "full", "flip_horizontal": True,
        "backbone_rate_factor": 0.3, "layer_decay": 0.7, "freeze_backbone_epochs": 0, "drop_path": 0.0,
    }  # fmt: skip
    recipe = choose(replace(CELLS, classes=("left", "right", "x")), machine, **given, **start)
    assert {name: getattr(recipe.config, name) for name in given} == given
    assert recipe.config.epochs is None
    assert not [name for name in recipe.chosen if name in given]
    assert "--" not in recipe.text


def test_a_default_that_is_given_is_given():
    assert choose(machine=GPU, batch_size=8, model="nextdetr-atto").config.batch_size == 8
    assert choose(machine=GPU).config.batch_size != 8


def test_every_setting_that_is_chosen_is_told_or_is_the_default():
    for machine in (LAPTOP, GPU):
        for start in ({}, {"backbone_weights": "b.safetensors"}, {"weights": "w.safetensors"}):
            recipe = choose(machine=machine, **start)
            for name, value in recipe.chosen.items():
                default = TrainConfig.model_fields[name].default
                told = f"--{name.replace('_', '-')} " in recipe.text
                assert told or value == default or name in ("cache_gigabytes", "backbone_rate_factor"), name


def test_choices_are_told_as_they_are_typed():
    few = replace(CELLS, images=50, boxes=100)
    recipes = [choose(few), choose(replace(few, classes=("left", "RBC", "WBC"))), choose(machine=GPU)]
    for recipe in recipes:
        words = [word for reason in recipe.reasons if reason.startswith("--") for word in reason.partition(": ")[0].split()]
        assert words
        app.parse_args(["train", *words], exit_on_error=False, print_error=False)
    assert "--no-flip-horizontal: the class 'left'" in recipes[1].text


@pytest.mark.parametrize(
    ("small_side", "longest", "size"),
    [(0.5, 640, 320), (0.04, 640, 416), (0.025, 2000, 640), (0.001, 4000, 640), (0.02, 300, 480), (0.03, 400, 544)],
)
def test_small_boxes_need_large_inputs(small_side, longest, size):
    config = choose(replace(CELLS, small_side=small_side, longest_side=longest), model="nextdetr-atto").config
    assert config.image_size == size


@pytest.mark.parametrize("model", ["nextdetr-atto-p2", "nextdetr-zepto-p2"])
def test_a_level_of_stride_4_needs_half_the_size(model):
    small = replace(CELLS, small_side=0.025, longest_side=2000)
    assert choose(small, model="nextdetr-zepto").config.image_size == 640
    assert choose(small, model=model).config.image_size == 320
    assert choose(small, model=model).config.learning_rate == 8e-4


FACES = replace(CELLS, images=542, boxes=2507, small_side=0.025, longest_side=600, extents=((400, 300),) * 542)


def test_few_small_boxes_get_a_finer_level_small_batches_and_several_pictures():
    recipe = choose(FACES)
    config = recipe.config
    assert (config.model, config.image_size, config.batch_size) == ("nextdetr-atto-p2", 320, 4)
    assert (config.mosaic, config.mixup, config.copy_paste, config.learning_rate) == (0.5, 0, 0.5, 8e-4)
    for words in ("stride 4 for small boxes", "--mosaic 0.5 --copy-paste 0.5: 4.6 boxes per image"):
        assert words in recipe.text
    on_gpu = choose(FACES, GPU).config
    assert (on_gpu.model, on_gpu.image_size, on_gpu.mosaic) == ("nextdetr-nano", 640, 0.5)
    trained = choose(FACES, weights="w.safetensors").config
    assert (trained.mosaic, trained.batch_size) == (0, 8)
    assert choose(FACES, mosaic=0.0).config.copy_paste == 0.5


def test_a_short_budget_is_not_spent_on_large_images():
    atto = {"model": "nextdetr-atto"}
    assert choose(FACES, **atto).config.image_size == 640
    sizes = [choose(FACES, minutes=minutes, **atto).config.image_size for minutes in (1.0, 24.0, 40.0, 80.0, 400.0)]
    assert sizes == [320, 320, 416, 608, 640]
    assert "40 minutes show too few images of a larger size" in choose(FACES, minutes=40.0, **atto).text
    assert "too few" not in choose(minutes=40.0).text
    assert choose(FACES, GPU, minutes=40.0).config.image_size == 640
    assert choose(FACES, minutes=40.0, model="nextdetr-tiny").config.image_size == 320


def test_many_classes_want_a_gentler_rate():
    many = replace(CELLS, classes=tuple(f"c{number}" for number in range(80)), boxes_by_class=(35,) * 80)
    recipe = choose(many, model="nextdetr-atto")
    assert recipe.config.learning_rate == 2e-4
    assert "--learning-rate 0.0002: 80 classes need a lower rate" in recipe.text
    assert choose(many, GPU, model="nextdetr-atto", batch_size=32).config.learning_rate == 4e-4
    assert choose(model="nextdetr-atto", optimizer="adamw").config.learning_rate == 8e-4


def test_muon_is_for_random_weights_of_the_model_it_gained_with():
    for model, optimizer, rate in (
        ("nextdetr-zepto", "muon", 1.6e-3), ("nextdetr-atto", "adamw", 8e-4), ("nextdetr-zepto-p2", "adamw", 8e-4),
        ("nextdetr-pico", "adamw", 4e-4),
    ):  # fmt: skip
        config = choose(model=model).config
        assert (config.optimizer, config.learning_rate) == (optimizer, rate), model
    assert "--optimizer muon: learns more per step" in choose().text
    many = replace(CELLS, classes=tuple(f"c{number}" for number in range(80)), boxes_by_class=(35,) * 80)
    assert choose(many, model="nextdetr-zepto").config.optimizer == "adamw"
    assert choose(optimizer="adamw").config.learning_rate == 8e-4
    assert choose(learning_rate=5e-4).config.learning_rate == 5e-4
    starts: list[dict[str, str]] = [{"weights": "w.safetensors"}, {"backbone_weights": "b.safetensors"}]
    for start in starts:
        assert choose(model="nextdetr-zepto", **start).config.optimizer == "adamw"
    own = choose(model="nextdetr-zepto", backbone_weights="b.safetensors", without_labels=True).config
    assert (own.optimizer, own.learning_rate, own.backbone_rate_factor) == ("muon", 1.6e-3, 1.0)


def test_few_images_get_small_batches_and_many_epochs():
    few = choose(replace(CELLS, images=20, extents=((640, 480),) * 20)).config
    assert (few.batch_size, few.epochs) == (4, 300)
    many = choose(replace(CELLS, images=120_000), GPU).config
    assert many.epochs == 24
    assert many.augmentation == "full"
    for name, rate, times in (("nextdetr-zepto", 8e-4, 2), ("nextdetr-atto", 8e-4, 1), ("nextdetr-pico", 4e-4, 1)):
        light = choose(replace(CELLS, images=120_000), GPU, model=name).config
        assert light.batch_size >= 16
        assert light.learning_rate == pytest.approx(times * min(1e-3, rate * (light.batch_size / 8) ** 0.5))


def test_a_long_run_on_a_processor_gets_minutes():
    config = choose(replace(CELLS, images=5000, small_side=0.01)).config
    assert (config.epochs, config.minutes) == (None, 180.0)
    assert choose(replace(CELLS, images=5000), GPU).config.minutes is None


def test_the_gpu_and_the_number_of_images_choose_the_model():
    sizes = [choose(replace(CELLS, images=n), GPU).config.model for n in (100, 1000, 10_000, 100_000)]
    assert sizes == ["nextdetr-pico", "nextdetr-nano", "nextdetr-tiny", "nextdetr-base"]
    small = replace(GPU, device_memory=4 * 2**30)
    assert COST[choose(replace(CELLS, images=100_000), small).config.model] < COST["nextdetr-nano"]
    only = choose_recipe(TrainConfig(data="cells"), CELLS, GPU, models=["nextdetr-atto"])
    assert only.config.model == "nextdetr-atto"
    assert set(COST) == set(GIGABYTES) <= set(MODELS)


def test_pre_trained_backbones_change_the_recipe():
    config = choose(backbone_weights="b.safetensors", backbone="tiny").config
    assert config.model == "nextdetr-tiny"
    assert (config.backbone_rate_factor, config.layer_decay, config.freeze_backbone_epochs) == (0.1, 1.0, 1)
    assert config.drop_path == 0.1
    atto = choose(backbone_weights="b.safetensors", backbone="atto").config
    assert (atto.model, atto.drop_path) == ("nextdetr-atto", 0.0)
    own = choose(backbone_weights="b.safetensors", backbone="atto", without_labels=True).config
    assert (own.backbone_rate_factor, own.layer_decay, own.freeze_backbone_epochs) == (1.0, 1.0, 0)


@pytest.mark.parametrize("start", [{"weights": "w.safetensors"}, {"model": "runs/x/best.safetensors"}])
def test_trained_detectors_need_less(start):
    recipe = choose(**start)
    assert recipe.config.learning_rate == 1e-4
    assert recipe.config.epochs < 73
    assert recipe.config.image_size is None
    assert recipe.config.backbone_rate_factor is None


def test_the_cache_follows_the_memory():
    large = replace(CELLS, extents=((4000, 3000),) * 205)  # 7 GB decoded, 0.3 GB shrunk
    assert choose(large, replace(LAPTOP, memory=32 * 2**30)).config.cache == "full"
    assert choose(large).config.cache == "full"
    shrunk = choose(large, replace(LAPTOP, memory=8 * 2**30))
    assert shrunk.config.cache == "shrunk"
    assert "640 px" in shrunk.text
    assert choose(large, replace(LAPTOP, memory=2**28)).config.cache == "off"
    assert choose(large, replace(LAPTOP, memory=8 * 2**30), cache="auto").config.cache == "shrunk"
    kept = choose(large, replace(LAPTOP, memory=8 * 2**30), cache="full")
    assert kept.config.cache == "full"
    assert "none is kept" in kept.text
    assert choose(large, replace(LAPTOP, memory=30 * 2**30, processes=4)).config.cache == "shrunk"


def test_mirrors_and_rare_classes():
    recipe = choose(replace(CELLS, classes=("left_shoe", "RBC", "bright"), boxes_by_class=(20, 2381, 209)))
    assert recipe.config.flip_horizontal is False
    assert "'left_shoe' (20 of" in recipe.text
    assert choose(replace(CELLS, classes=("bright", "cleft", "x"))).config.flip_horizontal


def test_a_data_set_without_boxes():
    empty = DataStats(3, 0, ("a",), (0,), 0, 0.0, 100, ((100, 80),) * 3)
    assert choose(empty).config.image_size is None


def test_statistics():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 20, 5], [0, 0, 100, 50]], np.float32)
    records = [
        ImageRecord("a", 1, 100, 50, boxes, np.array([0, 2, 2]), np.array([False, False, True]), boxes[:, 0]),
        ImageRecord("b", 2, 30, 80, boxes[:0], np.empty(0, np.int64), np.empty(0, bool), boxes[:0, 0]),
    ]
    stats = describe_data(DetectionData("d", "train", ["a", "b", "c"], [1, 2, 3], records, []))
    assert (stats.images, stats.boxes, stats.boxes_by_class, stats.most_boxes) == (2, 2, (1, 0, 1), 2)
    assert stats.small_side == pytest.approx((100 / 5000) ** 0.5)
    assert stats.longest_side == 90
    assert stats.extents == ((100, 50), (30, 80))


def test_this_machine():
    machine = describe_machine(torch.device("cpu"), 2)
    assert (machine.device, machine.threads, machine.processes) == ("cpu", torch.get_num_threads(), 2)
    assert machine.cores >= 1
    assert 2**20 < machine.memory < 2**50


def test_a_run_writes_all_of_it_and_resumes_with_it(tmp_path, capsys):
    data = squares(tmp_path / "data")
    settings = {"data": str(data), "model": str(tiny_model(tmp_path)), "image_size": 64, "workers": 0}
    train(TrainConfig(**settings, epochs=1, output=tmp_path / "run"))
    told = capsys.readouterr().err
    assert "--batch-size 4: 2 steps an epoch" in told
    stored = read_config_file(tmp_path / "run" / "config.yaml")
    assert (stored["batch_size"], stored["cache"], stored["epochs"]) == (4, "full", 1)
    assert set(stored) == set(TrainConfig.model_fields)
    train(TrainConfig(resume=tmp_path / "run", epochs=2))
    assert "Chosen" not in capsys.readouterr().err
    assert build_config(TrainConfig, stored).batch_size == 4


@pytest.mark.parametrize("name", [name for name in COST if name.startswith("nextdetr-")])
def test_queries_are_the_model_files(name):
    decoder = load_model_file(name).rows[-1]
    assert decoder.arguments[2] == QUERIES.get(name, QUERIES_ELSEWHERE)


def test_more_boxes_than_the_smallest_has_queries_get_a_larger_model():
    recipes = [choose(replace(CELLS, most_boxes=boxes)) for boxes in (100, 101)]
    assert [recipe.config.model for recipe in recipes] == ["nextdetr-zepto", "nextdetr-atto"]
    assert "with more than 100 queries" in recipes[1].text


def test_more_boxes_than_queries_are_told():
    assert "250 boxes, and the model 200 queries" in choose(replace(CELLS, most_boxes=250)).text
    assert "it finds at most" not in choose(replace(CELLS, most_boxes=200)).text


def test_a_short_run_trains_the_backbone_throughout():
    start = {"backbone_weights": "b.safetensors", "backbone": "atto"}
    assert choose(**start, epochs=4).config.freeze_backbone_epochs == 0
    assert choose(**start, minutes=1.0).config.freeze_backbone_epochs == 0
    assert choose(**start, minutes=60.0).config.freeze_backbone_epochs == 1
    assert choose(**start, minutes=60.0, machine=GPU).config.freeze_backbone_epochs == 0  # of how many is not known
    assert choose(**start, epochs=40).config.freeze_backbone_epochs == 1
