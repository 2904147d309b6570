"""Weights written for other programs: there and back to the bit, with their licence."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from transformers import ConvNextV2Config, RTDetrConfig, RTDetrForObjectDetection

from nextdetr.cli.main import run
from nextdetr.errors import ConfigError, WeightsError
from nextdetr.models.convnextv2 import SIZES, convnextv2
from nextdetr.models.graph import build_model, parse_model_text
from nextdetr.weights.checkpoint import open_model, save_detector
from nextdetr.weights.convert import FORMATS, _target, convert, save_backbone
from nextdetr.weights.layouts.table import backbone_tensors
from nextdetr.weights.load import open_weights
from tests.helpers import TINY_MODEL
from tests.weights.layouts_of_original import one_stage, original

#: Those of whole detectors are in test_ultralytics_file.py.
OF_BACKBONES = [to for to in FORMATS if to != "ultralytics"]


def ours(path, state, licence="CC0-1.0"):
    return save_backbone(path, state, weights_licence=licence, source_weights="my.safetensors")


def content(path):
    file, identity = open_weights(path)
    return backbone_tensors(file, identity), identity


@pytest.mark.parametrize("classes", [None, 7])
@pytest.mark.parametrize("to", OF_BACKBONES)
def test_round_trip_through_files(tmp_path, to, classes):
    state = original(*one_stage("atto"), classes=classes)
    source = ours(tmp_path / "b.safetensors", state)
    written, _ = convert(source, to, tmp_path / f"there{'.pt' if to == 'original' else '.safetensors'}")
    found, identity = content(written)
    assert identity.kind == ("nextdetr-backbone" if to == "nextdetr" else f"convnextv2-{to}")
    assert identity.licence == "CC0-1.0"
    assert list(found.keys() ^ state.keys()) == []
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    back, _ = convert(written, "nextdetr", tmp_path / "back.safetensors")
    again, _ = content(back)
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("size", SIZES)
def test_every_size_goes_through_files_there_and_back(tmp_path, size):
    """Widths of each size with a block a stage; of the two largest, one stage: the names and shapes of its layers."""
    depths, dims = one_stage(size)
    state = original(depths, dims, classes=None)
    if size in ("large", "huge"):
        state = {name: tensor for name, tensor in state.items() if name.startswith(("downsample_layers.0.", "stages.0."))}
    source = ours(tmp_path / "b.safetensors", state)
    for to in ("timm", "transformers", "original"):
        written, _ = convert(source, to, tmp_path / f"there{'.pt' if to == 'original' else '.safetensors'}")
        found, identity = content(written)
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
        assert (identity.kind, identity.dims) == (f"convnextv2-{to}", tuple(dims[: 1 if len(state) < 20 else 4]))
        back, _ = convert(written, "nextdetr", tmp_path / "back.safetensors")
        again, _ = content(back)
        assert list(again.keys() ^ state.keys()) == []
        assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("size", ["pico", "tiny"])
def test_the_size_decides_the_shape_that_timm_wants(tmp_path, size):
    source = ours(tmp_path / "b.safetensors", original(*one_stage(size), classes=None))
    written, _ = convert(source, "timm")
    assert written == tmp_path / "b-timm.safetensors"
    with safe_open(written, "pt") as file:
        assert len(file.get_slice("stages.0.blocks.0.mlp.fc1.weight").get_shape()) == (4 if size == "pico" else 2)


def test_a_detector_gives_its_backbone_and_a_foreign_layout_becomes_ours(tmp_path):
    model = build_model(parse_model_text(TINY_MODEL, "m.yaml"))
    path = tmp_path / "d.safetensors"
    save_detector(path, model.state_dict(), model_text=TINY_MODEL, classes=["a", "b"], image_size=64, weights_licence="MIT")
    written, identity = convert(path, "original")
    assert identity.kind == "nextdetr-detector"
    checkpoint = torch.load(written, weights_only=True)
    assert torch.equal(checkpoint["model"]["stages.3.1.grn.beta"], model.backbone.stages[3][1].grn.beta)
    assert checkpoint["nextdetr"]["weights_licence"] == "MIT"
    again, _ = convert(path, "nextdetr", tmp_path / "again.safetensors")
    opened = open_model(again)
    assert opened.classes == ["a", "b"]
    assert opened.metadata["weights_licence"] == "MIT"


def test_a_partial_detector_is_not_converted(tmp_path):
    model = build_model(parse_model_text(TINY_MODEL, "m.yaml"))
    state = model.state_dict()
    del state["rows.1.conv.weight"]
    path = tmp_path / "d.safetensors"
    save_detector(path, state, model_text=TINY_MODEL, classes=["a", "b"], image_size=64)
    with pytest.raises(WeightsError, match=r"1 tensors are missing \(such as rows\.1\.conv\.weight\)"):
        convert(path, "nextdetr", tmp_path / "again.safetensors")


def test_the_backbone_of_a_transformers_detector(tmp_path):
    backbone = ConvNextV2Config(
        depths=[1, 1, 1, 1], hidden_sizes=[40, 80, 160, 320], out_features=["stage2", "stage3", "stage4"]
    )
    config = RTDetrConfig(
        backbone_config=backbone, encoder_in_channels=[80, 160, 320], num_queries=5, decoder_layers=1,
        encoder_hidden_dim=32, d_model=32, encoder_ffn_dim=32, decoder_ffn_dim=32,
    )  # fmt: skip
    model = RTDetrForObjectDetection(config)
    model.save_pretrained(tmp_path / "rtdetr")
    written, identity = convert(tmp_path / "rtdetr", "original", tmp_path / "b.pt")
    assert identity.kind == "rtdetr-transformers"
    found, _ = content(written)
    theirs = model.model.backbone.model.state_dict()
    assert torch.equal(found["stages.2.0.pwconv1.weight"], theirs["encoder.stages.2.layers.0.pwconv1.weight"])
    assert len(found) == sum(not name.startswith("hidden_states_norms.") for name in theirs)


def test_the_working_folder_has_a_name_too(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert _target(".", "transformers", None) == tmp_path / "mine-transformers"


def test_outputs_that_would_mislead_are_refused(tmp_path):
    source = ours(tmp_path / "b.safetensors", original(*one_stage("atto"), classes=None))
    with pytest.raises(ConfigError, match="the output is the input"):
        convert(source, "timm", source)
    with pytest.raises(ConfigError, match=r"written as \*\.pt"):
        convert(source, "original", tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=r"written as \*\.safetensors"):
        convert(source, "transformers", tmp_path / "x.pt")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="a file, but a folder is to be written"):
        convert(source, "transformers", tmp_path / "file")
    (tmp_path / "x.pt").mkdir()
    with pytest.raises(ConfigError, match="a folder, but a file is to be written"):
        convert(source, "original", tmp_path / "x.pt")


def test_command(tmp_path, capsys):
    source = ours(tmp_path / "b.safetensors", original(*SIZES["atto"][:2], classes=None), "CC-BY-NC-4.0")
    assert run(["weights", "convert", str(source), "--to", "transformers", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["output"] == str(tmp_path / "b-transformers")
    assert found["weights_licence"] == "CC-BY-NC-4.0"
    config = json.loads((tmp_path / "b-transformers" / "config.json").read_text())
    assert config["hidden_sizes"] == [40, 80, 160, 320]
    assert run(["weights", "convert", str(source), "--to", "onnx"]) == 2


@pytest.mark.parametrize("to", ["timm", "transformers", "original"])
def test_a_backbone_that_other_programs_cannot_build_is_refused(tmp_path, to):
    path = save_backbone(
        tmp_path / "z.safetensors", dict(convnextv2("zepto").state_dict()), weights_licence="none", source_weights="none"
    )
    with pytest.raises(WeightsError, match=r"z\.safetensors: its blocks are 3 times as wide inside"):
        convert(path, to)
    written, identity = convert(path, "nextdetr")
    assert identity.model == "convnextv2-zepto"
    assert [entry.name for entry in tmp_path.iterdir() if entry not in (path, written)] == []
