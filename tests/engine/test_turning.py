"""The test whether images have an up, and what follows from it in a run."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from nextdetr.config import TrainConfig
from nextdetr.data.records import DetectionData, ImageRecord
from nextdetr.engine import train as train_module
from nextdetr.engine.train import Trainer, train
from nextdetr.engine.turning import TurnTest
from tests.helpers import interrupt_training, squares, tiny_model

EITHER_WAY = {1: 0.4, 3: 0.38, 4: 0.37, 6: 0.39, 8: 0.37}  # AP by EXIF orientation


def split(images: int = 3) -> DetectionData:
    no = np.zeros(0, np.float32)
    records = [
        ImageRecord(None, n, 40, 20, no.reshape(0, 4), no.astype(np.int64), no.astype(bool), no) for n in range(images)
    ]
    return DetectionData("cells", "val", ["cell"], [0], records, [])


def asked(scores, *, progress=(0.3,), images=3, **settings):
    """The test after validations at these shares of a run, the number of scored images, and the lines for the user."""
    lines, seen = [], []

    def score(data):
        seen.append(len(data.records))
        return scores[data.reading.orientation]

    turns = TurnTest(TrainConfig(data="cells", auto_turn=True, **settings), score, lines.append)
    for share in progress:
        turns.ask(split(images), share)
    return turns, seen, lines


def test_objects_found_either_way_are_turned_from_then_on():
    turns, seen, lines = asked(EITHER_WAY, progress=(0.3, 0.4))
    assert turns.answer == {"flip_vertical": True, "rotate90": True}
    assert len(seen) == 5, "it is asked once"
    assert len(lines) == 1
    assert "upside down 0.3700, on their side 0.3700" in lines[0]
    config = turns.settings(TrainConfig(data="cells", auto_turn=True))
    assert (config.flip_vertical, config.rotate90) == (True, True)


@pytest.mark.parametrize(
    ("scores", "answer"),
    [
        (EITHER_WAY | {3: 0.1}, {"flip_vertical": False, "rotate90": False}),
        (EITHER_WAY | {6: 0.1}, {"flip_vertical": True, "rotate90": False}),
        (EITHER_WAY | {3: None, 4: None}, {"flip_vertical": False, "rotate90": False}),
    ],
)
def test_only_what_the_detector_finds_is_added(scores, answer):
    turns, _, lines = asked(scores)
    assert turns.answer == answer
    config = turns.settings(TrainConfig(data="cells", auto_turn=True))
    assert {name: getattr(config, name) for name in answer} == answer
    assert ("stay upright" in lines[0]) is not answer["flip_vertical"]


def test_what_the_user_switched_on_stays_on():
    turns, *_ = asked(EITHER_WAY | {3: 0.0})
    assert turns.settings(TrainConfig(data="cells", flip_vertical=True)).flip_vertical


@pytest.mark.parametrize(("scores", "progress"), [(EITHER_WAY, 0.1), (EITHER_WAY, 0.7), ({1: 0.04}, 0.3), ({1: None}, 0.3)])
def test_it_waits_until_it_can_tell_and_gives_up_late(scores, progress):
    turns, _, lines = asked(scores, progress=(progress,))
    assert turns.answer == {}
    assert lines == []
    config = TrainConfig(data="cells", auto_turn=True)
    assert turns.settings(config) == config


def test_a_large_val_is_sampled():
    _, seen, _ = asked(EITHER_WAY, images=120)
    assert seen == [40] * 5


def test_without_the_setting_it_is_not_asked():
    lines: list[str] = []
    turns = TurnTest(TrainConfig(data="cells"), lambda data: 0.5, lines.append)
    turns.ask(split(), 0.3)
    assert (turns.answer, lines) == ({}, [])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Four epochs of three batches whose detector finds everything either way, and the transforms of its loaders."""
    monkeypatch.setattr(train_module, "draw_curves", lambda *arguments: None)
    scored = SimpleNamespace(metrics={"AP": 0.5, "AP50": 0.5}, per_class={})
    monkeypatch.setattr(Trainer, "_score", lambda self, data: {"AP": 0.5, "AP50": 0.5})
    monkeypatch.setattr(Trainer, "_examine", lambda self, data: (None, scored))
    shown, build, step = [], Trainer.build_loader, Trainer.step

    def built(self, fabric):
        loader = build(self, fabric)
        loader.turned = self.config.rotate90
        return loader

    def noted(self, batch, progress, last):
        shown.append((self.cursor.epoch, self.loader.turned))
        return step(self, batch, progress, last)

    monkeypatch.setattr(Trainer, "build_loader", built)
    monkeypatch.setattr(Trainer, "step", noted)
    settings = {
        "data": str(squares(tmp_path / "squares")), "model": str(tiny_model(tmp_path)), "epochs": 4, "image_size": 64,
        "batch_size": 2, "workers": 0, "val_every": 1, "output": tmp_path / "run", "report": False,
    }  # fmt: skip
    return settings, shown


def test_a_run_turns_images_from_the_next_epoch_on(run):
    settings, shown = run
    train(TrainConfig(**settings | {"workers": 1}), quiet=True)  # below 100 images the recipe asks for the test
    assert sorted(set(shown)) == [(0, False), (1, True), (2, True), (3, True)]


def test_a_resumed_run_keeps_the_answer(run, monkeypatch):
    settings, shown = run
    interrupt_training(settings, 5)
    shown.clear()
    monkeypatch.setattr(TurnTest, "ask", lambda self, data, progress: None)
    built, build = [], Trainer.build_loader
    monkeypatch.setattr(Trainer, "build_loader", lambda *given: built.append(given) or build(*given))
    train(TrainConfig(resume=settings["output"]), quiet=True)
    assert set(shown) == {(1, True), (2, True), (3, True)}
    assert len(built) == 1  # which may read all images into memory


def test_a_run_that_was_told_not_to_stays_upright(run):
    settings, shown = run
    train(TrainConfig(**settings, auto_turn=False), quiet=True)
    assert not any(turned for _, turned in shown)


def test_unlabelled_images_still_join_after_the_change(run, tmp_path, monkeypatch):
    settings, _ = run
    more = squares(tmp_path / "more", images=4, size=80) / "images" / "train"
    joined, step = [], Trainer.step

    def noted(self, batch, progress, last):
        joined.append((self.cursor.epoch, self.loader.turned, max(batch.indices) >= len(self.run_.train_data.records)))
        return step(self, batch, progress, last)

    monkeypatch.setattr(Trainer, "step", noted)
    given = {"unlabelled": (str(more),), "unlabelled_from": 0.5, "unlabelled_batch": 1, "batch_size": 3}
    train(TrainConfig(**settings | given), quiet=True)
    assert {turned for epoch, turned, _ in joined if epoch} == {True}
    assert {late for epoch, _, late in joined if epoch < 2} == {False}
    assert {late for epoch, _, late in joined if epoch >= 2} == {True}
