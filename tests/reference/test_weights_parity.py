"""A file of another library, loaded here, computes what that library computes; and what is written here serves there."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import convnext_tiny
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ConvNextV2Model,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
)

from nextdetr.models.convnextv2 import SIZES, convnextv2
from nextdetr.models.graph import build_model, parse_model_text
from nextdetr.weights.convert import convert, save_backbone
from nextdetr.weights.load import load_into
from tests.helpers import TINY_MODEL

TOLERANCE = 1e-4


def randomise(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.1 if parameter.numel() == parameter.shape[-1] else 0.04)
            if ("norm" in name and name.endswith("weight")) or "scale" in name or name.endswith(".gamma"):
                parameter.add_(1.0)
    return model.eval()


def maps_of(module, stages, x):
    maps = []
    hooks = [stage.register_forward_hook(lambda _m, _i, out: maps.append(out)) for stage in stages]
    module(x)
    for hook in hooks:
        hook.remove()
    return maps


def assert_close(found, expected):
    assert len(found) == len(expected) == 4
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.std() > 0.05  # a comparison of zeros would say nothing
        assert (ours - theirs).abs().max().item() <= TOLERANCE


def loaded(path, size):
    model = build_model(parse_model_text(TINY_MODEL.replace("atto", size), "m.yaml")).eval()
    report = load_into(model, path, part="backbone")
    assert report.complete
    return model.backbone, report


def timm_model(name):
    model = randomise(timm.create_model(name, num_classes=1000))
    return model, model.stages


def torchvision_model(_):
    model = randomise(convnext_tiny())
    return model, [model.features[i] for i in (1, 3, 5, 7)]


def transformers_model(kind):
    config, model = {
        "v1": (ConvNextConfig, ConvNextModel),
        "v2": (ConvNextV2Config, ConvNextV2Model),
        "dinov3": (DINOv3ConvNextConfig, DINOv3ConvNextModel),
    }[kind]
    built = randomise(model(config(depths=list(SIZES["atto"].depths), hidden_sizes=list(SIZES["atto"].dims))))
    return built, built.model.stages if kind == "dinov3" else built.encoder.stages


@pytest.mark.parametrize(
    ("make", "name", "size", "kind"),
    [
        (timm_model, "convnextv2_atto", "atto", "convnextv2-timm"),
        (timm_model, "convnextv2_tiny", "tiny", "convnextv2-timm"),
        (timm_model, "convnext_atto", "atto", "convnext-v1-timm"),
        (timm_model, "convnext_tiny", "tiny", "convnext-v1-timm"),
        (torchvision_model, "", "tiny", "convnext-v1-torchvision"),
        (transformers_model, "v2", "atto", "convnextv2-transformers"),
        (transformers_model, "dinov3", "atto", "convnext-v1-dinov3"),
        (transformers_model, "v1", "atto", "convnext-v1-transformers"),
    ],
)
def test_features_are_the_librarys(tmp_path, make, name, size, kind):
    theirs, stages = make(name)
    save_file({key: tensor.contiguous() for key, tensor in theirs.state_dict().items()}, tmp_path / "w.safetensors")
    ours, report = loaded(tmp_path / "w.safetensors", size)
    assert report.identity.kind == kind
    x = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        assert_close(ours(x), maps_of(theirs, stages, x))


def test_a_backbone_of_ours_serves_in_timm_and_in_transformers(tmp_path):
    ours = randomise(convnextv2("atto", num_classes=11))
    source = save_backbone(tmp_path / "b.safetensors", ours.state_dict(), weights_licence="none", source_weights="none")
    x = torch.randn(2, 3, 64, 96)
    in_timm = timm.create_model("convnextv2_atto", num_classes=11).eval()
    in_timm.load_state_dict(load_file(convert(source, "timm")[0]))
    in_transformers = ConvNextV2ForImageClassification.from_pretrained(convert(source, "transformers")[0]).eval()
    with torch.inference_mode():
        expected = ours(x)
        assert expected.std() > 0.05
        assert (in_timm(x) - expected).abs().max() <= TOLERANCE
        assert (in_transformers(x).logits - expected).abs().max() <= TOLERANCE


def test_a_backbone_without_a_head_opens_as_the_base_model(tmp_path):
    ours = randomise(convnextv2("atto"))
    source = save_backbone(tmp_path / "b.safetensors", ours.state_dict(), weights_licence="none", source_weights="none")
    theirs = ConvNextV2Model.from_pretrained(convert(source, "transformers")[0]).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert_close(ours(x), theirs(x, output_hidden_states=True).hidden_states[-4:])
