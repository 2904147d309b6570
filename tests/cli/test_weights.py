from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from nextdetr.cli.main import run as run_command
from nextdetr.models.convnextv2 import convnextv2
from nextdetr.weights.layouts.convnext_original import to_original
from tests.weights.torch_files import Runs


@pytest.fixture
def published(tmp_path):
    state = convnextv2("atto", num_classes=1000).state_dict()
    torch.save({"model": to_original(state)}, tmp_path / "atto.pt")
    return tmp_path / "atto.pt", state


def run(capsys, *arguments):
    code = run_command([str(argument) for argument in arguments])
    return code, capsys.readouterr()


def test_inspect(published, capsys):
    path, _ = published
    code, printed = run(capsys, "weights", "inspect", path, "--model", "nextdetr-atto", "--json")
    found = json.loads(printed.out)
    assert code == 0
    assert (found["kind"], found["for_model"], found["parameters"]) == ("convnextv2-original", "convnextv2-atto", 3_708_400)
    assert found["weights_licence"] == "CC-BY-NC-4.0"
    assert found["fit"]["fits"]
    code, printed = run(capsys, "weights", "inspect", path)
    assert code == 0
    assert "CC-BY-NC-4.0" in printed.out


def test_convert_there_and_back(published, tmp_path, capsys):
    path, state = published
    for to, output in (
        ("timm", "t.safetensors"),
        ("transformers", "folder"),
        ("original", "o.pt"),
        ("nextdetr", "n.safetensors"),
    ):
        code, printed = run(capsys, "weights", "convert", path, "--to", to, "--output", tmp_path / output, "--json")
        assert code == 0
        assert json.loads(printed.out)["weights_licence"] == "CC-BY-NC-4.0"
        path = tmp_path / output
    torch.testing.assert_close(load_file(path), dict(state), rtol=0, atol=0)


def test_weights_of_another_origin_are_used(published, tmp_path, capsys):
    """A detector of a transformers folder scores and is described under the model that it is for."""
    from transformers import ConvNextV2Config, RTDetrConfig, RTDetrForObjectDetection

    backbone = ConvNextV2Config(
        depths=[2, 2, 6, 2], hidden_sizes=[40, 80, 160, 320], out_features=["stage2", "stage3", "stage4"]
    )
    config = RTDetrConfig(
        backbone_config=backbone, encoder_in_channels=[80, 160, 320], num_labels=2, id2label={0: "cat", 1: "dog"},
        freeze_backbone_batch_norms=False,
    )  # fmt: skip
    RTDetrForObjectDetection(config).save_pretrained(tmp_path / "folder")
    code, printed = run(capsys, "info", "rtdetr-l-convnextv2-atto", "--weights", tmp_path / "folder", "--image-size", "64")
    assert code == 0
    assert "cat, dog" in printed.out
    code, printed = run(capsys, "info", "nextdetr-atto", "--weights", published[0], "--image-size", "64")
    assert code == 2
    assert "--backbone-weights" in printed.err


@pytest.mark.parametrize("content", ["text", "attack", "cut"])
def test_a_bad_file_is_one_sentence(content, published, tmp_path, capsys):
    path = tmp_path / "bad.pt"
    if content == "text":
        path.write_text("no weights here\n")
    elif content == "cut":
        path.write_bytes(published[0].read_bytes()[:100_000])
    else:
        torch.save({"model": {"w": torch.ones(2)}, "x": Runs(os.system, f"touch {tmp_path / 'canary'}")}, path)
    code, printed = run(capsys, "weights", "inspect", path, "--json")
    error = json.loads(printed.out)["error"]
    assert code == 2
    assert error["type"] == "WeightsError"
    assert error["message"].startswith(f"{path}: ")
    assert not (tmp_path / "canary").exists()
