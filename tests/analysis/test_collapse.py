from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from nextdetr.analysis.collapse import channel_statistics, measure_layers
from nextdetr.cli.main import run
from nextdetr.models.convnextv2 import ConvNeXtV2, convnextv2
from nextdetr.weights.backbone import open_encoder
from nextdetr.weights.convert import save_backbone


def test_distance_is_the_papers():
    x = torch.randn(30, 7).relu() + 0.1
    total = 0.0
    for i in range(7):
        for j in range(7):
            total += (1 - float(torch.nn.functional.cosine_similarity(x[:, i], x[:, j], dim=0))) / 2
    assert channel_statistics(x)[0] == pytest.approx(total / 49, abs=1e-6)


def test_extremes():
    same = torch.randn(50, 1).expand(50, 6)
    assert channel_statistics(same)[0] == pytest.approx(0, abs=1e-9)
    assert channel_statistics(torch.eye(8))[0] == pytest.approx((1 - 1 / 8) / 2)
    x = torch.randn(100, 4)
    x[:, 0] = 0
    x[:, 1] = 3 + 0.01 * torch.randn(100)
    x[:, 2] = 1e-4 * torch.randn(100)
    _, dead, saturated = channel_statistics(x)
    assert (dead, saturated) == (0.5, 0.25)


@pytest.mark.parametrize("grn", [True, False])
def test_what_is_measured_is_what_the_second_linear_layer_reads(grn):
    encoder = ConvNeXtV2((1, 2), (8, 12), grn=grn, out_indices=(0, 1)).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    image = torch.randn(1, 3, 64, 64)
    layers, maps = measure_layers(encoder, [image])
    assert [(layer.name, layer.channels) for layer in layers] == [
        ("stages.0.0", 32), ("stages.1.0", 48), ("stages.1.1", 48),
    ]  # fmt: skip
    assert set(maps) == {"stages.0.0", "stages.1.1"}
    block = encoder.stages[0][0]
    with torch.no_grad():
        y = block.dwconv(encoder.downsample_layers[0](image)).permute(0, 2, 3, 1)
        y = block.grn(block.act(block.pwconv1(block.norm(y))))[0]
    torch.testing.assert_close(maps["stages.0.0"], y.permute(2, 0, 1), rtol=1e-4, atol=1e-4)
    assert layers[0].distance == pytest.approx(channel_statistics(y.flatten(0, 1))[0], abs=1e-5)
    assert not block.pwconv2._forward_pre_hooks


@pytest.mark.parametrize("spelling", [["--images"], []], ids=["named", "last"])
def test_command_compares_several_weights(spelling, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (50, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    plain = convnextv2("atto", grn=False)
    file = save_backbone(tmp_path / "v1.safetensors", plain.state_dict(), weights_licence="none", source_weights="none")
    code = run(
        ["analyze", "collapse", str(file), "convnextv2-atto", *spelling, str(tmp_path / "images"), "--image-size", "64",
         "--limit", "2", "--output", str(tmp_path / "out"), "--json"]
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert code == 0, found
    assert (found["command"], found["images"]) == ("analyze collapse", 2)
    assert [entry["weights"] for entry in found["weights"]] == [str(file), "convnextv2-atto"]
    for entry in found["weights"]:
        assert len(entry["layers"]) == 12
        assert all(0 <= layer["distance"] <= 1 for layer in entry["layers"])
        assert Image.open(entry["grid"]).width > 100
    assert Image.open(found["curve"]).width > 100


def test_command_asks_for_images(capsys):
    assert run(["analyze", "collapse", "convnextv2-atto", "--json"]) == 2
    assert "--images FOLDER" in json.loads(capsys.readouterr().out)["error"]["message"]


@pytest.mark.parametrize("size", ["zepto", "atto"])  # zepto is three times as wide inside its blocks, not four
def test_encoders_open_from_any_file(tmp_path, size):
    plain = convnextv2(size, grn=False)
    file = save_backbone(tmp_path / "v1.safetensors", plain.state_dict(), weights_licence="none", source_weights="none")
    opened = open_encoder(file)
    for (name, own), other in zip(opened.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(own, other), name
    classifier = open_encoder(file, num_classes=3)
    assert classifier(torch.randn(1, 3, 64, 64)).shape == (1, 3)
    assert torch.equal(classifier.stages[3][0].pwconv1.weight, plain.stages[3][0].pwconv1.weight)
