"""Shared parts of the benchmarks against peers: data, environments, scores, ratios and tables."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import sysconfig
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nextdetr.data.sources import load_data
from tests.helpers import squares


@pytest.fixture
def peer_data(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    sys.modules.pop("peer_data", None)
    import peer_data

    return peer_data


def test_peers_get_the_same_images_boxes_and_splits(peer_data, tmp_path):
    splits = peer_data.read_splits(str(squares(tmp_path / "ours")))
    assert set(splits) == {"train", "val"}
    path = peer_data.write_yolo(splits, tmp_path / "theirs")
    peer_data.write_yolo(splits, tmp_path / "theirs")  # again, over what is there
    for split, data in splits.items():
        read = load_data(path, split)
        assert read.classes == data.classes
        assert [record.path.resolve() for record in read.records] == [record.path.resolve() for record in data.records]
        for theirs, ours in zip(read.records, data.records, strict=True):
            np.testing.assert_allclose(theirs.boxes, ours.boxes, atol=1e-3)
            assert theirs.labels.tolist() == ours.labels.tolist()


def test_predictions_are_scored_by_position(peer_data, tmp_path):
    data = peer_data.read_splits(str(squares(tmp_path / "ours")))["val"]
    rows = [
        {"image_id": index, "category_id": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1], "score": 0.9}
        for index, record in enumerate(data.records)
        for (x1, y1, x2, y2), label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True)
    ]
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps(rows))
    assert peer_data.score_predictions(path, data).metrics["AP"] == pytest.approx(1.0)
    for row in rows:
        row["category_id"] = 1 - row["category_id"]
    path.write_text(json.dumps(rows))
    assert peer_data.score_predictions(path, data).metrics["AP50"] == 0
    path.write_text("[]")
    assert peer_data.score_predictions(path, data).metrics["AP"] == 0


@pytest.fixture
def scripts(monkeypatch):
    """Import a script of the benchmarks' folder by name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module


def test_ratios_are_taken_turn_by_turn(scripts):
    middle, low, high = scripts("results").ratio([1.0, 2.0, 4.0], [0.5, 1.0, 2.2])
    assert middle == pytest.approx(0.5)
    assert low == pytest.approx(0.5)
    assert high == pytest.approx(0.55)


def test_a_folder_with_runs_of_other_settings_is_refused(scripts, tmp_path):
    claim = scripts("results").claim
    for _ in range(2):
        claim(tmp_path / "runs", {"images": 20, "seed": 0})
    with pytest.raises(SystemExit, match="contains runs with another images, seed"):
        claim(tmp_path / "runs", {"images": 205, "seed": 1})


def test_the_score_on_val_is_that_of_the_weights_that_are_scored_on_test(scripts, tmp_path):
    (tmp_path / "config.yaml").write_text("model: nextdetr-zepto\n")
    (tmp_path / "metrics.csv").write_text("epoch,seconds,AP,AP50\n1,60,0.46,0.7\n2,120,0.44,0.8\n")
    (tmp_path / "test.json").write_text(json.dumps({"metrics": {"AP": 0.5}}))
    metadata = {"metrics": json.dumps({"AP": 0.44, "AP50": 0.8})}  # the last ones, as with few images of val
    save_file({"tensor": torch.zeros(1)}, tmp_path / "best.safetensors", metadata)
    found = scripts("peers").report_ours(tmp_path, Namespace(data="data"), {"val": None, "test": None}, [], {})
    assert found["val"] == {"AP": 0.44, "AP50": 0.8}
    assert found["curve"] == [(1.0, 0.46), (2.0, 0.44)]
    assert found["final"] == {"AP": 0.5}


def test_an_environment_shares_packages_and_is_made_once(scripts, tmp_path, monkeypatch):
    environments = scripts("environments")
    commands = []

    def run(command, **options):
        commands.append(command)
        (tmp_path / "packages").mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, 0, stdout=f"{tmp_path / 'packages'}\n")

    monkeypatch.setattr(environments.subprocess, "run", run)
    (tmp_path / "peer").mkdir()
    python = environments.environment(tmp_path, "peer", ["one", "two"])
    assert python.is_relative_to(tmp_path / "peer")
    assert (tmp_path / "packages" / "shared.pth").read_text().strip() == sysconfig.get_path("purelib")
    assert commands[-1][-2:] == ["one", "two"]
    made = len(commands)
    environments.environment(tmp_path, "peer", ["one", "two"])
    assert len(commands) == made
    environments.environment(tmp_path, "peer", ["one", "three"])
    assert len(commands) == 2 * made


def test_servers_are_compared_turn_by_turn(scripts):
    def seen(*rates, **statuses):
        latency = {"200": {"median": 0.5, "p99": 1.0}}
        return [{"answered_per_second": rate, "statuses": {"200": 9, **statuses}, "latency": latency} for rate in rates]

    rows = scripts("serve_load").peer_rows
    assert list(rows(640, "openvino", {"ours": seen(10, 12, 11), "theirs": seen(5, 6, 5.5)})) == [
        "| 640 px | ours, openvino | 11.0 |  | 500 | 1000 |",
        "| 640 px | theirs, openvino | 5.5 | 2.00 (2.00 to 2.00) | 500 | 1000 |",
    ]
    with pytest.raises(SystemExit, match="theirs: not every request was answered"):
        list(rows(640, "openvino", {"ours": seen(10), "theirs": seen(5, **{"503": 1})}))


class TestAnchors:
    def candidate(self, scripts, name, runtime, gflop=6.0, precision="float32"):
        facts = {"gflop": gflop, "parameters": 2_500_000, "version": "1", "difference": 1e-5}
        return scripts("anchor_files").Candidate(name, 320, precision, runtime, Path("model"), facts)

    def test_the_faster_runtime_counts(self, scripts):
        found = [
            self.candidate(scripts, name, kind)
            for name in ("yolo26n", "nextdetr-atto", "nextdetr-atto at abc")
            for kind in ("onnx", "openvino")
        ]
        times = [0.03, 0.02, 0.01, 0.05, 0.04, 0.08]
        seconds = {made.key: [value] * 5 for made, value in zip(found, times, strict=True)}
        lines = list(scripts("anchors").table(found, seconds, "abc"))
        assert lines[2] == "| yolo26n | 1 | 2.5 | 6.0 | 30.0 | 20.0 | 300 | 1 |  |"
        assert lines[3] == (
            "| nextdetr-atto | 1 | 2.5 | 6.0 | 10.0 | 50.0 | 600 | **0.50** (0.50 to 0.50) | **0.25** (0.25 to 0.25) |"
        )

    def test_the_order_of_equal_detections_is_no_difference(self, scripts):
        rows = np.array([[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]])
        files = scripts("anchor_files")
        assert files.difference([rows[:, ::-1]], [rows]) == 0
        assert files.difference([rows + 0.01], [rows]) == pytest.approx(0.01)

    def test_files_are_written_again_only_for_another_source(self, scripts, tmp_path):
        digest = scripts("anchor_files").digest
        (tmp_path / "src").mkdir()
        (tmp_path / "src" / "model.py").write_text("one")
        first = digest(tmp_path)
        (tmp_path / "src" / "notes.txt").write_text("not source")
        assert digest(tmp_path) == first
        (tmp_path / "src" / "model.py").write_text("two")
        assert digest(tmp_path) != first


@pytest.fixture
def few_labels(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("few_labels")


def test_the_study_of_few_labels_goes_on_where_it_stopped(few_labels, monkeypatch, tmp_path, capsys):
    data, output = squares(tmp_path / "data", images=12), tmp_path / "study"
    done = []

    def trained(options, job, folder):
        listed, more, count = few_labels.write_data(options, job, folder)
        train = load_data(listed, "train")
        assert len(train.records) == count
        assert count + len(list(more.iterdir())) == 12
        assert {record.path.resolve() for record in train.records}.isdisjoint(path.resolve() for path in more.iterdir())
        done.append((job.name, count, len(load_data(listed, "val").records)))
        if len(done) == 2:
            raise KeyboardInterrupt
        return {"images": count, "val": {"AP": 0.1 * len(done)}}

    monkeypatch.setattr(few_labels, "train_ours", trained)
    command = ["few_labels.py", str(data), "--output", str(output), "--fractions", "0.25", "0.5", "--seeds", "0"]
    monkeypatch.setattr(sys, "argv", [*command, "--rows", "random", "together"])
    with pytest.raises(KeyboardInterrupt):
        few_labels.main()
    few_labels.main()
    assert [name for name, *_ in done] == [
        "25-random-seed0", "25-together-seed0", "25-together-seed0", "50-random-seed0", "50-together-seed0",
    ]  # fmt: skip
    assert {(train, val) for _, train, val in done} == {(3, 3), (6, 6)}
    table = capsys.readouterr().out
    assert "| random | 0.1000 (0.100) | 0.4000 (0.400) |" in table
    assert "| together | 0.3000 (0.300) | 0.5000 (0.500) |" in table
    monkeypatch.setattr(sys, "argv", [*command, "--minutes", "3"])
    with pytest.raises(SystemExit, match="holds a study with another minutes"):
        few_labels.main()


@pytest.mark.parametrize(("images", "turns"), [(99, True), (100, False)])
def test_images_are_turned_only_where_the_recipe_would(few_labels, monkeypatch, tmp_path, images, turns):
    given = {}

    class Detector:
        def __init__(self, model, *, weights):
            assert weights is None

        def train(self, **settings):
            given.update(settings)
            return SimpleNamespace(best={"metrics": {"AP": 0.5}}, epochs=1, seconds=1.0)

    monkeypatch.setattr(few_labels, "Detector", Detector)
    monkeypatch.setattr(few_labels, "write_data", lambda *_: (tmp_path / "data.yaml", tmp_path, images))
    options = Namespace(model="nextdetr-atto", image_size=256, steps=None, minutes=1, test=False)
    few_labels.train_ours(options, few_labels.Job("turned", 1, 0), tmp_path)
    assert given["auto_turn"] is turns
    few_labels.train_ours(options, few_labels.Job("random", 1, 0), tmp_path)
    assert given["auto_turn"] is False


def test_few_and_many_labels_of_the_study_of_fcmae_are_augmented_alike(scripts):
    assert scripts("fcmae_study").FIXED["auto_turn"] is False


def test_every_kind_of_augmentation_sees_the_same_few_images(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    few_images = importlib.import_module("few_images")
    data, seen = squares(tmp_path / "data", images=12), {}

    def trained(options, variant, seed):
        listed = few_images.write_data(options, seed)
        seen[variant, seed] = {record.path.resolve() for record in load_data(listed, "train").records}
        assert len(load_data(listed, "val").records) == len(load_data(data, "val").records)
        return {"best": {"metrics": {"AP": 0.5}}, "last": 0.1 * (seed + 1)}

    monkeypatch.setattr(few_images, "train", trained)
    command = ["few_images.py", str(data), "--images", "5", "--seeds", "0", "1", "--output", str(tmp_path / "study")]
    monkeypatch.setattr(sys, "argv", command)
    few_images.main()
    variants = ("plain", "mixed", "turned", "auto", "both")
    assert set(seen) == {(variant, seed) for variant in variants for seed in (0, 1)}
    assert seen["plain", 0] == seen["both", 0]
    assert seen["plain", 0] != seen["plain", 1]
    assert {len(images) for images in seen.values()} == {5}
    assert "| mixed | **0.150** (0.100, 0.200) | 0.500 |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, "--images", "6"])
    with pytest.raises(SystemExit, match="contains runs with another images"):
        few_images.main()
