"""Starting from a detector: how the recipe depends on the classes that it knows, and what stays unchanged."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nextdetr.config import TrainConfig
from nextdetr.data.sources import load_data
from nextdetr.engine.fine_tune import (
    backbone_source,
    has_own_backbone,
    plan_fine_tuning,
    trained_before,
    with_model_of_weights,
)
from nextdetr.engine.freezing import Freezing, first_stages, unread_parts
from nextdetr.engine.model_facts import gflop_of, with_image_size
from nextdetr.engine.optim import build_optimizer
from nextdetr.engine.setup import fill_in, resolve_config
from nextdetr.engine.train import train
from nextdetr.errors import ConfigError
from nextdetr.losses.criterion import Criterion
from nextdetr.losses.matcher import HungarianMatcher
from nextdetr.models.graph import build_model, build_skeleton, load_model_file, parse_model_text
from nextdetr.models.summary import count_gflop
from nextdetr.weights.checkpoint import read_detector_metadata, save_detector
from nextdetr.weights.convert import save_backbone
from nextdetr.weights.layouts.table import Identity
from nextdetr.weights.reader import WeightsFile
from tests.engine.test_recipe import CELLS, GPU, LAPTOP, MODELS, choose_recipe
from tests.helpers import TINY_MODEL, squares
from tests.losses.samples import random_targets

ATTO = {"depths": (2, 2, 6, 2), "dims": (40, 80, 160, 320)}


def identity(classes, model="nextdetr-atto", size=ATTO, **values):
    return Identity("nextdetr-detector", model, classes, **size, **values)


def recipe(plan, data=CELLS, **settings):
    config = TrainConfig(data="cells", weights="w.safetensors", **settings)
    return choose_recipe(config, data, LAPTOP, models=MODELS, tuning=plan)


def test_other_classes_learn_at_the_rate_of_a_new_detector():
    plan = plan_fine_tuning(CELLS.classes, identity(["wbc", "car"]), "nextdetr-atto")
    assert plan.reason.startswith("start: 1 of 3 classes carried over by name (WBC); the others learn at the rate of")
    chosen = recipe(plan, model="nextdetr-atto")
    config = chosen.config
    assert (config.learning_rate, config.backbone_rate_factor, config.freeze_norms) == (8e-4, 1.0, False)
    assert (config.epochs, config.image_size, config.freeze_backbone_epochs) == (49, None, 0)
    assert chosen.text.count("start: ") == 1
    assert "--backbone-rate-factor 1: " in chosen.text
    given = {"learning_rate": 1e-5, "backbone_rate_factor": 0.3, "epochs": 7, "freeze_norms": True}
    kept = recipe(plan, model="nextdetr-atto", **given)
    assert {name: getattr(kept.config, name) for name in given} == given
    # A checkpoint as the model learns at the rate of the shipped model that it is.
    assert recipe(plan, model="best.safetensors").config.learning_rate == 8e-4


def test_muon_learns_new_classes_and_adamw_adapts_to_known_ones():
    new, known = (
        plan_fine_tuning(CELLS.classes, identity(classes, "nextdetr-zepto"), "nextdetr-zepto")
        for classes in (["car"], CELLS.classes)
    )
    for plan, model, optimizer, rate in (
        (new, "nextdetr-zepto", "muon", 1.6e-3), (known, "nextdetr-zepto", "adamw", 1e-4),
        (new, "best.safetensors", "muon", 1.6e-3), (new, "own.yaml", "muon", 1.6e-3),
        (new, "nextdetr-zepto-p2", "adamw", 8e-4), (new, "nextdetr-pico", "adamw", 4e-4),  # another model than the weights'
        (plan_fine_tuning(CELLS.classes, identity(["car"]), "nextdetr-zepto"), "nextdetr-zepto", "muon", 1.6e-3),
    ):  # fmt: skip
        config = recipe(plan, model=model).config
        assert (config.optimizer, config.learning_rate) == (optimizer, rate)
    other = choose_recipe(
        TrainConfig(data="cells", weights="w.safetensors", backbone_weights="b.pt"), CELLS, LAPTOP, models=MODELS,
        tuning=plan_fine_tuning(CELLS.classes, identity(["car"], "nextdetr-zepto"), "nextdetr-zepto", own_backbone=False),
    ).config  # fmt: skip
    assert (other.model, other.optimizer, other.backbone_rate_factor) == ("nextdetr-zepto", "adamw", 0.1)


def test_the_weights_bring_their_model():
    plan = plan_fine_tuning(CELLS.classes, identity(["wbc"], "nextdetr-zepto"), "nextdetr-atto")
    chosen = recipe(plan)
    assert chosen.config.model == "nextdetr-zepto"
    assert "--model nextdetr-zepto: the one of these weights" in chosen.text
    assert recipe(plan, model="nextdetr-pico").config.model == "nextdetr-pico"
    assert recipe(plan_fine_tuning(CELLS.classes, identity(["wbc"], None), "nextdetr-atto")).config.model == "nextdetr-atto"
    config = TrainConfig(data="cells", weights="w.safetensors", backbone_weights="b.safetensors")
    both = choose_recipe(config, CELLS, LAPTOP, models=MODELS, backbone="pico", tuning=plan)
    assert both.config.model == "nextdetr-pico"


def test_a_detector_of_the_same_classes_is_treated_gently():
    plan = plan_fine_tuning(CELLS.classes, identity(["car", "rbc", "WBC", "plate-lets"]), "nextdetr-atto")
    assert plan.reason == "start: 3 of 3 classes carried over by name; a gentle rate"
    config = recipe(plan, model="nextdetr-atto").config
    assert (config.learning_rate, config.backbone_rate_factor, config.epochs) == (1e-4, 0.1, 24)
    unnamed = plan_fine_tuning(CELLS.classes, identity(None, num_classes=3), "nextdetr-atto")
    assert unnamed.knows_all
    assert "in their order, as the file does not name them" in unnamed.reason
    assert not plan_fine_tuning(CELLS.classes, identity(None, num_classes=80), "nextdetr-atto").knows_all
    other = plan_fine_tuning(CELLS.classes, identity(["rbc", "WBC", "Platelets"]), "nextdetr-atto", own_backbone=False)
    assert other.reason.endswith("; the backbone is another one, and learns at the rate of a new detector")
    config = recipe(other, model="nextdetr-atto").config
    assert (config.learning_rate, config.backbone_rate_factor, config.epochs) == (8e-4, 1.0, 49)


@pytest.mark.parametrize(
    ("model", "size", "factor", "norms"),
    [
        ("dfine-n", {}, 0.5, False), ("deim-l", {}, 0.05, True), ("deimv2-pico", {}, 0.5, False),
        ("rtdetr-r18vd", {}, 0.1, False), ("rtdetr-r50vd", {}, 0.1, True), ("nextdetr-atto", ATTO, 1.0, False),
        ("nextdetr-tiny", {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)}, 0.1, False), (None, ATTO, 1.0, False),
    ],
)  # fmt: skip
def test_backbones_learn_as_their_authors_have_it(model, size, factor, norms):
    plan = plan_fine_tuning(["cell"], identity(["car"], model, size), "model.yaml")
    assert (plan.backbone_factor, plan.freeze_norms) == (factor, norms)


def test_a_head_on_another_backbone_takes_none_of_its_old_ones_settings(tmp_path):
    """Neither frozen BatchNorms, which a ConvNeXt does not have, nor the low rate of a backbone that is trained."""
    weights = identity(["car"], "rtdetr-r50vd", {})
    given = {"data": "cells", "weights": "w.pth"}
    convnext, own = tmp_path / "convnext.yaml", tmp_path / "own.yaml"
    text = load_model_file("rtdetr-r50vd").text
    convnext.write_text(text.replace("resnetvd_50, []", "convnextv2_atto, ['atto.pt']"))
    own.write_text(text.replace("nc: 80", "nc: 3"))
    for model, more, same in (
        (str(convnext), {}, False), ("rtdetr-r101vd", {"allow_partial": True}, False), (str(own), {}, True),
        ("rtdetr-r50vd", {}, True), ("rtdetr-r50vd", {"backbone_weights": "b.pt"}, False),
    ):  # fmt: skip
        config = TrainConfig(**given, model=model, **more)
        assert has_own_backbone(config, weights) == same, (model, more)
        plan = plan_fine_tuning(CELLS.classes, weights, model, own_backbone=same)
        chosen = choose_recipe(config, CELLS, LAPTOP, models=MODELS, without_labels=True, tuning=plan).config
        assert (chosen.backbone_rate_factor, chosen.freeze_norms) == ((0.1, True) if same else (1.0, False))
    assert has_own_backbone(TrainConfig(**given), weights)  # the recipe takes their model
    unnamed = identity(["car"], None, model_text=text)  # of a model file, or a graft
    for model, same in ((str(own), True), ("rtdetr-r101vd", False)):
        assert has_own_backbone(TrainConfig(**given, model=model, allow_partial=True), unnamed) == same
    both = TrainConfig(**given, model=str(convnext), backbone_weights="b.pt")
    assert choose_recipe(both, CELLS, LAPTOP, models=MODELS, tuning=plan).config.backbone_rate_factor == 0.1  # with labels


def test_a_checkpoint_as_the_model_has_the_batch_and_size_of_its_network():
    """As it has if it is given as weights."""
    tiny = replace(CELLS, small_side=0.03)
    for network, known, settled in (
        ("nextdetr-zepto", identity(list(CELLS.classes), "nextdetr-zepto"), (16, None)),
        ("nextdetr-atto-p2", identity(["object"], "nextdetr-atto-p2", without_labels=True), (16, 320)),
    ):
        plan = plan_fine_tuning(CELLS.classes, known, network)
        for option in ("model", "weights"):
            config = TrainConfig(data="cells", **{option: "old.safetensors"})
            chosen = choose_recipe(config, tiny, GPU, models=MODELS, tuning=plan).config
            assert (chosen.batch_size, chosen.image_size) == settled, (network, option)


# The image size, and the time that it takes


def test_published_weights_train_at_the_size_of_the_data_on_a_processor():
    plan = plan_fine_tuning(CELLS.classes, identity(["car"], "dfine-n", {}), "dfine-n")
    plan = replace(plan, image_size=640, size_is_trained=False)

    def chosen(data=CELLS, machine=LAPTOP, **settings):
        config = TrainConfig(data="cells", weights="dfine-n-coco", model="dfine-n", **settings)
        return choose_recipe(config, data, machine, models=MODELS, tuning=plan, gflop=2.0)

    found = chosen()
    assert found.config.image_size == 320
    assert (
        "--image-size 320: nine boxes in ten are 47 px or larger at this size; an image of the weights' 640 px would take "
        "4 times as long on a processor" in found.text
    )
    assert "--epochs 49: 10,045 images shown in all, some 16 minutes" in found.text
    small = chosen(replace(CELLS, small_side=0.001, longest_side=4000))
    assert small.config.image_size is None  # that of the weights
    assert "some 65 minutes" in small.text
    assert chosen(machine=GPU).config.image_size is None
    assert chosen(image_size=480).config.image_size == 480
    assert "some 36 minutes" in chosen(image_size=480).text
    assert chosen(replace(CELLS, images=20_000)).config.minutes == 180


def test_the_size_of_our_own_weights_stays_and_is_that_of_the_estimates():
    plan = replace(plan_fine_tuning(CELLS.classes, identity(["wbc"], "nextdetr-zepto"), "best.safetensors"), image_size=320)
    large = ((4000, 3000),) * 205  # 1.3 GB shrunk to 1,280 px, a quarter of it to 640 px
    for settings in ({}, {"model": "best.safetensors"}):
        found = recipe(plan, replace(CELLS, most_boxes=150, extents=large), cache_gigabytes=1.0, **settings)
        assert found.config.image_size is None
        assert "--epochs 49: 10,045 images shown in all, some 9 minutes" in found.text
        assert "shrunk to a shorter side of 640 px" in found.text
        assert "an image has 150 boxes, and the model 100 queries" in found.text
        assert recipe(plan, replace(CELLS, images=5000), **settings).config.minutes is None  # 107 minutes


def test_the_size_is_that_of_the_weights_training_or_of_the_model_file():
    tuning = plan_fine_tuning(["cell"], identity(["car"], "deimv2-atto", {}), "nextdetr-atto")

    def size(metadata, kind="deimv2", **settings):
        file = WeightsFile(Path("w.safetensors"), "safetensors", {}, metadata)
        found = with_image_size(tuning, file, Identity(kind, "deimv2-atto"), TrainConfig(**settings))
        return found.image_size, found.size_is_trained

    assert size({"image_size": "416"}, "nextdetr-detector") == (416, True)
    assert size({"image_size": "416"}) == size({}) == size({}, "nextdetr-detector") == (320, False)
    assert size({}, model="nextdetr-atto") == (640, False)


@pytest.mark.parametrize("name", ["dfine-n", "deimv2-atto", "rtdetr-r18vd"])
def test_a_model_without_a_measured_cost_has_one_by_gflop(name):
    assert gflop_of(TrainConfig(model=name), LAPTOP, None) == pytest.approx(count_gflop(build_model(name), 320), rel=1e-3)
    assert gflop_of(TrainConfig(model=name), GPU, None) is None
    weights = plan_fine_tuning(["cell"], identity(["car"], "nextdetr-zepto"), "nextdetr-atto")
    assert gflop_of(TrainConfig(), LAPTOP, weights) is None


# What stays as it is


@pytest.mark.parametrize(
    ("name", "stages"), [("nextdetr-zepto", 4), ("rtdetr-r18vd", 4), ("dfine-n", 4), ("deimv2-atto", 3)]
)
def test_stages_are_in_order_and_all_there_are(name, stages):
    model = build_model(name, num_classes=1)
    backbone = list(model.rows[: model.backbone_rows].parameters())
    counts = [sum(p.numel() for part in first_stages(model, n) for p in part.parameters()) for n in range(1, stages + 1)]
    assert counts == sorted(set(counts))
    norm = sum(p.numel() for p in getattr(model.backbone, "norm", torch.nn.Identity()).parameters())
    assert counts[-1] + norm == sum(p.numel() for p in backbone)
    with pytest.raises(ConfigError, match=f"--freeze-stages {stages + 1}: the backbone has {stages} stages"):
        first_stages(model, stages + 1)


def test_frozen_norms_and_stages_get_no_gradient_and_keep_their_statistics():
    model = build_model("deimv2-atto", num_classes=1)
    config = TrainConfig(freeze_norms=True, freeze_stages=1, freeze_backbone_epochs=1)
    freezing = Freezing(model, config)
    optimizer = build_optimizer(model, learning_rate=1e-3, weight_decay=0, backbone_factor=1.0)
    learning = {id(p) for group in optimizer.param_groups for p in group["params"]}
    backbone = model.rows[: model.backbone_rows]
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    for epoch in (0, 1):
        freezing.begin(epoch)
        model.train()
        freezing.hold_statistics(epoch)
        sum(found.square().mean() for found in model.decoder_inputs(torch.rand(2, 3, 64, 64))).backward()
        assert any(p.grad is not None for p in backbone.parameters()) is (epoch == 1)
    optimizer.step()
    parts = {name for name, module in backbone.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    after = backbone.state_dict()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved
    assert not [name for name in moved if name.rpartition(".")[0] in parts or name.startswith(("0.", "1."))]
    assert all((id(p) in learning) == p.requires_grad for p in model.parameters())
    with pytest.raises(ConfigError, match="has no BatchNorm"):
        Freezing(build_model("nextdetr-zepto", num_classes=1), config)


def test_a_run_carries_classes_over_and_keeps_its_first_stages(tmp_path, capsys):
    torch.manual_seed(1)
    old = build_model(parse_model_text(TINY_MODEL, "old"), num_classes=3)
    names = ["car", "Square", "dog"]
    file = save_detector(
        tmp_path / "old.safetensors", old.state_dict(), model_text=TINY_MODEL, classes=names, image_size=64
    )
    config = TrainConfig(
        data=str(squares(tmp_path / "data")), model=str(file), epochs=1, batch_size=3, workers=0, freeze_stages=2,
        learning_rate=1e-9, output=tmp_path / "run", device="cpu", val_every=1,
    )  # fmt: skip
    result = train(config)
    told = capsys.readouterr().err
    assert "start: 1 of 2 classes carried over by name (square); the others learn at the rate of a new detector" in told
    before, after = load_file(file), load_file(result.checkpoint)
    for name in ("rows.0.downsample_layers.1.1.weight", "rows.0.stages.1.0.dwconv.weight"):
        assert torch.equal(after[name], before[name])
    assert not torch.equal(after["rows.0.stages.2.0.dwconv.weight"], before["rows.0.stages.2.0.dwconv.weight"])
    for name in ("enc_score_head.weight", "dec_score_head.1.bias", "denoising_class_embed.weight"):
        torch.testing.assert_close(after[f"rows.3.{name}"][0], before[f"rows.3.{name}"][1], atol=1e-6, rtol=0)
    torch.testing.assert_close(after["rows.3.enc_score_head.bias"][1], torch.tensor(-4.59512), atol=1e-4, rtol=0)
    with (tmp_path / "run" / "metrics.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 1


def test_the_folder_of_a_run_is_trained_like_the_checkpoint_in_it(tmp_path):
    model, data = build_model(parse_model_text(TINY_MODEL, "old"), num_classes=2), squares(tmp_path / "data")
    (tmp_path / "run").mkdir()
    file = save_detector(
        tmp_path / "run" / "best.safetensors", model.state_dict(), model_text=TINY_MODEL, classes=["square", "bar"],
        image_size=64,
    )  # fmt: skip
    found = []
    for given in (file, file.parent):
        told = []
        config = resolve_config(TrainConfig(data=str(data), model=str(given)))
        found.append((fill_in(config, load_data(str(data), "train"), LAPTOP, told.append), told))
    assert found[0] == found[1]
    config, told = found[1]
    assert "start: 2 of 2 classes carried over by name; a gentle rate" in told[0]
    assert (config.learning_rate, config.image_size, config.mosaic) == (1e-4, None, 0.0)


def test_weights_with_a_model_of_their_own_bring_it(tmp_path):
    """As of a training with a model file, or a graft: no shipped model fits them."""
    torch.manual_seed(1)
    model, data = build_model(parse_model_text(TINY_MODEL, "old"), num_classes=2), str(squares(tmp_path / "data"))
    (tmp_path / "old").mkdir()
    file = save_detector(
        tmp_path / "old" / "best.safetensors", model.state_dict(), model_text=TINY_MODEL, classes=["square", "bar"],
        image_size=64,
    )  # fmt: skip
    for given in (file, file.parent):
        config = resolve_config(TrainConfig(data=data, weights=given))
        assert (config.model, config.weights) == (str(file), None)
    for more in ({"model": "nextdetr-atto"}, {"backbone_weights": "pico.pt"}):
        assert with_model_of_weights(TrainConfig(data=data, weights=file, **more)).weights == file
    result = train(
        TrainConfig(
            data=data, weights=file, epochs=1, batch_size=3, workers=0, learning_rate=1e-9, output=tmp_path / "run",
            device="cpu",
        ),
        quiet=True,
    )  # fmt: skip
    before, after = load_file(file), load_file(result.checkpoint)
    assert after.keys() == before.keys()
    assert read_detector_metadata(result.checkpoint)["source_weights"] == str(file)


def test_weights_that_a_model_file_names_are_backbone_weights(tmp_path):
    """They learn as with --backbone-weights: slowly if they were trained with labels, with a head of other weights too."""
    data, model = str(squares(tmp_path / "data")), tmp_path / "own.yaml"
    text = TINY_MODEL.replace("convnextv2_atto, []", "convnextv2_atto, [atto.safetensors]")
    model.write_text(text)
    state = build_model(parse_model_text(TINY_MODEL, "tiny")).backbone.state_dict()

    def chosen(pretraining, **more):
        save_backbone(
            tmp_path / "atto.safetensors", state, weights_licence="MIT", source_weights="x", pretraining=pretraining
        )
        config = resolve_config(TrainConfig(data=data, model=str(model), **more))
        config = fill_in(config, load_data(data, "train"), LAPTOP, lambda line: None)
        return config.backbone_rate_factor, config.freeze_backbone_epochs

    assert chosen("unknown") == (0.1, 1)
    assert chosen("fcmae") == (1.0, 0)
    torch.manual_seed(1)
    old = build_model(parse_model_text(TINY_MODEL, "old"), num_classes=2)
    weights = save_detector(
        tmp_path / "old.safetensors", old.state_dict(), model_text=TINY_MODEL, classes=["square", "bar"], image_size=64
    )
    assert chosen("fcmae", weights=weights)[0] == 1.0  # the head alone is that of the detector
    config = TrainConfig(data=data, model=str(model))
    assert backbone_source(config) == tmp_path / "atto.safetensors"
    (tmp_path / "atto.safetensors").unlink()
    assert backbone_source(config) is None
    assert trained_before(TrainConfig(data=data, model=str(model)), tmp_path / "last.safetensors") == frozenset()
    save_detector(
        tmp_path / "atto.safetensors", old.state_dict(), model_text=TINY_MODEL, classes=["square", "bar"], image_size=64
    )
    assert trained_before(config, tmp_path / "last.safetensors") is None  # a detector that does not say on what


@pytest.mark.parametrize("name", ["nextdetr-atto-p2", "rtdetr-r18vd", "rtdetr-l", "dfine-n", "deimv2-pico"])
def test_the_decoder_depends_on_all_of_a_shipped_model(name):
    assert unread_parts(build_skeleton(name)) == []


@pytest.mark.parametrize("backbone", ["convnextv2_atto", "resnetvd_18"])
def test_what_the_decoder_does_not_depend_on_is_what_gets_no_gradient(backbone):
    text = TINY_MODEL.replace("convnextv2_atto", backbone).replace("[[6, 5],", "[[6],")
    model = build_model(parse_model_text(text, "no stride 32"), num_classes=2).train()
    parts, row = unread_parts(model), model.backbone
    last = row.res_layers[3] if backbone == "resnetvd_18" else row.stages[3]
    assert parts[0] is model.rows[1]
    assert parts[-1] is last
    targets = random_targets([2, 1], 2)
    losses = Criterion(2, HungarianMatcher())(model(torch.rand(2, 3, 64, 64), targets), targets)
    torch.stack(list(losses.values())).sum().backward()
    without = {id(parameter) for parameter in model.parameters() if parameter.grad is None}
    assert without == {id(parameter) for part in parts for parameter in part.parameters()}
