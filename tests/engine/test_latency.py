"""The speed contract of a training, with a machine whose times are a formula."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from nextdetr.config import TrainConfig, ValConfig
from nextdetr.data.sources import load_data
from nextdetr.detector import Detector
from nextdetr.engine import latency as module
from nextdetr.engine.latency import affordable_size, fulfil, score_settings
from nextdetr.engine.loading import training_sizes
from nextdetr.engine.train import Trainer, train
from nextdetr.engine.validate import score_detector
from nextdetr.errors import ConfigError, Interrupted
from nextdetr.inference.opened import settle
from nextdetr.inference.speed import Setting, SpeedPoint, read_table
from nextdetr.inference.times import Times, pick
from nextdetr.models.cut import choices, cut_layers
from nextdetr.weights.checkpoint import open_model, read_detector_metadata
from tests.helpers import interrupt_training, squares, stop_after, tiny_model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return squares(tmp_path_factory.mktemp("squares"), size=160)


class Machine:
    """Measures by a formula; ``slower`` is how much slower it is than at first."""

    def __init__(self, slower=1.0):
        self.slower, self.asked = slower, []

    def __call__(self, opened, setting):
        self.asked.append(setting)
        taken = 2 + 30 * (setting.image_size / 160) ** 2 + setting.layers * (1 + 0.05 * setting.queries)
        return SpeedPoint(*setting, None, self.slower * taken, "formula", "paper", 1, True)


def settings(data, folder, **more):
    return {
        "data": str(data), "model": str(tiny_model(folder)), "epochs": 1, "image_size": 160, "batch_size": 3, "workers": 0,
        "output": folder / "run", "latency": 34.0, **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latency")
    machine = Machine()
    return train(TrainConfig(**settings(data, folder)), quiet=True, meter=machine), machine


def test_the_chosen_point_is_measured_and_near_what_was_asked(trained):
    result, machine = trained
    table = read_table(read_detector_metadata(result.checkpoint), "x")
    assert result.to_json()["speed"] == table.to_json()
    assert table.asked_ms == 34.0
    chosen = table.chosen
    assert chosen.measured
    assert chosen.setting in machine.asked
    assert 0.9 * 34 <= chosen.latency_ms <= 34  # nothing was learnt in two steps, so that all are as accurate
    assert chosen in table.points
    assert {p.machine for p in table.points} == {"formula on paper, 1 thread"}
    assert len(machine.asked) < 10


def test_the_sizes_that_may_be_chosen_are_trained():
    config = TrainConfig(image_size=320)
    assert training_sizes(config, 32) == (256, 288, 320, 352, 384)
    wide = config.model_copy(update={"latency": 20.0})
    assert training_sizes(wide, 32) == (160, 192, 224, 256, 288, 320, 352, 384)
    assert training_sizes(wide.model_copy(update={"image_size": 160}), 32) == (128, 160, 192)
    assert training_sizes(wide.model_copy(update={"multi_scale": False}), 32) == (320,)


def test_settings_are_scored_as_val_scores_them(data, tmp_path):
    torch.manual_seed(3)
    opened = open_model(tiny_model(tmp_path))
    with torch.no_grad():
        for head in (opened.model.rows[-1].enc_score_head, *opened.model.rows[-1].dec_score_head):
            torch.nn.init.normal_(head.weight, std=0.5)
    split = load_data(str(data), "val")
    queries, layers = choices(opened.model)
    assert (queries, layers) == ([10, 20, 30], [1, 2])
    found = score_settings(opened.model, split, [128, 160], queries, layers, batch_size=4, fabric=Fabric(accelerator="cpu"))
    assert set(found) == {Setting(s, q, k) for s in (128, 160) for q in queries for k in layers}
    for setting in (Setting(128, 10, 1), Setting(160, 30, 2)):
        shorter = cut_layers(opened.model, setting.layers)
        config = ValConfig(data=str(data), image_size=setting.image_size, queries=setting.queries)
        opened_shorter = type(opened)(shorter, opened.classes, opened.image_size, opened.source, {})
        expected = score_detector(opened_shorter, config, quiet=True).metrics["AP"]
        assert found[setting] == pytest.approx(expected, abs=1e-6)


def test_prediction_takes_the_point(trained, data):
    result, _ = trained
    detector = Detector(result.checkpoint, device="cpu")
    pictures = str(data / "images" / "val")
    chosen = read_table(detector.opened.metadata, "x").chosen
    settled = settle(detector.opened, latency=34.0)
    assert (settled.image_size, settled.queries) == (chosen.image_size, chosen.queries)
    assert settled.opened.model.rows[-1].eval_layer == chosen.layers - 1
    before = detector.opened.model.rows[-1].eval_layer
    got = detector.predict(pictures, latency=34.0, confidence=0.0)
    assert detector.opened.model.rows[-1].eval_layer == before == 1  # the detector stays as it was
    detector.opened.model.rows[-1].eval_layer = chosen.layers - 1
    expected = detector.predict(pictures, image_size=chosen.image_size, queries=chosen.queries, confidence=0.0)
    assert all(np.array_equal(a.xyxy, b.xyxy) for a, b in zip(got, expected, strict=True))
    assert len(got[0]) == 2 * chosen.queries
    scored = score_detector(open_model(result.checkpoint), ValConfig(data=str(data), latency=34.0), quiet=True)
    assert scored.images == 6
    with pytest.raises(ConfigError, match="nothing of it takes at most 1 ms; the fastest takes"):
        detector.predict(pictures, latency=1.0)


@pytest.mark.parametrize("more", [{"queries": 5}, {"image_size": 160}])
def test_a_latency_and_what_it_chooses_contradict_each_other(trained, more):
    with pytest.raises(ConfigError, match="--latency chooses size, queries and layers"):
        Detector(trained[0].checkpoint).predict("x.jpg", latency=30.0, **more)


def test_a_contract_that_cannot_be_kept_is_refused_before_training(data, tmp_path):
    with pytest.raises(ConfigError, match=r"--latency 5 cannot be kept: the fastest .* takes 22.7 ms \(128 px, 10 .*24"):
        train(TrainConfig(**settings(data, tmp_path, latency=5.0)), quiet=True, meter=Machine())
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("*.safetensors"))


def test_a_contract_that_is_not_kept_in_the_end_loses_nothing(data, tmp_path, capfd):
    machine = Machine()
    begin = Trainer.run

    def slower(self):
        machine.slower = 3.0
        self.run_.times.known.clear()
        return begin(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run", slower)
        result = train(TrainConfig(**settings(data, tmp_path)), meter=machine)
    assert result.speed["chosen"] is None
    assert result.speed["points"]
    assert (tmp_path / "run" / "best.safetensors").is_file()
    assert "nothing takes so little" in capfd.readouterr().err


def test_when_the_time_is_over_only_the_own_size_is_scored(trained, data, tmp_path):
    file = Path(shutil.copy(trained[0].checkpoint, tmp_path / "best.safetensors"))
    config, machine, told = TrainConfig(**settings(data, tmp_path)), Machine(), []
    split, fabric = load_data(str(data), "val"), Fabric(accelerator="cpu")
    table = fulfil(file, split, config, fabric, Times(meter=machine), told.append, ends=-math.inf)
    assert {point.image_size for point in table.points} == {160}
    assert table.chosen.measured
    assert table.chosen.latency_ms <= 34
    assert len(machine.asked) == 3  # what the estimates need
    assert pick(read_detector_metadata(file), 34.0, "x") == table.chosen
    assert "--minutes are over: scored 1 of 2 image sizes, first 160 px" in told
    every = fulfil(file, split, config, fabric, Times(meter=machine), ends=math.inf)
    assert {point.image_size for point in every.points} == {128, 160}


def test_when_the_time_is_over_a_size_that_meets_the_latency_is_scored(trained, data, tmp_path):
    file = Path(shutil.copy(trained[0].checkpoint, tmp_path / "best.safetensors"))
    config = TrainConfig(**settings(data, tmp_path, latency=25.0))  # at 160 px the fastest takes 33.5 ms
    fabric = Fabric(accelerator="cpu")
    table = fulfil(file, load_data(str(data), "val"), config, fabric, Times(meter=Machine()), ends=-math.inf)
    assert table.chosen.image_size == 128
    assert table.chosen.latency_ms <= 25


def test_a_run_too_short_for_its_table_says_so_before_it_starts(data, tmp_path, capfd):
    train(TrainConfig(**settings(data, tmp_path, epochs=None, minutes=1e-3)), meter=Machine())
    told = " ".join(capfd.readouterr().err.split())
    assert "The last validation and the speed table would take about" in told
    assert "get half of --minutes 0.001" in told


def test_a_resumed_run_keeps_its_contract(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, Trainer, 1)
        with pytest.raises(Interrupted):
            train(TrainConfig(**settings(data, tmp_path)), quiet=True, meter=Machine())
    result = train(TrainConfig(resume=tmp_path / "run"), quiet=True, meter=Machine())
    assert result.speed["asked_ms"] == 34.0
    assert read_table(read_detector_metadata(result.checkpoint), "x").chosen.measured
    with pytest.raises(ConfigError, match="leave out --latency"):
        train(TrainConfig(resume=tmp_path / "run", latency=20.0), quiet=True)


def test_a_resumed_run_keeps_time_for_its_table_as_before(data, tmp_path):
    """What a measurement takes is known from before the first step, and is not measured again there."""
    known, begin = [], Trainer.run

    def noted(self):
        known.append(self.run_.times.seconds)
        return begin(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run", noted)
        stop_after(patch, Trainer, 1)
        with pytest.raises(Interrupted):
            train(TrainConfig(**settings(data, tmp_path)), quiet=True, meter=Machine())
        train(TrainConfig(resume=tmp_path / "run"), quiet=True, meter=Machine())
    assert known[0] == known[1] > 0


def test_times_of_another_machine_are_taken_as_they_are(data, tmp_path):
    machine, file = Machine(), tmp_path / "benchmark.json"
    measured = [machine(None, Setting(size, q, k)) for size in (128, 160, 192) for q, k in ((10, 1), (20, 2))]
    file.write_text(json.dumps({"points": [asdict(p) for p in measured]}))

    def nothing(opened, setting):
        raise AssertionError("nothing is measured here")

    config = TrainConfig(**settings(data, tmp_path, latency=36.0, latency_of=file))
    result = train(config, quiet=True, meter=nothing)
    assert result.speed["chosen"]["runtime"] == "formula"
    assert 0.9 * 36 <= result.speed["chosen"]["latency_ms"] <= 36
    with pytest.raises(ConfigError, match="give both"):
        Detector(result.checkpoint).train(data="d", latency_of=file)


@pytest.mark.parametrize(("latency", "size"), [(12.0, 160), (34.0, 160), (75.0, 224), (10_000.0, 640)])
def test_the_image_size_is_the_largest_that_keeps_the_latency(latency, size, tmp_path):
    machine = Machine()
    opened = open_model(tiny_model(tmp_path))
    assert affordable_size(Times(meter=machine), opened, latency, 320) == size
    assert len(machine.asked) <= 3
    assert all((s.queries, s.layers) == (20, 2) for s in machine.asked)
    assert module.MOST == 640


def test_no_setting_has_more_queries_than_there_are_tokens(data, tmp_path, capfd):
    """One and a half times its queries are 30, but at 64 px the model has 20 tokens, and its export as many queries."""
    machine = Machine()
    result = train(TrainConfig(**settings(data, tmp_path, image_size=64, latency=11.9)), meter=machine)
    assert "scoring 4 settings on 6 images" in " ".join(capfd.readouterr().err.split())
    assert {setting.queries for setting in machine.asked} == {10, 20}
    chosen = result.speed["chosen"]
    assert (chosen["image_size"], chosen["queries"], chosen["layers"]) == (64, 20, 2)


def test_a_resumed_run_takes_the_times_from_where_they_are_now(data, tmp_path):
    machine, file, moved = Machine(), tmp_path / "benchmark.json", tmp_path / "moved.json"
    file.write_text(json.dumps({"points": [asdict(machine(None, Setting(160, *end))) for end in ((10, 1), (20, 2))]}))
    interrupt_training(settings(data, tmp_path, latency=36.0, latency_of=file), 1)
    file.rename(moved)
    with pytest.raises(ConfigError, match=r"benchmark.json: .* if the file has moved, name it with --latency-of"):
        train(TrainConfig(resume=tmp_path / "run"), quiet=True)
    result = train(TrainConfig(resume=tmp_path / "run", latency_of=moved), quiet=True)
    assert result.speed["chosen"]["runtime"] == "formula"


def test_a_run_without_a_latency_takes_no_times_on_resume(data, tmp_path):
    interrupt_training(settings(data, tmp_path, latency=None), 1)
    with pytest.raises(ConfigError, match="has no --latency; leave it out"):
        train(TrainConfig(resume=tmp_path / "run", latency_of=tmp_path / "benchmark.json"), quiet=True)
