"""A graft: a detector under another backbone, aligned on images without labels."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import nextdetr
from nextdetr import Detector
from nextdetr.cli.main import run
from nextdetr.config import GraftConfig, TrainConfig, build_config
from nextdetr.data.seen import TRAINED_ON, trained_on, trained_on_metadata
from nextdetr.data.sources import load_data
from nextdetr.engine.graft import Grafter
from nextdetr.engine.graft_setup import _seen
from nextdetr.engine.train import train
from nextdetr.errors import ConfigError, DataError, Interrupted, WeightsError
from nextdetr.models.convnextv2 import convnextv2
from nextdetr.models.graph import build_model, parse_model_text
from nextdetr.models.names import row_of
from nextdetr.weights.checkpoint import open_model, read_detector_metadata, save_detector, save_opened
from nextdetr.weights.convert import save_backbone
from tests.helpers import TINY_MODEL, squares, stop_after

DFINE = TINY_MODEL.replace("RTDETRDecoder, [nc, 32, 20, 2, 4, 2, 64]", "DFINEDecoder, [nc, 32, 20, 2, 4, 2, 64]")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A detector that has detections, weights of a backbone, and images."""
    folder = tmp_path_factory.mktemp("graft")
    squares(folder / "data")
    torch.manual_seed(1)
    model = build_model(parse_model_text(DFINE, "test"), num_classes=2)
    for parameter in model.rows[-1].parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_detector(
        folder / "old.safetensors", model.state_dict(), model_text=DFINE, classes=["square", "bar"], image_size=64,
        weights_licence="Apache-2.0", extra={"bits": "12"},
    )  # fmt: skip
    backbone = convnextv2("zepto").state_dict()
    save_backbone(folder / "zepto.safetensors", backbone, weights_licence="CC-BY-NC-4.0", source_weights="none")
    return folder


@pytest.fixture
def settings(given, tmp_path):
    return {
        "detector": str(given / "old.safetensors"), "backbone": f"convnextv2-zepto={given / 'zepto.safetensors'}",
        "images": str(given / "data" / "images" / "train"), "epochs": 2, "batch_size": 3, "workers": 0, "image_size": 64,
        "output": tmp_path / "run", "device": "cpu",
    }  # fmt: skip


def losses(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def test_a_graft_opens_everywhere_with_the_old_classes_and_both_licences(settings, given, tmp_path):
    result = nextdetr.graft(**settings, quiet=True)
    assert set(result.to_json()) == {
        "command", "output", "epochs", "seconds", "images_per_second", "loss", "checkpoint", "parameters",
        "weights_licence",
    }  # fmt: skip
    metadata = read_detector_metadata(result.checkpoint)
    assert json.loads(metadata["classes"]) == ["square", "bar"]
    assert (metadata["weights_licence"], metadata["image_size"]) == ("Apache-2.0 and CC-BY-NC-4.0", "64")
    assert metadata["bits"] == "12"  # of the old detector's pictures
    assert metadata["source_weights"] == f"{given / 'old.safetensors'} and {given / 'zepto.safetensors'}"
    detector = Detector(result.output, device="cpu")
    assert detector.classes == ["square", "bar"]
    found = detector.predict(str(given / "data" / "images" / "val"), confidence=0.0)
    assert len(found) == 6
    trained = train(
        TrainConfig(
            data=str(given / "data"), model=result.checkpoint, epochs=1, batch_size=3, workers=0, output=tmp_path / "train",
        ),
        quiet=True,
    )  # fmt: skip
    assert read_detector_metadata(trained.checkpoint)["weights_licence"] == "Apache-2.0 and CC-BY-NC-4.0"


def test_a_graft_lists_the_labelled_images_of_both_sources(settings, given, tmp_path):
    """So that calibrate and compare know them; not those that it was aligned on, whose labels it never saw."""
    records = load_data(given / "data", "val").records
    old = save_opened(
        tmp_path / "old.safetensors", open_model(given / "old.safetensors"), extra=trained_on_metadata(records[:2])
    )
    text = DFINE.replace("atto", "zepto")
    other = save_detector(
        tmp_path / "other.safetensors", build_model(parse_model_text(text, "test"), num_classes=2).state_dict(),
        model_text=text, classes=["square", "bar"], image_size=64, extra=trained_on_metadata(records[2:3]),
    )  # fmt: skip
    both = {"detector": str(old), "backbone": f"convnextv2-zepto={other}", "epochs": 1}
    nextdetr.graft(**settings | both, quiet=True)
    known = trained_on(read_detector_metadata(settings["output"] / "last.safetensors"))
    assert known == trained_on(trained_on_metadata(records[:3]))
    other.unlink()
    nextdetr.graft(resume=settings["output"], epochs=2, quiet=True)
    assert trained_on(read_detector_metadata(settings["output"] / "last.safetensors")) == known


@pytest.mark.parametrize(
    ("detector", "backbone", "seen"),
    [("dfine-n-coco", "", {TRAINED_ON: ""}), ("dfine-n-coco", "old.safetensors", {}), ("old.safetensors", "", {})],
)
def test_published_weights_have_seen_none_of_the_users_images(given, monkeypatch, detector, backbone, seen):
    """So that what is trained from a graft of them lists its own images; others may have seen any."""
    monkeypatch.chdir(given)
    opened = SimpleNamespace(source="a shipped model" if detector == "dfine-n-coco" else detector)
    assert _seen(GraftConfig(detector=detector), opened, backbone, given / "none.safetensors") == seen


def test_pictures_are_read_as_the_old_detector_reads_them(settings, monkeypatch):
    seen = []
    monkeypatch.setattr(Grafter, "run", lambda self: seen.append(self.run_.data.reading.bits))
    nextdetr.graft(**settings, quiet=True)
    assert seen == [12]


def test_the_loss_falls_and_the_head_can_stay_as_it_is(settings, given):
    nextdetr.graft(**settings | {"epochs": 40, "head_rate_factor": 0, "multi_scale": False}, quiet=True)
    rows = losses(settings["output"])
    assert float(rows[0]["loss_teacher_maps"]) < 5  # the old BatchNorms do not fit the maps
    assert set(rows[0]) >= {f"loss_teacher_{name}" for name in ("class", "l1", "giou", "edges", "maps")}
    for name, share in (("loss_teacher_maps", 0.75), ("loss", 0.9)):
        assert float(rows[-1][name]) < share * float(rows[0][name]), name
    old, new = load_file(settings["detector"]), load_file(settings["output"] / "last.safetensors")
    for name, tensor in new.items():
        if row_of(name) not in (0, 1, 2):
            torch.testing.assert_close(tensor, old[name], rtol=0, atol=1e-6)  # the average rounds
        elif name.endswith("conv.weight"):
            assert tensor.shape != old[name].shape


def test_a_resumed_graft_equals_the_uninterrupted_one(settings, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    nextdetr.graft(**settings | {"output": whole}, quiet=True)
    stop_after(monkeypatch, Grafter, 3)
    with pytest.raises(Interrupted, match=r"nextdetr graft --resume"):
        nextdetr.graft(**settings, quiet=True)
    monkeypatch.undo()
    nextdetr.graft(resume=settings["output"], quiet=True)
    assert losses(settings["output"]) == losses(whole)
    first, second = (load_file(folder / "last.safetensors") for folder in (whole, settings["output"]))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    stored = read_detector_metadata(settings["output"] / "last.safetensors")
    assert stored["weights_licence"] == "Apache-2.0 and CC-BY-NC-4.0"


def test_another_detector_is_refused_on_resume(settings, given, tmp_path):
    nextdetr.graft(**settings | {"epochs": 1}, quiet=True)
    other = build_model(parse_model_text(DFINE, "test"), num_classes=2).state_dict()
    path = save_detector(tmp_path / "x.safetensors", other, model_text=DFINE, classes=["square", "bar"], image_size=64)
    with pytest.raises(ConfigError, match="not the detector of the run"):
        nextdetr.graft(str(path), resume=settings["output"], epochs=2, quiet=True)


def test_what_is_wrong_is_said_in_one_sentence(settings, given, tmp_path, capsys):
    for change, error, words in (
        ({"detector": None}, ConfigError, "a graft needs a detector: give a checkpoint or a name"),
        ({"backbone": None}, ConfigError, "--backbone convnextv2-atto=WEIGHTS"),
        ({"backbone": "resnet50"}, ConfigError, "--backbone resnet50: give one of convnextv2-"),
        ({"backbone": "convnextv2-zepto="}, ConfigError, "with =WEIGHTS"),
        ({"backbone": f"convnextv2-atto={given / 'zepto.safetensors'}"}, WeightsError, "zepto"),
        ({"images": ()}, DataError, "--images"),
        ({"images": str(tmp_path / "nowhere")}, DataError, "nowhere"),
        ({"detector": "nextdetr-atto"}, ConfigError, "there is no such detector; name a checkpoint"),
        ({"image_size": 65}, ConfigError, "65"),
        ({"maps_weight": 0, "places_weight": 0}, ConfigError, "both 0"),
    ):
        with pytest.raises(error, match=words):
            nextdetr.graft(**settings | change, quiet=True)
    assert not settings["output"].exists()
    assert run(["graft", "--backbone", "convnextv2-atto", "--images", str(tmp_path)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert build_config(GraftConfig, {"images": "a"}).images == ("a",)


def test_the_command(settings, capsys):
    command = ["graft", settings["detector"], "--backbone", "convnextv2-zepto", "--images", settings["images"]]
    options = ["--epochs", "1", "--batch-size", "6", "--workers", "0", "--output", str(settings["output"])]
    assert run([*command, *options, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["checkpoint"] == str(settings["output"] / "last.safetensors")
    assert "starts from random weights" in printed.err
