"""transformers' D-FINE and DEIMv2, loaded into the shipped models: the same maps, logits and boxes on random weights.

Tolerance 1e-4, on images of 128 pixels; whole detectors in float64.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from transformers import Deimv2Config, Deimv2ForObjectDetection, DFineConfig, DFineForObjectDetection, HGNetV2Config

from nextdetr.cli.main import run
from nextdetr.errors import WeightsError
from nextdetr.models.graph import build_model
from nextdetr.weights.layouts.detectors import detector_kind, detector_notes, detector_to_ours, shipped_model_for
from nextdetr.weights.start import start_model
from tests.reference.test_detector_weights_parity import CLASSES, QUERIES, SIDE, _compare, _loaded, _random

B0 = {
    "stem_channels": [3, 16, 16],
    "stage_in_channels": [16, 64, 256, 512],
    "stage_mid_channels": [16, 32, 64, 128],
    "stage_out_channels": [64, 256, 512, 1024],
    "hidden_sizes": [64, 256, 512, 1024],
    "stage_num_blocks": [1, 1, 2, 1],
    "stage_numb_of_layers": [3, 3, 3, 3],
    "use_learnable_affine_block": True,
}
B5 = {
    "stem_channels": [3, 32, 64],
    "stage_in_channels": [64, 128, 512, 1024],
    "stage_mid_channels": [64, 128, 256, 512],
    "stage_out_channels": [128, 512, 1024, 2048],
    "hidden_sizes": [128, 512, 1024, 2048],
    "stage_num_blocks": [1, 2, 5, 2],
}
SIZES = {
    "dfine-n": {
        "backbone_config": {**B0, "out_indices": [3, 4]}, "encoder_in_channels": [512, 1024], "feat_strides": [16, 32],
        "encoder_hidden_dim": 128, "encode_proj_layers": [1], "encoder_ffn_dim": 512, "hidden_expansion": 0.34,
        "depth_mult": 0.5, "decoder_in_channels": [128, 128], "d_model": 128, "decoder_ffn_dim": 512,
        "num_feature_levels": 2, "decoder_layers": 3, "decoder_n_points": [6, 6],
    },
    "dfine-s": {
        "backbone_config": {**B0, "out_indices": [2, 3, 4]}, "encoder_in_channels": [256, 512, 1024],
        "hidden_expansion": 0.5, "depth_mult": 0.34, "decoder_layers": 3, "decoder_n_points": [3, 6, 3],
    },
    "dfine-x": {
        "backbone_config": {**B5, "out_indices": [2, 3, 4]}, "encoder_hidden_dim": 384, "encoder_ffn_dim": 2048,
        "decoder_in_channels": [384, 384, 384], "decoder_n_points": [3, 6, 3], "reg_scale": 8.0,
    },
}  # fmt: skip


def _settled(reference):
    """Give back what `_random` drew for settings, which the files have as parameters."""
    with torch.no_grad():
        reference.model.decoder.up.fill_(reference.config.up)
        reference.model.decoder.reg_scale.fill_(reference.config.reg_scale)
    return reference


def reference_model(name, **settings):
    """A random D-FINE of transformers of a published size."""
    made = {**SIZES[name], **settings}
    backbone = HGNetV2Config(**made.pop("backbone_config"))
    config = DFineConfig(
        backbone_config=backbone, num_labels=CLASSES, num_queries=QUERIES, freeze_backbone_batch_norms=False, **made
    )
    return _settled(_random(DFineForObjectDetection(config)))


@pytest.mark.parametrize("name", ["dfine-n", "dfine-s", pytest.param("dfine-x", marks=pytest.mark.slow)])
def test_whole_detector(name):
    torch.manual_seed(3)
    reference = reference_model(name)
    state = reference.state_dict()
    assert detector_kind(state) == "dfine-transformers"
    assert shipped_model_for("dfine-transformers", state, reference.config.to_dict()) == name
    ours = _loaded(reference, name)
    _compare(reference.double(), ours.double())  # float32 differs by 1e-3 at single queries, whose boxes are far out
    # Their denoising embedding has a row of padding.
    padding = reference.config.d_model
    settings = 2  # `up` and `reg_scale`, which are parameters there and none of ours
    theirs = sum(p.numel() for p in reference.parameters())
    assert sum(p.numel() for p in ours.parameters()) == theirs - padding - settings


def test_maps():
    torch.manual_seed(4)
    reference = reference_model("dfine-n")
    ours = _loaded(reference, "dfine-n").double()
    images = torch.rand(2, 3, SIDE, SIDE).double()
    with torch.no_grad():
        expected = reference.double().model(images, output_hidden_states=True)
        maps = ours.decoder_inputs(images)
    shapes = [tuple(level.shape[1:]) for level in maps]
    assert shapes == [(128, 8, 8), (128, 4, 4)]
    for level, theirs in zip(maps, expected.encoder_last_hidden_state, strict=True):
        torch.testing.assert_close(level / theirs.std(), theirs / theirs.std(), atol=1e-4, rtol=0)


def test_another_activation_is_said():
    torch.manual_seed(5)
    reference = reference_model("dfine-n", decoder_activation_function="silu")
    ours = _loaded(reference_model("dfine-n"), "dfine-n")
    notes = detector_notes("dfine-transformers", reference.state_dict(), ours, reference.config.to_dict())
    assert any("silu" in note for note in notes)
    silu = {"decoder_activation_function": "silu"}
    with torch.device("meta"):
        deim = build_model("deim-n", num_classes=CLASSES)
    assert detector_notes("dfine-transformers", {}, deim, silu) == []  # as DEIM trains them
    assert any("relu" in note for note in detector_notes("dfine-transformers", {}, deim, {}))


def test_an_earlier_layer_in_evaluation_is_said():
    with torch.device("meta"):
        ours = build_model("dfine-n", num_classes=CLASSES)
    for last, said in ((-1, False), (2, False), (1, True)):
        notes = detector_notes("dfine-transformers", {}, ours, {"eval_idx": last, "decoder_layers": 3})
        assert any("its layer 2 of 3" in note for note in notes) == said


STAGES = {  # of the three-stage backbones of DEIMv2's smallest
    "stage_in_channels": [16, 64, 256], "stage_mid_channels": [16, 32, 64], "stage_downsample": [False, True, True],
    "stage_light_block": [False, False, True], "stage_numb_of_layers": [3, 3, 3], "stage_downsample_strides": [2, 2, 2],
    "stem_channels": [3, 16, 16], "use_learnable_affine_block": True, "depths": [1, 1, 1], "out_indices": [3],
}  # fmt: skip
LITE = {
    "encoder_type": "lite", "hidden_expansion": 0.34, "depth_mult": 0.5, "decoder_n_points": [4, 2], "use_gateway": False,
    "share_bbox_head": True, "feat_strides": [16, 32],
}  # fmt: skip
DEIM = {
    "deimv2-atto": {
        **LITE, "encoder_in_channels": [256], "encoder_hidden_dim": 64, "d_model": 64, "decoder_ffn_dim": 160,
        "decoder_in_channels": [64, 64],
        "backbone_config": {
            **STAGES, "stage_out_channels": [64, 256, 256], "hidden_sizes": [64, 256, 256], "stage_num_blocks": [1, 1, 1],
            "stage_kernel_size": [3, 3, 3],
        },
    },
    "deimv2-pico": {
        **LITE, "encoder_in_channels": [512], "encoder_hidden_dim": 112, "d_model": 112, "decoder_ffn_dim": 320,
        "decoder_in_channels": [112, 112],
        "backbone_config": {
            **STAGES, "stage_out_channels": [64, 256, 512], "hidden_sizes": [64, 256, 512], "stage_num_blocks": [1, 1, 2],
            "stage_kernel_size": [3, 3, 5],
        },
    },
    "deimv2-n": {**SIZES["dfine-n"], "encoder_fuse_op": "sum"},
}  # fmt: skip


class _Once(nn.Module):
    """A position head that is asked once for a forward pass, as in the authors' code."""

    def __init__(self, head, layers):
        super().__init__()
        self.head, self.layers, self.calls = head, layers, 0

    def forward(self, boxes):
        if self.calls % self.layers == 0:
            self.kept = self.head(boxes)
        self.calls += 1
        return self.kept


def deim_reference(name):
    """A random DEIMv2 of transformers, brought back to what its authors compute (see ``models/deim.py``)."""
    made = {"num_feature_levels": 2, "decoder_layers": 3, **DEIM[name]}
    backbone = HGNetV2Config(**made.pop("backbone_config"))
    config = Deimv2Config(
        backbone_config=backbone, num_labels=CLASSES, num_queries=QUERIES, freeze_backbone_batch_norms=False,
        decoder_activation_function="silu", **made,
    )  # fmt: skip
    reference = _settled(_random(Deimv2ForObjectDetection(config), encoder_gain=1.0))  # no norm is behind the encoder
    reference.model.enc_output = nn.Identity()
    state = {key: tensor.clone() for key, tensor in reference.state_dict().items()}
    model = reference.model
    heads = [reference.bbox_embed, model.decoder.bbox_embed, model.enc_bbox_head, model.decoder.pre_bbox_head]
    for head in (*heads, model.decoder.lqe_layers):
        for module in head.modules():
            if hasattr(module, "act"):
                module.act = nn.SiLU()
    model.decoder.query_pos_head = _Once(model.decoder.query_pos_head, config.decoder_layers)
    return reference, state


@pytest.mark.parametrize("name", DEIM)
def test_deim(name):
    torch.manual_seed(6)
    reference, state = deim_reference(name)
    assert detector_kind(state) == "deimv2-transformers"
    assert shipped_model_for("deimv2-transformers", state, reference.config.to_dict()) == name
    ours = build_model(name, num_classes=CLASSES).eval()
    with pytest.warns(UserWarning, match="transformers computes DEIMv2 otherwise than its authors"):
        mapped = detector_to_ours("deimv2-transformers", state, ours, reference.config.to_dict())
    result = ours.load_state_dict(mapped, strict=False)
    assert not result.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in result.missing_keys)
    _compare(reference.double(), ours.double())
    theirs = sum(p.numel() for p in reference.parameters())
    assert sum(p.numel() for p in ours.parameters()) == theirs - reference.config.d_model - 2


def test_a_shared_box_head_that_is_saved_once():
    torch.manual_seed(7)
    _, state = deim_reference("deimv2-atto")
    once = {key: tensor for key, tensor in state.items() if ".bbox_embed." not in f".{key}" or ".bbox_embed.2." in key}
    assert len(once) < len(state)
    ours = build_model("deimv2-atto", num_classes=CLASSES)
    with pytest.warns(UserWarning, match="DEIMv2"):
        first, second = (detector_to_ours("deimv2-transformers", given, ours) for given in (state, once))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_other_settings_of_the_distributions_are_refused():
    torch.manual_seed(8)
    reference = reference_model("dfine-n")
    state = {**reference.state_dict(), "model.decoder.reg_scale": torch.tensor([8.0])}
    with pytest.raises(WeightsError, match="distributions have reg_scale 8, the model's 4"):
        detector_to_ours("dfine-transformers", state, build_model("dfine-n", num_classes=CLASSES))


def test_a_folder_opens_as_what_it_is(tmp_path):
    """As a user has it: a folder that transformers wrote gives model, classes and boxes; in our names it is the same."""
    torch.manual_seed(9)
    reference = reference_model("dfine-n")
    reference.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        started = start_model("dfine-n", weights=tmp_path, whole=True)
    assert started.model.num_classes == CLASSES
    expected = _loaded(reference, "dfine-n").state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in started.model.state_dict().items())


def test_a_folder_of_deim_says_what_is_left_out(tmp_path, capsys):
    torch.manual_seed(10)
    reference, _ = deim_reference("deimv2-atto")
    reference.model.enc_output = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64))
    reference.model.decoder.query_pos_head = reference.model.decoder.query_pos_head.head
    reference.save_pretrained(tmp_path)
    assert run(["weights", "inspect", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "deimv2-atto" in printed
    assert run(["info", "deimv2-atto", "--weights", str(tmp_path), "--image-size", "64"]) == 0
    assert "enc_output" in capsys.readouterr().err
