"""Whole detectors of transformers, loaded into ours: the same logits and boxes on the same random weights, float32."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextV2Config,
    DINOv3ConvNextConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)

from nextdetr.models.graph import build_model
from nextdetr.models.modelfile import load_model_file, parse_model_text
from nextdetr.weights.layouts.detectors import detector_kind, detector_notes, detector_to_ours, shipped_model_for

CLASSES, QUERIES, SIDE = 3, 40, 128
STAGES = ["stage2", "stage3", "stage4"]
R18 = {"encoder_in_channels": [128, 256, 512], "hidden_expansion": 0.5, "decoder_layers": 3}


def _resnet():
    return RTDetrResNetConfig(
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )


def _convnext():
    return ConvNextV2Config(
        depths=[2, 2, 6, 2], hidden_sizes=[40, 80, 160, 320], out_features=["stage2", "stage3", "stage4"]
    )


def _random(reference, encoder_gain=1.8):
    """Give every tensor a value of its own, at a scale that keeps the signal alive."""
    with torch.no_grad():
        for name, tensor in reference.state_dict().items():
            if not tensor.is_floating_point() or "points_scale" in name:
                continue
            if "running_var" in name:
                tensor.uniform_(0.5, 1.5)
            elif "sampling_offsets.weight" in name:
                tensor.normal_(std=0.15)
            elif tensor.dim() > 1 and "grn" not in name:
                gain = encoder_gain if name.startswith(("model.backbone.", "model.encoder")) else 1.2
                tensor.normal_(std=gain * tensor[0].numel() ** -0.5)
            else:
                tensor.add_(torch.randn_like(tensor) * 0.1)
    for module in reference.modules():  # transformers puts a LayerNorm on every map that a ConvNeXt backbone returns
        if hasattr(module, "hidden_states_norms"):
            for key in module.hidden_states_norms:
                module.hidden_states_norms[key] = nn.Identity()
    return reference.eval()


def _loaded(reference, name, batch_norm_eps=None):
    text = load_model_file(name).text
    if batch_norm_eps is not None:
        text += f"batch_norm_eps: {batch_norm_eps}\n"
    ours = build_model(parse_model_text(text, name), num_classes=CLASSES).eval()
    state = dict(reference.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = detector_to_ours(detector_kind(state), state, ours, reference.config.to_dict())
    result = ours.load_state_dict(mapped, strict=False)
    assert not result.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in result.missing_keys)
    return ours


def _compare(reference, ours):
    images = torch.rand(2, 3, SIDE // 16, SIDE // 16).repeat_interleave(16, 2).repeat_interleave(16, 3)
    images = images.to(next(ours.parameters()).dtype)
    with torch.no_grad():
        expected, output = reference(pixel_values=images), ours(images, queries=QUERIES)
    boxes = expected.pred_boxes.clamp(0, 1)  # D-FINE's reach beyond the image there; all of ours are cut to it
    joined = torch.cat((output.logits, output.boxes), -1)
    order = torch.cdist(joined, torch.cat((expected.logits, boxes), -1)).argmin(-1)
    for b, row in enumerate(order):
        assert len(set(row.tolist())) == QUERIES
        torch.testing.assert_close(output.logits[b], expected.logits[b, row], atol=1e-4, rtol=0)
        torch.testing.assert_close(output.boxes[b], boxes[b, row], atol=1e-4, rtol=0)
    assert expected.logits.std(dim=1).min() > 0.01  # the queries differ by a hundred times the tolerance


@pytest.mark.parametrize("scale", [0.5, 0.8])
@pytest.mark.parametrize("frozen", [True, False])
def test_v2_on_r18vd(scale, frozen):
    torch.manual_seed(1)
    config = RTDetrV2Config(
        backbone_config=_resnet(), num_labels=CLASSES, num_queries=QUERIES, decoder_offset_scale=scale,
        freeze_backbone_batch_norms=frozen, **R18,
    )  # fmt: skip
    reference = _random(RTDetrV2ForObjectDetection(config))
    assert detector_kind(reference.state_dict()) == "rtdetrv2-transformers"
    _compare(reference, _loaded(reference, "rtdetr-r18vd"))


def test_v1_on_r18vd():
    torch.manual_seed(2)
    config = RTDetrConfig(backbone_config=_resnet(), num_labels=CLASSES, num_queries=QUERIES, **R18)
    reference = _random(RTDetrForObjectDetection(config))
    assert detector_kind(reference.state_dict()) == "rtdetr-transformers"
    assert shipped_model_for("rtdetr-transformers", reference.state_dict()) == "rtdetr-r18vd"
    ours = _loaded(reference, "rtdetr-r18vd")
    _compare(reference, ours)


@pytest.mark.parametrize("second", [False, True])
def test_convnextv2_backbone(second):
    torch.manual_seed(5)
    make, model = (RTDetrV2Config, RTDetrV2ForObjectDetection) if second else (RTDetrConfig, RTDetrForObjectDetection)
    config = make(
        backbone_config=_convnext(), encoder_in_channels=[80, 160, 320], num_labels=CLASSES, num_queries=QUERIES,
        freeze_backbone_batch_norms=False,
    )  # fmt: skip
    reference = _random(model(config))
    _compare(reference, _loaded(reference, "rtdetr-l-convnextv2-atto", batch_norm_eps="1.0e-5"))
    kind = detector_kind(reference.state_dict())
    assert shipped_model_for(kind, reference.state_dict()) == "rtdetr-l-convnextv2-atto"


@pytest.mark.parametrize("kind", [ConvNextConfig, DINOv3ConvNextConfig])
def test_convnext_of_the_first_version(kind):
    """LayerScale goes into the weights, and GRN is zero."""
    torch.manual_seed(6)
    backbone = kind(depths=[2, 2, 6, 2], hidden_sizes=[40, 80, 160, 320], out_features=["stage2", "stage3", "stage4"])
    config = RTDetrConfig(
        backbone_config=backbone, encoder_in_channels=[80, 160, 320], num_labels=CLASSES, num_queries=QUERIES,
        freeze_backbone_batch_norms=False,
    )  # fmt: skip
    reference = _random(RTDetrForObjectDetection(config))
    for name, tensor in reference.state_dict().items():
        if name.endswith((".gamma", ".layer_scale_parameter")):
            tensor.fill_(0.7)
    assert shipped_model_for("rtdetr-transformers", reference.state_dict()) == "rtdetr-l-convnextv2-atto"
    _compare(reference, _loaded(reference, "rtdetr-l-convnextv2-atto", batch_norm_eps="1.0e-5"))


def test_names_of_release_4():
    """Files on the Hub are older than the names of release 5; both give the same tensors."""
    torch.manual_seed(4)
    config = RTDetrConfig(
        backbone_config=_convnext(), encoder_in_channels=[80, 160, 320], num_labels=CLASSES, num_queries=QUERIES,
    )  # fmt: skip
    state = _random(RTDetrForObjectDetection(config)).state_dict()
    older = {}
    for name, tensor in state.items():
        name = name.replace(".o_proj.", ".out_proj.").replace("encoder.aifi.", "encoder.encoder.")
        name = re.sub(r"(layers\.\d+)\.mlp\.fc", r"\1.fc", name)
        older[name] = tensor
        if name.startswith(("model.decoder.class_embed", "model.decoder.bbox_embed")):
            older[name.removeprefix("model.decoder.")] = tensor
    assert set(older) != set(state)
    ours = build_model("rtdetr-l-convnextv2-atto", num_classes=CLASSES)
    with pytest.warns(UserWarning, match=r"BatchNorms add 1e-05 to the variance and the model's 0\.001"):
        first = detector_to_ours("rtdetr-transformers", state, ours)
    with pytest.warns(UserWarning, match="BatchNorms"):
        second = detector_to_ours("rtdetr-transformers", older, ours)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_names_do_not_show():
    config = RTDetrV2Config(backbone_config=_convnext(), encoder_in_channels=[80, 160, 320], decoder_method="discrete")
    state = {"model.backbone.model.hidden_states_norms.stage2.weight": torch.ones(1)}
    model = build_model("rtdetr-l-convnextv2-atto")
    notes = detector_notes("rtdetrv2-transformers", state, model, config.to_dict())
    assert len(notes) == 3
    assert "BatchNorms" in notes[0]
    assert "nearest cell" in notes[1]
    assert "hidden_states_norms" in notes[2]
