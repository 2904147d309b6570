"""A run with unlabelled images: when they join, what is written, resuming, and the guard."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from nextdetr import Detector
from nextdetr.cli.main import main
from nextdetr.config import TrainConfig
from nextdetr.config_file import read_config_file
from nextdetr.engine import guard as guard_module
from nextdetr.engine.fine_tune import plan_fine_tuning
from nextdetr.engine.guard import Guard
from nextdetr.engine.recipe_plan import Recipe
from nextdetr.engine.semi_recipe import with_unlabelled
from nextdetr.engine.train import Trainer, train
from nextdetr.errors import ConfigError
from nextdetr.losses.criterion import Criterion
from nextdetr.weights.checkpoint import read_detector_metadata, read_metrics
from tests.helpers import interrupt_training, squares

from .test_fine_tune import identity
from .test_recipe import CELLS, LAPTOP, MODELS, choose_recipe
from .test_teacher import checkpoint


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("semi")
    squares(folder / "data", 8)
    squares(folder / "more", 9, size=80)
    checkpoint(folder / "start.safetensors")
    return folder


@pytest.fixture(autouse=True, scope="module")
def _alike():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nextdetr.data.near_copies.COPY", 2.0)  # these pictures are all alike
        yield


def settings_in(given, output):
    return {
        "data": str(given / "data"), "model": str(given / "start.safetensors"),
        "unlabelled": (str(given / "more" / "images" / "val"),),
        "epochs": 3, "image_size": 64, "batch_size": 4, "workers": 0, "val_every": 1, "unlabelled_from": 0.3,
        "unlabelled_batch": 2, "output": output,
    }  # fmt: skip


@pytest.fixture
def settings(given, tmp_path):
    return settings_in(given, tmp_path / "run")


@pytest.fixture(scope="module")
def whole(given):
    """A run that nothing interrupts: two batches an epoch, of which the third is the first with unlabelled images."""
    train(TrainConfig(**settings_in(given, given / "whole")), quiet=True)
    return given / "whole"


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def test_unlabelled_images_join_and_are_learnt_from(whole):
    found = rows(whole)
    terms = ["loss_unlabelled_class", "loss_unlabelled_l1", "loss_unlabelled_giou", "loss_unlabelled_edges", "pseudo_boxes"]
    assert [name for name in found[0] if "unlabelled" in name or name == "pseudo_boxes"] == terms
    assert [float(found[0][name]) for name in terms] == [0] * 5
    assert all(sum(float(row[name]) for row in found[1:]) > 0 for name in terms)
    for row in found[1:]:
        # Queries that find nothing have a class, and the last layer's edges to learn from; the others need a pseudo-box,
        # which an epoch of four unlabelled images may lack.
        assert float(row["loss_unlabelled_class"]) > 0 < float(row["loss_unlabelled_edges"])
        assert {float(row[name]) > 0 for name in ("loss_unlabelled_l1", "loss_unlabelled_giou")} == {
            float(row["pseudo_boxes"]) > 0
        }
    assert (whole / "pictures" / "pseudo_boxes.jpg").is_file()
    assert not (whole / "guard.ckpt").exists()  # a run that is over has no use for it


def test_until_they_join_a_run_is_the_one_without_them(whole, settings):
    plain = {name: value for name, value in settings.items() if not name.startswith("unlabelled")}
    interrupt_training(plain, 3)
    with_them, without = rows(whole)[0], rows(settings["output"])[0]
    assert {name: value for name, value in with_them.items() if name in without} == without


def test_a_resumed_run_equals_the_uninterrupted_one(whole, settings, monkeypatch):
    interrupt_training(settings, 5)
    stored = read_config_file(settings["output"] / "config.yaml")
    assert list(stored["unlabelled"]) == list(settings["unlabelled"])
    train(TrainConfig(resume=settings["output"]), quiet=True)
    one, two = (torch.load(run / "last.ckpt", weights_only=True) for run in (whole, settings["output"]))
    for part in ("model", "ema", "unlabelled"):
        torch.testing.assert_close(one[part], two[part], rtol=0, atol=0)
    assert rows(whole) == rows(settings["output"])


def test_a_run_gets_no_unlabelled_images_on_resume(settings, monkeypatch):
    plain = {name: value for name, value in settings.items() if not name.startswith("unlabelled")}
    interrupt_training(plain, 1)
    with pytest.raises(ConfigError, match="has no unlabelled images; leave --unlabelled out"):
        train(TrainConfig(resume=settings["output"], unlabelled=settings["unlabelled"]), quiet=True)
    with pytest.raises(ConfigError, match="leave out --unlabelled-weight, or start a new run"):
        train(TrainConfig(resume=settings["output"], unlabelled_weight=0.5), quiet=True)


def test_a_run_that_gets_worse_goes_back_and_on_without_them(settings, monkeypatch, capsys):
    """The AP that the run is told: after an epoch, when the images join, and then after each epoch."""
    scores = iter([0.3, 0.5, 0.4, 0.4, 0.4, *[0.45] * 20])
    monkeypatch.setattr(Trainer, "_score", lambda self, data: {"AP": next(scores), "AP50": 0.5})
    kept, looked = {}, []
    keep = Guard._keep

    def keeping(self):
        keep(self)
        kept.update({name: value.clone() for name, value in self.loop.network.state_dict().items()})

    after = Guard._return

    def returning(self, score):
        after(self, score)
        assert all(torch.equal(value, kept[name]) for name, value in self.loop.network.state_dict().items())
        looked.append(self.loop.cursor.epoch + 1)

    monkeypatch.setattr(Guard, "_keep", keeping)
    monkeypatch.setattr(Guard, "_return", returning)
    train(TrainConfig(**settings | {"epochs": 6, "unlabelled_from": 1 / 6, "val_every": 1}))
    assert looked == [4]
    told = capsys.readouterr().err
    assert "AP on val has been below 0.5000 for 3 validations (now 0.4000): the run goes back to its best state" in told
    lost = [float(row["loss_unlabelled_class"]) for row in rows(settings["output"])]
    assert lost[0] == 0
    assert min(lost[1:4]) > 0
    assert lost[4:] == [0, 0]


def test_a_run_that_ends_as_it_goes_back_has_its_best_state_as_the_best_weights(settings, monkeypatch):
    """The best AP is that at which the images join, inside an epoch; the validations after it rise, but stay below."""
    scores = iter([0.3, 0.5, 0.4, 0.41, 0.42, *[0.45] * 20])
    monkeypatch.setattr(Trainer, "_score", lambda self, data: {"AP": next(scores), "AP50": 0.5})
    kept, keep = {}, Guard._keep

    def keeping(self):
        keep(self)
        kept.update({name: value.clone() for name, value in self.loop.ema.module.state_dict().items()})

    monkeypatch.setattr(Guard, "_keep", keeping)
    result = train(TrainConfig(**settings | {"epochs": 4, "unlabelled_from": 1 / 4, "report": False}), quiet=True)
    assert result.best == {"epoch": 4, "metrics": {"AP": 0.5, "AP50": 0.5}}
    assert [float(row["AP"]) for row in rows(settings["output"])] == [0.3, 0.4, 0.41, 0.42]
    for name in ("best", "last"):
        file = settings["output"] / f"{name}.safetensors"
        assert read_metrics(read_detector_metadata(file)) == {"AP": 0.5, "AP50": 0.5}
        found = load_file(file)
        assert found.keys() == kept.keys()
        assert all(torch.equal(found[tensor], value) for tensor, value in kept.items())


def test_a_finished_run_that_goes_on_is_guarded_again(settings, monkeypatch, capsys):
    train(TrainConfig(**settings), quiet=True)
    assert not (settings["output"] / "guard.ckpt").exists()
    scores = iter([0.5, *[0.1] * 20])
    monkeypatch.setattr(Trainer, "_score", lambda self, data: {"AP": next(scores), "AP50": 0.5})
    result = train(TrainConfig(resume=settings["output"], epochs=6))
    assert "the run goes back to its best state and continues without the unlabelled images" in capsys.readouterr().err
    assert result.best == {"epoch": 6, "metrics": {"AP": 0.5, "AP50": 0.5}}


def judged(guard, score, share=0.1):
    guard.loop.progress += share
    return guard.judge(score)


def test_the_guard_bears_what_validations_differ_by_anyway(monkeypatch):
    monkeypatch.setattr(Guard, "_keep", lambda self: None)
    monkeypatch.setattr(Guard, "_return", lambda self, score: None)
    told = []
    guard = Guard(SimpleNamespace(progress=0.0), told.append, 100)
    guard.begin(0.3)
    assert not any(judged(guard, score) for score in (0.29, 0.2, 0.2, 0.29, 0.2, 0.2, 0.35, 0.3, None, 0.3))
    assert guard.stale == 2
    assert judged(guard, 0.3)
    blind = Guard(SimpleNamespace(), told.append, 100)
    blind.begin(None)
    assert not any(blind.judge(score) for score in [0.0] * 5)
    assert told == ["val has no AP, so nothing guards this run: the unlabelled images may make it worse."]
    assert guard_module.PATIENCE == 3


def test_nine_images_cannot_blame_the_unlabelled_ones_for_what_labels_alone_also_do(monkeypatch):
    """The best of 20 labelled images, 0.460 of nine, was followed by 0.404 without any unlabelled image."""
    monkeypatch.setattr(Guard, "_keep", lambda self: None)
    monkeypatch.setattr(Guard, "_return", lambda self, score: None)
    guards = {images: Guard(SimpleNamespace(progress=0.0), print, images) for images in (9, 49, 50, 1000)}
    for guard in guards.values():
        guard.begin(0.460)
    assert not any(judged(guards[9], 0.404) for _ in range(8))
    assert [judged(guards[9], 0.38) for _ in range(3)] == [False, False, True]
    assert [judged(guards[49], score) for score in (0.435, 0.435, 0.435, 0.43, 0.43, 0.43)] == [False] * 5 + [True]
    for images in (50, 1000):
        assert [judged(guards[images], 0.435) for _ in range(3)] == [False, False, True]


def test_a_run_with_eight_images_of_val_goes_on_with_the_unlabelled_ones(settings, monkeypatch):
    scores = iter([0.3, 0.5, *[0.45] * 20])  # 0.05 less is no sign of harm
    monkeypatch.setattr(Trainer, "_score", lambda self, data: {"AP": next(scores), "AP50": 0.5})
    train(TrainConfig(**settings | {"epochs": 6, "unlabelled_from": 1 / 6, "report": False}), quiet=True)
    assert min(float(row["loss_unlabelled_class"]) for row in rows(settings["output"])[1:]) > 0


def test_a_low_ap_must_last_before_the_run_goes_back(monkeypatch):
    """A few images are scored every few steps: three low scores in a row may be two percent of the run."""
    monkeypatch.setattr(Guard, "_keep", lambda self: None)
    monkeypatch.setattr(Guard, "_return", lambda self, score: None)
    guard = Guard(SimpleNamespace(progress=0.6), print, 100)
    guard.begin(0.5)
    assert not any(judged(guard, 0.4, 0.01) for _ in range(5))
    resumed = Guard(SimpleNamespace(progress=guard.loop.progress), print, 100)
    resumed.load_state_dict(guard.state_dict())
    assert judged(resumed, 0.4, 0.011)
    earlier = Guard(SimpleNamespace(progress=0.7), print, 100)
    earlier.load_state_dict({"best": 0.5, "stale": 2})
    assert judged(earlier, 0.4, 0.01)


def test_a_fixed_teacher_finds_the_boxes_from_the_first_step(settings, tmp_path):
    changed = {"teacher": checkpoint(tmp_path / "teacher.safetensors"), "unlabelled_from": None, "epochs": 1}
    train(TrainConfig(**settings | changed), quiet=True)
    row = rows(settings["output"])[0]
    assert float(row["pseudo_boxes"]) > 0
    assert float(row["loss_teacher_class"]) > 0


def test_a_teacher_of_weight_0_finds_boxes_and_no_more(settings, tmp_path, capsys):
    changed = {"teacher": checkpoint(tmp_path / "teacher.safetensors"), "unlabelled_from": None, "epochs": 1}
    silent = {"teacher_weight": 0.0, "teacher_maps": 0.0}
    train(TrainConfig(**settings | changed | silent))
    row = rows(settings["output"])[0]
    assert float(row["pseudo_boxes"]) > 0
    assert not [name for name in row if name.startswith("loss_teacher")]
    told = capsys.readouterr().err
    assert re.search(r"their boxes come from \S*teacher\.safetensors", " ".join(told.split()))
    assert "it looks at every image" not in told
    with pytest.raises(ValidationError, match="teaches nothing"):
        TrainConfig(data="photos", teacher=changed["teacher"], **silent)


def test_a_teacher_of_some_classes_teaches_these_alone(settings, tmp_path, monkeypatch, capsys):
    teacher = checkpoint(tmp_path / "teacher.safetensors", ("square",))
    changed = {"teacher": teacher, "unlabelled_from": None, "epochs": 1, "teacher_weight": 0.0, "teacher_maps": 0.0}
    known, losses = [], Criterion.__call__

    def called(self, output, targets, *, told=None):
        known.append(None if told is None else told.tolist())
        return losses(self, output, targets, told=told)

    monkeypatch.setattr(Criterion, "__call__", called)
    train(TrainConfig(**settings | changed))
    assert known == [None, [True, False]] * 2  # the labelled images of a step, then the others
    assert float(rows(settings["output"])[0]["pseudo_boxes"]) > 0
    told = " ".join(capsys.readouterr().err.split())
    assert re.search(r"come from \S*teacher\.safetensors; they teach nothing of bar, which it does not know\.", told)


def test_minutes_and_python(settings, given, capsys):
    """A share of a run in minutes; ``Detector.train`` takes a path or several."""
    options = {
        name: value for name, value in settings.items() if name not in ("epochs", "model", "data", "unlabelled_batch")
    }
    result = Detector(settings["model"]).train(
        settings["data"], **options | {"minutes": 0.08, "unlabelled": given / "more" / "images" / "val"}
    )
    told = capsys.readouterr().err
    assert "unlabelled: 9 images" in told
    assert (
        "Unlabelled images: 9, learnt from between 30% and 100% of the run; their boxes come from the averaged weights."
        in told
    )
    assert result.epochs >= 1
    assert read_config_file(settings["output"] / "config.yaml")["unlabelled_batch"] == 2


def test_where_every_image_has_labels_the_run_learns_from_these_alone(settings, given, capsys):
    train(TrainConfig(**settings | {"unlabelled": (str(given / "data" / "images" / "train"),), "epochs": 1}))
    told = capsys.readouterr().err
    assert "unlabelled: 0 images; 8 of 8 left out, as they or near copies are labelled: 8 in train" in told
    assert "No unlabelled image is left: the run learns from the labels alone." in told
    assert "pseudo_boxes" not in rows(settings["output"])[0]
    train(TrainConfig(resume=settings["output"], unlabelled=settings["unlabelled"], epochs=2))
    told = capsys.readouterr().err
    assert "The run learns from the labels alone, as no unlabelled image was left when it started." in told


def test_settings_without_folders_are_refused(settings, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--data", settings["data"], "--unlabelled-weight", "0.7"])
    assert ended.value.code == 2
    assert (
        "--unlabelled-weight is about unlabelled images: give their folders with --unlabelled too"
        in capsys.readouterr().err
    )


def test_what_the_recipe_chooses():
    def chosen(**given):
        config = TrainConfig(unlabelled=("more",), **given)
        recipe = Recipe(
            config.model_copy(update={"epochs": config.epochs or 300}), [], {"epochs": 300} if config.epochs is None else {}
        )
        return with_unlabelled(recipe, config, 20, 180).config

    config = chosen()
    assert (config.unlabelled_from, config.unlabelled_batch, config.epochs) == (0.6, 4, 750)  # 15,000 images of 20
    config = chosen(epochs=10, unlabelled_from=0.5, unlabelled_batch=2, teacher="t.safetensors")
    assert (config.unlabelled_from, config.unlabelled_batch, config.epochs) == (0.5, 2, 10)
    assert chosen(teacher="t.safetensors").unlabelled_from == 0
    assert chosen(unlabelled_until=0.5).unlabelled_from == 0.3
    for classes, join in (["a", "b"], 0.0), (["b"], 0.6):
        tuning = plan_fine_tuning(["a", "b"], identity(classes), "nextdetr-atto")
        config = TrainConfig(unlabelled=("more",))
        assert with_unlabelled(Recipe(config, [], {}), config, 20, 180, tuning).config.unlabelled_from == join
    other = plan_fine_tuning(["a"], identity(["a"]), "nextdetr-atto", own_backbone=False)  # which has yet to learn
    assert with_unlabelled(Recipe(config, [], {}), config, 20, 180, other).config.unlabelled_from == 0.6
    prepared = plan_fine_tuning(["a"], identity(["object"], without_labels=True), "nextdetr-atto")  # as from random weights
    config = TrainConfig(unlabelled=("more",), epochs=300)
    found = with_unlabelled(Recipe(config, [], {"epochs": 300}), TrainConfig(unlabelled=("more",)), 20, 180, prepared)
    assert found.config.epochs == 750
    plain = Recipe(TrainConfig(), [], {})
    assert with_unlabelled(plain, TrainConfig(), 20, 0) is plain


def test_what_takes_a_processor_too_long_gets_minutes():
    config = TrainConfig(data="cells", model="nextdetr-atto", unlabelled=("more",))
    recipe = choose_recipe(config, replace(CELLS, images=20, boxes=280), LAPTOP, models=MODELS)
    assert "--epochs 300: " in recipe.text
    chosen = with_unlabelled(recipe, config, 20, 180)
    assert (chosen.config.epochs, chosen.config.minutes) == (750, None)
    assert chosen.text.count("--epochs") == 1
    chosen = with_unlabelled(recipe, config, 20, 5000)
    assert (chosen.config.epochs, chosen.config.minutes) == (None, 180)
    assert "--epochs" not in chosen.text
    assert (
        "--minutes 180: 6,024 epochs, as many steps as 5,020 labelled images would have, would take some 5 hours on this"
        in chosen.text
    )


@pytest.mark.parametrize(("batch", "views", "more"), [(8, 8, ""), (1, None, ", and at least 2 of the latter")])
def test_a_step_keeps_labelled_images(batch, views, more):
    config = TrainConfig(unlabelled=("more",), batch_size=batch, unlabelled_batch=views)
    with pytest.raises(ConfigError, match=f"give --unlabelled-batch below --batch-size{more}."):
        with_unlabelled(Recipe(config, [], {}), config, 20, 180)
