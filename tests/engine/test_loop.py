"""The loop that training and pre-training share: when it saves, what it never saves, and how it stops."""

from __future__ import annotations

import csv
import json
import multiprocessing
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nextdetr.config import TrainConfig
from nextdetr.data.dataset import DetectionDataset
from nextdetr.engine import saving
from nextdetr.engine import train as train_module
from nextdetr.engine.detector_files import DetectorFiles
from nextdetr.engine.loop import Loop
from nextdetr.engine.reserve import Reserve
from nextdetr.engine.train import Trainer, train
from nextdetr.errors import DataError, Interrupted, TrainingError
from nextdetr.weights.checkpoint import open_model, read_detector_metadata, save_opened
from tests.helpers import interrupt_training, squares, stop_after, tiny_model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture
def settings(data, tmp_path):
    """Two epochs of three batches."""
    return {
        "data": str(data), "model": str(tiny_model(tmp_path)), "epochs": 2, "image_size": 64, "batch_size": 2, "workers": 0,
        "val_every": 1, "output": tmp_path / "run",
    }  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Replace scoring and curves, which are not tested here."""
    monkeypatch.setattr(train_module, "draw_curves", lambda *arguments: None)
    monkeypatch.setattr(Trainer, "_score", lambda self, data: {"AP": 0.1, "AP50": 0.2})


def state(folder):
    return torch.load(Path(folder) / "last.ckpt", weights_only=True)


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_no_worker_outlives_a_run_that_is_stopped(settings, monkeypatch):
    before = set(multiprocessing.active_children())
    with monkeypatch.context() as patch:
        stop_after(patch, Trainer, 2)
        with pytest.raises(Interrupted) as kept:  # as a notebook keeps it, and all that it refers to
            train(TrainConfig(**settings | {"workers": 1}), quiet=True)
        assert set(multiprocessing.active_children()) == before
    assert kept


def test_the_command_that_resumes_a_run_can_be_pasted(settings, tmp_path):
    folder = tmp_path / "my run"
    interrupt_training(
        settings | {"output": folder}, 1, match=re.escape(f"resume with: nextdetr train --resume '{folder}'")
    )


def test_all_processes_save_at_the_same_epochs(settings, monkeypatch):
    saved, save = {True: [], False: []}, Loop.save

    def noted(self):
        saved[self.main].append(self.cursor.step)
        save(self)

    monkeypatch.setattr(Loop, "save", noted)
    for main in (True, False):
        monkeypatch.setattr(Trainer, "main", main)
        output = settings["output"].with_name(f"run-{main}")
        train(TrainConfig(**settings | {"epochs": 4, "val_every": 2, "output": output}), quiet=True)
    assert saved == {True: [6, 12], False: [6, 12]}


class Killed(BaseException):
    """What no handler may catch, as SIGKILL."""


def test_it_saves_inside_epochs(settings, monkeypatch):
    monkeypatch.setattr(saving, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(saving, "SAVE_SHARE", 1e9)
    step, count = Trainer.step, 0

    def killed(self, *arguments):
        nonlocal count
        count += 1
        if count == 3:
            raise Killed
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(Killed):
        train(TrainConfig(**settings), quiet=True)
    cursor = state(settings["output"])["cursor"]
    assert (cursor["epoch"], cursor["place"], cursor["step"]) == (0, 4, 2)


def test_saving_takes_a_share_of_the_time_at_most(tmp_path):
    clock = SimpleNamespace(seconds=100.0)
    saver = saving.Saver(
        tmp_path / "last.ckpt",
        fabric=None,
        cursor=None,
        budget=clock,
        network=None,
        optimizer=None,
        ema=None,
        contract=None,
    )
    saver.seconds = 0.1
    clock.seconds = 159.0
    assert not saver.due
    clock.seconds = 161.0
    assert saver.due
    saver.seconds = 6.0  # a large model: every two minutes
    assert not saver.due


@pytest.mark.parametrize(("accumulate", "place", "step"), [(1, 4, 2), (2, 0, 0)])
def test_an_image_that_is_gone_leaves_a_checkpoint(settings, monkeypatch, accumulate, place, step):
    """It is missing from the third batch of the second epoch; a pair of batches is repeated as a whole."""
    sample = DetectionDataset.__getitem__
    shown = []

    def unplugged(self, key):
        shown.append(key)
        if key.epoch == 1 and len([k for k in shown if k.epoch == 1]) > (4 if accumulate == 1 else 2):
            raise DataError("3.png cannot be read")
        return sample(self, key)

    whole = settings["output"].with_name("whole")
    train(TrainConfig(**settings | {"accumulate": accumulate, "output": whole}), quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(DetectionDataset, "__getitem__", unplugged)
        with pytest.raises(DataError, match=r"3\.png"):
            train(TrainConfig(**settings | {"accumulate": accumulate}), quiet=True)
    cursor = state(settings["output"])["cursor"]
    before = 3 if accumulate == 1 else 2  # moves of the first epoch: a pair and a single one
    assert (cursor["epoch"], cursor["place"], cursor["step"]) == (1, place, before + step)
    train(TrainConfig(resume=settings["output"]), quiet=True)
    assert [row["step"] for row in rows(settings["output"])] == [row["step"] for row in rows(whole)]
    assert rows(settings["output"])[1]["learning_rate"] == rows(whole)[1]["learning_rate"]
    if accumulate == 1:  # a repeated pair has moved BatchNorm's statistics twice
        assert rows(settings["output"])[1]["loss"] == rows(whole)[1]["loss"]


def test_a_validation_that_fails_costs_nothing(settings, monkeypatch):
    """The epoch is saved when it ends, and scored when the run is resumed."""

    def gone(self, data):
        raise DataError("5.png cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_score", gone)
        with pytest.raises(DataError, match=r"5\.png"):
            train(TrainConfig(**settings), quiet=True)
    cursor = state(settings["output"])["cursor"]
    assert (cursor["epoch"], cursor["place"], cursor["step"]) == (0, 6, 3)
    monkeypatch.setattr(Trainer, "_score", lambda self, data: {"AP": 0.1, "AP50": 0.2})
    train(TrainConfig(resume=settings["output"]), quiet=True)
    assert [(row["step"], row["AP"]) for row in rows(settings["output"])] == [("3", "0.1"), ("6", "0.1")]


@pytest.mark.parametrize(("bad", "place"), [(float("nan"), 2), (float("inf"), 4)])
def test_weights_that_are_not_finite_are_never_saved(settings, monkeypatch, bad, place):
    """They become so in a step inside the second epoch, or in its last one, after a loss that was a number."""
    step = Trainer.step

    def poison(self, *arguments):
        values = step(self, *arguments)
        if (self.cursor.epoch, self.cursor.place) == (1, place):
            next(self.network.parameters()).data.view(-1)[3] = bad
        return values

    monkeypatch.setattr(saving, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(saving, "SAVE_SHARE", 1e9)
    monkeypatch.setattr(Trainer, "step", poison)
    folder = settings["output"]
    with pytest.raises(TrainingError, match=r"the weights rows\.\S+ are not finite\. Lower --learning-rate.*as it was"):
        train(TrainConfig(**settings), quiet=True)
    kept = state(folder)
    assert (kept["cursor"]["epoch"], kept["cursor"]["place"]) in {(1, 0), (1, 2), (1, 4)}
    assert all(bool(tensor.isfinite().all()) for part in (kept["model"], kept["ema"]["module"]) for tensor in part.values())
    assert kept["cursor"]["best"]["epoch"] == 1
    monkeypatch.undo()
    assert train(TrainConfig(resume=folder), quiet=True).epochs == 2


def test_a_run_stopped_at_its_very_last_step_is_validated_when_resumed(settings, monkeypatch):
    interrupt_training(settings, 6)
    assert len(rows(settings["output"])) == 1
    result = train(TrainConfig(resume=settings["output"]), quiet=True)
    assert result.epochs == 2
    assert [row["AP"] != "" for row in rows(settings["output"])] == [True, True]
    assert state(settings["output"])["cursor"]["validated"] == 2


def test_a_shorter_length_ends_a_run_with_a_validation(settings, monkeypatch):
    settings |= {"epochs": 9, "val_every": 9}
    interrupt_training(settings, 4)
    result = train(TrainConfig(resume=settings["output"], epochs=1), quiet=True)
    assert result.best["epoch"] in {1, 2}
    assert state(settings["output"])["cursor"]["validated"] == result.epochs


def test_time_that_is_up_between_two_epochs_ends_in_a_validation(settings, monkeypatch):
    """The epoch was not due for one when it ended; its row gets the scores."""
    del settings["epochs"]
    monkeypatch.setattr(Reserve, "expect", lambda self, score: None)
    end = Trainer.after_epoch

    def slow(self, number):
        end(self, number)
        if number == 2:
            self.budget.spent += 3600

    monkeypatch.setattr(Trainer, "after_epoch", slow)
    result = train(TrainConfig(**settings | {"minutes": 60.0, "val_every": 9}), quiet=True)
    assert result.epochs == result.best["epoch"] == 2
    assert [row["AP"] for row in rows(settings["output"])] == ["", "0.1"]


def test_best_file_and_state_are_one(settings, monkeypatch):
    """Killed after the state was written and before the best weights were; and with the best weights deleted."""
    folder = settings["output"]
    settings |= {"batch_size": 6}
    write = DetectorFiles.write

    def killed(self, name, metrics, *rest):
        if name == "best.safetensors" and metrics["AP"] == 0.2:  # of the second epoch
            raise Killed
        write(self, name, metrics, *rest)

    scores = iter([0.1, 0.2, 0.1, 0.2])
    monkeypatch.setattr(Trainer, "_score", lambda self, data: {"AP": next(scores), "AP50": 0.0})
    with monkeypatch.context() as patch:
        patch.setattr(DetectorFiles, "write", killed)
        with pytest.raises(Killed):
            train(TrainConfig(**settings), quiet=True)
    assert json.loads(read_detector_metadata(folder / "best.safetensors")["metrics"])["AP"] == 0.1
    assert state(folder)["cursor"]["best"]["epoch"] == 2
    result = train(TrainConfig(resume=folder, epochs=3), quiet=True)
    assert result.best["epoch"] == 2
    assert json.loads(read_detector_metadata(folder / "best.safetensors")["metrics"])["AP"] == 0.2
    (folder / "best.safetensors").unlink()
    result = train(TrainConfig(resume=folder, epochs=4), quiet=True)
    assert result.best["epoch"] == 4
    assert (folder / "best.safetensors").is_file()


def test_the_rate_does_not_jump_when_a_run_with_minutes_goes_on(settings, monkeypatch):
    """Checking the data takes long and counts towards the minutes; progress continues from its last value."""
    del settings["epochs"]
    settings["minutes"] = 60.0
    seen = []
    step = Trainer.step

    def watch(self, batch, progress, last):
        seen.append((progress, self.budget.seconds, self.budget.reserve))
        return step(self, batch, progress, last)

    monkeypatch.setattr(Trainer, "step", watch)
    interrupt_training(settings, 4)
    kept = state(settings["output"])["cursor"]
    assert kept["reserve"] > 0
    assert seen[0][2] > 0  # before the first validation too
    prepare = train_module.prepare
    clock = train_module.time.perf_counter
    late = [0.0]
    monkeypatch.setattr("nextdetr.engine.budget.time.perf_counter", lambda: clock() + late[0])
    monkeypatch.setattr(train_module, "prepare", lambda *a: (late.__setitem__(0, 600.0), prepare(*a))[1])
    seen.clear()
    interrupt_training({"resume": settings["output"]}, 1)
    progress, seconds, reserve = seen[0]
    assert progress == pytest.approx(kept["progress"], abs=1e-3)
    assert seconds > kept["seconds"] + 600
    assert reserve == kept["reserve"]


def test_strong_augmentation_ends_at_its_share_inside_an_epoch(settings, monkeypatch):
    """0.75 of two epochs of three batches is in the middle of the second one; a resumed run does the same."""
    settings |= {"strong_until": 0.75, "batch_size": 2}
    keys = []
    sample = DetectionDataset.__getitem__
    monkeypatch.setattr(DetectionDataset, "__getitem__", lambda self, key: (keys.append(key), sample(self, key))[1])
    train(TrainConfig(**settings), quiet=True)
    whole = [(key.epoch, key.index, key.strong) for key in keys]
    assert [strong for _, _, strong in whole] == [True] * 10 + [False] * 2
    keys.clear()
    interrupt_training(settings | {"output": settings["output"].with_name("again")}, 5)
    train(TrainConfig(resume=settings["output"].with_name("again")), quiet=True)
    had = [(key.epoch, key.index, key.strong) for key in keys]
    assert had[-2:] == whole[-2:]


def test_patience_does_not_run_out_while_nothing_is_found(settings, monkeypatch):
    scores = iter([0.0, None, 0.0, 0.1, 0.1, 0.1])
    monkeypatch.setattr(Trainer, "_score", lambda self, data: {"AP": next(scores), "AP50": 0.0})
    result = train(TrainConfig(**settings | {"epochs": 9, "patience": 2, "batch_size": 6}), quiet=True)
    assert result.epochs == 6
    assert result.best["epoch"] == 4


def test_the_last_weights_carry_no_others_metrics(settings, monkeypatch):
    interrupt_training(settings, 4)
    assert json.loads(read_detector_metadata(settings["output"] / "last.safetensors")["metrics"]) == {}


def test_the_first_process_says_when_to_save(settings, monkeypatch):
    """It alone writes, and so knows how long that takes; the others would save every minute."""
    saved, save = [], Loop.save
    monkeypatch.setattr(Loop, "save", lambda self: (saved.append(self.cursor.step), save(self))[1])
    monkeypatch.setattr(saving.Saver, "due", property(lambda self: True))
    monkeypatch.setattr(Trainer, "main", False)
    train(TrainConfig(**settings), quiet=True)
    assert saved == [3, 6]  # the first validation, and the end


def test_a_finished_run_keeps_what_was_added_to_its_best_weights(settings):
    train(TrainConfig(**settings | {"val_every": 2}), quiet=True)
    best = settings["output"] / "best.safetensors"
    written = open_model(best)
    save_opened(best, written, extra={"calibration": "{}"})
    train(TrainConfig(resume=settings["output"]), quiet=True)
    assert read_detector_metadata(best)["calibration"] == "{}"
    next(written.model.parameters()).data += 1  # the weights of an earlier epoch, as if the run was killed before writing
    save_opened(best, written)
    train(TrainConfig(resume=settings["output"]), quiet=True)
    metadata = read_detector_metadata(best)
    assert "calibration" not in metadata
    assert json.loads(metadata["metrics"])["AP"] == 0.1


def test_a_run_that_ran_out_of_patience_continues_with_more(settings):
    settings |= {"epochs": 6, "patience": 1}
    assert train(TrainConfig(**settings), quiet=True).epochs == 2
    assert train(TrainConfig(resume=settings["output"]), quiet=True).epochs == 2
    assert train(TrainConfig(resume=settings["output"], patience=3), quiet=True).epochs == 4
    assert train(TrainConfig(resume=settings["output"], patience=99), quiet=True).epochs == 6


@pytest.mark.parametrize(("last", "epoch"), [(0.48, 3), (0.44, 2)])
def test_with_few_images_of_val_the_last_weights_count_unless_they_are_clearly_worse(settings, monkeypatch, last, epoch):
    """Six images: 0.04 AP is luck."""
    scores = iter([0.3, 0.5, last, 0.49, 0.2])
    monkeypatch.setattr(Trainer, "_score", lambda self, data: {"AP": next(scores), "AP50": 0.6})
    result = train(TrainConfig(**settings | {"epochs": 3}), quiet=True)
    assert result.best["epoch"] == epoch
    best = settings["output"] / "best.safetensors"
    assert json.loads(read_detector_metadata(best)["metrics"])["AP"] == result.best["metrics"]["AP"]
    result = train(TrainConfig(resume=settings["output"], epochs=5), quiet=True)
    assert result.best["epoch"] == (4 if epoch == 3 else epoch)
