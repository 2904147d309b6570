"""Features and logits against timm and transformers, float32, the same random weights, fresh inputs."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.convnext import ConvNeXt
from torchvision.models import convnext_tiny
from transformers import ConvNextV2Config, ConvNextV2ForImageClassification, ConvNextV2Model

from nextdetr.models.convnextv2 import PUBLISHED, SIZES, ConvNeXtV2, convnextv2
from nextdetr.weights.layouts.convnext_timm import from_timm
from nextdetr.weights.layouts.convnext_transformers import from_transformers

RUN = ("atto", "femto", "pico", "nano", "tiny")
NARROWED = ("base", "large", "huge")  # their depths, at an eighth of their widths
TOLERANCE = 1e-4


def _randomise(model):
    """Every parameter off its start; GRN and biases are zero there and would hide a mistake."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.1 if parameter.numel() == parameter.shape[-1] else 0.04)
            if ("norm" in name and name.endswith("weight")) or name.endswith("layer_scale_parameter"):
                parameter.add_(1.0)
    return model.eval()


def _narrow(size):
    depths, dims = SIZES[size][:2]
    return depths, tuple(dim // 8 for dim in dims)


def _assert_close(ours, theirs):
    assert len(ours) == len(theirs)
    for found, expected in zip(ours, theirs, strict=True):
        assert found.shape == expected.shape
        assert expected.std() > 0.05  # a comparison of zeros would say nothing
        assert (found - expected).abs().max().item() <= TOLERANCE


def _timm_features(model, x):
    maps = []
    hooks = [stage.register_forward_hook(lambda _m, _i, out: maps.append(out)) for stage in model.stages]
    logits = model(x)
    for hook in hooks:
        hook.remove()
    return maps, logits


def _transformers_config(depths, dims, **options):
    return ConvNextV2Config(depths=list(depths), hidden_sizes=list(dims), **options)


def _check_against_timm(theirs, depths, dims, x, **options):
    state = from_timm(theirs.state_dict())
    classifier = ConvNeXtV2(depths, dims, num_classes=theirs.num_classes, **options).eval()
    classifier.load_state_dict(state)
    features = ConvNeXtV2(depths, dims, **options).eval()
    result = features.load_state_dict(state, strict=False)
    assert result.missing_keys == []
    assert set(result.unexpected_keys) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    with torch.inference_mode():
        maps, logits = _timm_features(theirs, x)
        _assert_close(features(x), maps)
        _assert_close([classifier(x)], [logits])


@pytest.mark.parametrize("size", RUN)
def test_timm(size):
    theirs = _randomise(timm.create_model(f"convnextv2_{size}", num_classes=11))
    _check_against_timm(theirs, *SIZES[size][:2], torch.randn(2, 3, 64, 96))


@pytest.mark.parametrize("size", NARROWED)
def test_timm_narrowed(size):
    depths, dims = _narrow(size)
    theirs = _randomise(ConvNeXt(depths=depths, dims=dims, use_grn=True, ls_init_value=None, num_classes=11))
    _check_against_timm(theirs, depths, dims, torch.randn(2, 3, 64, 96))


def test_timm_features_only_names():
    theirs = _randomise(timm.create_model("convnextv2_atto", features_only=True))
    ours = convnextv2("atto").eval()
    ours.load_state_dict(from_timm(theirs.state_dict()))
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        _assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("size", PUBLISHED)
def test_names_and_shapes_of_all_sizes(size):
    with torch.device("meta"):
        ours = convnextv2(size, num_classes=1000).state_dict()
        timm_state = from_timm(timm.create_model(f"convnextv2_{size}").state_dict())
        config = _transformers_config(*SIZES[size][:2], num_labels=1000)
        transformers_state = from_transformers(ConvNextV2ForImageClassification(config).state_dict())
    shapes = {name: tensor.shape for name, tensor in ours.items()}
    assert {name: tensor.shape for name, tensor in timm_state.items()} == shapes
    assert {name: tensor.shape for name, tensor in transformers_state.items()} == shapes


def _check_against_transformers(depths, dims, x):
    theirs = _randomise(ConvNextV2Model(_transformers_config(depths, dims)))
    ours = ConvNeXtV2(depths, dims).eval()
    result = ours.load_state_dict(from_transformers(theirs.state_dict()), strict=False)
    assert result.missing_keys == []
    assert set(result.unexpected_keys) == {"norm.weight", "norm.bias"}
    with torch.inference_mode():
        _assert_close(ours(x), theirs(x, output_hidden_states=True).hidden_states[-4:])


@pytest.mark.parametrize("size", RUN)
def test_transformers(size):
    _check_against_transformers(*SIZES[size][:2], torch.randn(2, 3, 64, 96))


@pytest.mark.parametrize("size", NARROWED)
def test_transformers_narrowed(size):
    _check_against_transformers(*_narrow(size), torch.randn(2, 3, 64, 96))


def test_transformers_classifier():
    depths, dims = SIZES["atto"][:2]
    theirs = _randomise(
        ConvNextV2ForImageClassification(_transformers_config(depths, dims, num_labels=5, layer_norm_eps=1e-6))
    )
    ours = ConvNeXtV2(depths, dims, num_classes=5).eval()
    ours.load_state_dict(from_transformers(theirs.state_dict()))
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        _assert_close([ours(x)], [theirs(x).logits])


def test_gradients_equal_those_of_transformers():
    depths, dims = (1, 1, 2, 1), (8, 12, 16, 24)
    theirs = _randomise(ConvNextV2Model(_transformers_config(depths, dims))).train()
    ours = ConvNeXtV2(depths, dims).train()
    ours.load_state_dict(from_transformers(theirs.state_dict()), strict=False)
    x = torch.randn(3, 3, 72, 104)
    hidden = theirs(x, output_hidden_states=True).hidden_states[-4:]
    weights = [torch.randn_like(f) / f.numel() ** 0.5 for f in hidden]
    sum((f * w).sum() for f, w in zip(hidden, weights, strict=True)).backward()
    sum((f * w).sum() for f, w in zip(ours(x), weights, strict=True)).backward()
    grads = from_transformers({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
    for name, parameter in ours.named_parameters():
        expected = grads[name]
        assert (parameter.grad - expected).abs().max() <= TOLERANCE * max(1.0, expected.abs().max().item()), name


@pytest.mark.parametrize("name", ["convnext_atto", "convnext_tiny"])
def test_timm_v1(name):
    theirs = timm.create_model(name, num_classes=11)
    _randomise(theirs)
    depths, dims = SIZES[name.removeprefix("convnext_")][:2]
    _check_against_timm(theirs, depths, dims, torch.randn(2, 3, 64, 96), grn=False, layer_scale=1e-6)


def test_torchvision_v1_block():
    """torchvision's own V1 tiny, whose blocks share no code with timm's: the first block of each stage."""
    theirs = _randomise(convnext_tiny())
    depths, dims = SIZES["tiny"][:2]
    ours = ConvNeXtV2(depths, dims, grn=False, layer_scale=1e-6).eval()
    for stage, blocks in enumerate(ours.stages):
        block, reference = blocks[0], theirs.features[2 * stage + 1][0]
        source = {
            f"{m}.{p}": reference.block[i].state_dict()[p]
            for m, i in (("dwconv", 0), ("norm", 2), ("pwconv1", 3), ("pwconv2", 5))
            for p in ("weight", "bias")
        }
        block.load_state_dict({**source, "gamma": reference.layer_scale.flatten()})
        x = torch.randn(2, dims[stage], 12, 9)
        with torch.inference_mode():
            _assert_close([block(x)], [reference(x)])


def test_v1_layer_scale_starts_where_timm_starts():
    theirs = timm.create_model("convnext_atto")
    ours = convnextv2("atto", grn=False, layer_scale=1e-6)
    assert torch.equal(ours.stages[0][0].gamma, theirs.stages[0].blocks[0].gamma)
