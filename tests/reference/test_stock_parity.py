"""The stock backbones beside transformers' and torchvision's, float32, random weights."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from transformers import (
    HGNetV2Backbone,
    HGNetV2Config,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetBackbone,
    RTDetrResNetConfig,
)

from nextdetr.models.graph import build_model
from nextdetr.models.resnet import VD_SIZES, resnetvd

STAGES = ["stage1", "stage2", "stage3", "stage4"]


def _resnet_config(size):
    spec = VD_SIZES[size]
    return RTDetrResNetConfig(
        hidden_sizes=[256, 512, 1024, 2048] if spec.bottleneck else [64, 128, 256, 512],
        depths=list(spec.depths),
        layer_type="bottleneck" if spec.bottleneck else "basic",
        out_features=STAGES,
    )


def _leaves(module):
    return [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]


def _copy(source, target):
    """Copy layer by layer in the order of definition, which is the same; the BatchNorms' statistics are drawn here."""
    ours, theirs = _leaves(target), _leaves(source)
    for a, b in zip(ours, theirs, strict=True):
        assert isinstance(a, type(b))
        if isinstance(b, nn.BatchNorm2d):
            b.eps = a.eps
            nn.init.uniform_(b.weight, 0.5, 1.5)
            nn.init.normal_(b.bias, std=0.2)
            b.running_mean.normal_(std=0.2)
            b.running_var.uniform_(0.5, 1.5)
        else:
            assert (a.stride, a.padding, a.dilation, a.groups) == (b.stride, b.padding, b.dilation, b.groups)
            nn.init.kaiming_normal_(b.weight)
        a.load_state_dict(b.state_dict())


def _by_names(source, target):
    """The vd backbone, whose shortcut stands elsewhere in the order of definition: by the names' meaning."""
    for k, layer in enumerate(source.embedder.embedder):
        _copy(layer, getattr(target.conv1, f"conv1_{k + 1}"))
    for stage, res_layer in zip(source.encoder.stages, target.res_layers, strict=True):
        for layer, block in zip(stage.layers, res_layer.blocks, strict=True):
            for k, conv in enumerate(layer.layer):
                _copy(conv, getattr(block, "branch2" + "abc"[k]))
            _copy(layer.shortcut, block.short)


@torch.no_grad()
def _compare(maps, expected):
    assert len(maps) == len(expected)
    for ours, theirs in zip(maps, expected, strict=True):
        assert theirs.std() > 0.01
        scale = max(theirs.abs().max().item(), 1.0)
        torch.testing.assert_close(ours / scale, theirs / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", VD_SIZES)
def test_resnet_vd(size, training):
    torch.manual_seed(0)
    reference, ours = RTDetrResNetBackbone(_resnet_config(size)), resnetvd(size, eps=1e-5)
    _by_names(reference, ours)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in reference.parameters())
    images = torch.randn(2, 3, 75, 106)  # odd sizes on the way show how a pooling rounds
    for module in (reference, ours):
        module.train(training)
    _compare(ours(images), reference(images).feature_maps)


HG = {  # rows of the four stages' last blocks, and the sizes
    "rtdetr-l": ((1, 3, 7, 9), {}),
    "rtdetr-x": (
        (1, 4, 10, 13),
        {
            "stem_channels": [3, 32, 64],
            "stage_in_channels": [64, 128, 512, 1024],
            "stage_mid_channels": [64, 128, 256, 512],
            "stage_out_channels": [128, 512, 1024, 2048],
            "stage_num_blocks": [1, 2, 5, 2],
        },
    ),
}


@pytest.mark.parametrize("name", HG)
def test_hgnetv2(name):
    """The rows of the shipped files, one after the other, are transformers' HGNetV2."""
    torch.manual_seed(1)
    ends, settings = HG[name]
    reference = HGNetV2Backbone(HGNetV2Config(out_features=STAGES, **settings)).eval()
    rows = build_model(name, num_classes=1).rows[: ends[-1] + 1].eval()
    _copy(reference, rows)
    images = torch.randn(1, 3, 64, 96)
    maps, x = [], images
    with torch.no_grad():
        for number, row in enumerate(rows):
            x = row(x)
            if number in ends:
                maps.append(x)
        _compare(maps, reference(images).feature_maps)


class _InTurn(nn.Module):
    """Three activations for a bottleneck that calls one module three times."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return torch.relu(x) if self.calls % 3 == 0 else nn.functional.silu(x)


@pytest.mark.parametrize(("name", "size"), [("rtdetr-resnet50", "resnet50"), ("rtdetr-resnet101", "resnet101")])
def test_plain_resnet(name, size):
    """The dialect's rows are torchvision's ResNet with SiLU in the stem and within the blocks."""
    torch.manual_seed(2)
    reference = torchvision.models.get_model(size, weights=None).eval()
    reference.relu = nn.SiLU()
    stages = [reference.layer1, reference.layer2, reference.layer3, reference.layer4]
    rows = build_model(name, num_classes=1).rows[:5].eval()
    _copy(nn.Sequential(reference.conv1, reference.bn1), rows[0])
    for stage, row in zip(stages, rows[1:], strict=True):
        for block in stage:
            block.relu = _InTurn()
        _copy(stage, row)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = [reference.maxpool(reference.relu(reference.bn1(reference.conv1(images))))]
        maps = [rows[0](images)]
        for stage, row in zip(stages, rows[1:], strict=True):
            expected.append(stage(expected[-1]))
            maps.append(row(maps[-1]))
        _compare(maps, expected)


DETECTORS = {
    "18": {"encoder_in_channels": [128, 256, 512], "hidden_expansion": 0.5, "decoder_layers": 3},
    "34": {"encoder_in_channels": [128, 256, 512], "hidden_expansion": 0.5, "decoder_layers": 4},
    "50": {},
    # As its conversion script has it: the decoder reads the encoder's 384 channels.
    "101": {"encoder_hidden_dim": 384, "encoder_ffn_dim": 2048, "decoder_in_channels": [384, 384, 384]},
}


@pytest.mark.parametrize("size", DETECTORS)
def test_totals_of_transformers(size):
    backbone = _resnet_config(size)
    backbone.out_features = STAGES[1:]
    config = RTDetrConfig(backbone_config=backbone, num_labels=80, freeze_backbone_batch_norms=False, **DETECTORS[size])
    with torch.device("meta"):
        reference, ours = RTDetrForObjectDetection(config), build_model(f"rtdetr-r{size}vd")
    extra = 256  # the padding's row of the denoising embedding
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in reference.parameters()) - extra
