"""Class rows are matched by name, for any file format; rows of other classes stay as initialised."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from torch import nn
from transformers import ConvNextV2Config, RTDetrV2Config, RTDetrV2ForObjectDetection

from nextdetr.models.graph import build_model, parse_model_text
from nextdetr.models.modelfile import load_model_file
from nextdetr.weights.layouts.classes import COCO, match_classes
from nextdetr.weights.load import load_into, open_weights
from nextdetr.weights.start import start_model
from tests.helpers import TINY_MODEL
from tests.weights.test_detectors import _on_convnext
from tests.weights.torch_files import ultralytics

PER_CLASS = ("enc_score_head.weight", "enc_score_head.bias", "dec_score_head.0.weight", "denoising_class_embed.weight")
ATTO = "rtdetr-l-convnextv2-atto"


def carried(model, start, row, rows):
    """Check that the model's class rows are the given ones, and those of other classes the initial ones."""
    state = model.state_dict()
    for name in PER_CLASS:
        key = f"rows.{row}.{name}"
        for index in range(len(state[key])):
            expected = rows[name][index] if index in rows[name] else start[key][index]
            assert torch.equal(state[key][index], expected), (name, index)


def test_names_are_matched_as_people_write_them():
    assert match_classes(["cat", "dog"], ["dog", "fox"]) == [(0, 1)]
    assert match_classes(["Traffic Light", "dining-table", "sofa"], ["couch", "traffic_light", "diningtable"]) == [
        (0, 2), (1, 0), (2, 1),
    ]  # fmt: skip
    assert match_classes(["a", "a"], ["a", "a"]) == [(0, 0), (1, 1)]
    assert match_classes(["a", "a"], ["a"]) == [(0, 0)]
    assert match_classes(["Cat", "cat"], ["CAT", "cat"]) == [(0, 0), (1, 1)]
    assert match_classes(["Cat", "cAt"], ["CAT"]) == []  # which one?
    assert match_classes([], ["a"]) == match_classes(["a"], []) == []


def test_a_pickled_model_of_ultralytics_brings_its_names(tmp_path):
    """`names` is in the pickled module; the classes of the file are coin and key."""
    ours = build_model(parse_model_text(TINY_MODEL, "m.yaml"))
    with ultralytics() as detection_model:
        pickled = detection_model()
        rows = copy.deepcopy(ours.rows)
        for projection in rows[3].input_proj:  # theirs number the parts
            projection.__class__ = nn.Sequential
            projection._modules = {"0": projection._modules["conv"], "1": projection._modules["bn"]}
        pickled.model, pickled.tied = rows, None
        for parameter in pickled.parameters():
            parameter.data.normal_()
        del pickled.tied
        for module in list(pickled.modules()):
            module.__class__ = module.__class__ if module is pickled else nn.Module
        torch.save({"model": pickled.half(), "ema": None}, tmp_path / "best.pt")
        theirs = {name.removeprefix("model.3."): tensor.float() for name, tensor in pickled.state_dict().items()}
    file, identity = open_weights(tmp_path / "best.pt")
    assert (identity.kind, identity.classes, identity.licence) == ("rtdetr-ultralytics", ["coin", "key"], "AGPL-3.0")
    model = build_model(parse_model_text(TINY_MODEL, "m.yaml"), num_classes=3)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_into(model, file, classes_new=["key", "nut", "bolt"])
    carried(model, start, 3, {name: {0: theirs[name][1]} for name in PER_CLASS})
    assert (report.missing, report.unexpected) == ([], [])
    assert "1 of the model's 3 classes are carried over by name (key)" in report.text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of transformers with names, and a BatchNorm epsilon that is not ours."""
    torch.manual_seed(0)
    backbone = ConvNextV2Config(
        depths=[2, 2, 6, 2], hidden_sizes=[40, 80, 160, 320], out_features=["stage2", "stage3", "stage4"]
    )
    config = RTDetrV2Config(
        backbone_config=backbone, encoder_in_channels=[80, 160, 320], num_queries=40, decoder_offset_scale=0.8,
        id2label={0: "cat", 1: "dog", 2: "cow"}, label2id={"cat": 0, "dog": 1, "cow": 2},
    )  # fmt: skip
    model = RTDetrV2ForObjectDetection(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    path = tmp_path_factory.mktemp("transformers") / "rtdetr"
    model.save_pretrained(path)
    return path, model.state_dict()


def test_a_folder_of_transformers_brings_its_names_and_its_settings(folder):
    path, theirs = folder
    torch.manual_seed(3)
    started = start_model(ATTO, weights=path, classes=["fox", "cow"])
    torch.manual_seed(3)
    start = build_model(ATTO, num_classes=2).state_dict()
    heads = {
        "enc_score_head.weight": theirs["model.enc_score_head.weight"],
        "enc_score_head.bias": theirs["model.enc_score_head.bias"],
        "dec_score_head.0.weight": theirs["model.decoder.class_embed.0.weight"],
        "denoising_class_embed.weight": theirs["model.denoising_class_embed.weight"],
    }
    carried(started.model, start, 19, {name: {1: tensor[2]} for name, tensor in heads.items()})
    (report,) = started.reports
    assert (report.identity.kind, report.identity.model) == ("rtdetrv2-transformers", ATTO)
    assert report.missing == []
    assert all("hidden_states_norms" in name for name in report.unexpected)
    # config.json says how far offsets reach; without it, they would be taken as they are.
    name = "decoder.layers.0.cross_attn.sampling_offsets.weight"
    offsets = theirs["model.decoder.layers.0.encoder_attn.sampling_offsets.weight"]
    assert torch.allclose(started.model.state_dict()[f"rows.19.{name}"], offsets * 1.6)
    told = report.text()
    assert "BatchNorms add 1e-05 to the variance and the model's 0.001" in told
    assert "hidden_states_norms" in told


def test_notes_are_about_the_users_model(folder, tmp_path):
    (tmp_path / "m.yaml").write_text(load_model_file(ATTO).text + "\nbatch_norm_eps: 1.0e-5\n")
    (report,) = start_model(tmp_path / "m.yaml", weights=folder[0]).reports
    assert "BatchNorms" not in report.text()
    assert report.identity.classes == ["cat", "dog", "cow"]
    assert "hidden_states_norms" in report.text()


def test_numbered_labels_of_transformers_are_no_names(folder, tmp_path):
    shutil.copytree(folder[0], tmp_path / "f")
    config = json.loads((tmp_path / "f" / "config.json").read_text())
    config["id2label"] = {str(k): f"LABEL_{k}" for k in range(3)}
    (tmp_path / "f" / "config.json").write_text(json.dumps(config))
    _, identity = open_weights(tmp_path / "f")
    assert (identity.classes, identity.num_classes) == (None, 3)
    (report,) = start_model(ATTO, weights=tmp_path / "f", classes=["a", "b", "c"]).reports
    assert "its classes have no names; they are assumed to be the model's, in order" in report.text()
    (report,) = start_model(ATTO, weights=tmp_path / "f", classes=["a", "b"]).reports
    assert "does not name its classes" in report.text()


def test_labels_that_do_not_count_from_0_are_no_names(folder, tmp_path):
    """Which row has which name is not known then."""
    shutil.copytree(folder[0], tmp_path / "f")
    config = json.loads((tmp_path / "f" / "config.json").read_text())
    for labels, classes in (
        ({"1": "cat", "2": "dog", "3": "cow"}, None),
        ({"0": "cat", "1": "dog", "3": "cow"}, None),
        ({"2": "cow", "0": "cat", "1": "dog"}, ["cat", "dog", "cow"]),
    ):
        (tmp_path / "f" / "config.json").write_text(json.dumps(config | {"id2label": labels}))
        assert open_weights(tmp_path / "f")[1].classes == classes


def test_an_official_file_of_80_classes_is_cocos(tmp_path):
    state = _on_convnext()
    for name, tensor in state.items():
        if name.endswith("score_head.weight") or "dec_score_head" in name or "enc_score_head" in name:
            state[name] = torch.randn(80, *tensor.shape[1:])
    state["decoder.denoising_class_embed.weight"] = torch.randn(81, 256)
    torch.save({"ema": {"module": dict(state)}, "model": {}}, tmp_path / "official.pth")
    _, identity = open_weights(tmp_path / "official.pth")
    assert identity.classes == list(COCO)
    torch.manual_seed(3)
    started = start_model(
        ATTO, weights=tmp_path / "official.pth", classes=["dog", "mask", "Traffic light"], allow_partial=True
    )
    torch.manual_seed(3)
    start = build_model(ATTO, num_classes=3).state_dict()
    theirs = {name: state[f"decoder.{name}"] for name in PER_CLASS}
    carried(
        started.model, start, 19,
        {name: {0: tensor[COCO.index("dog")], 2: tensor[COCO.index("traffic light")]} for name, tensor in theirs.items()},
    )  # fmt: skip
    assert COCO.index("dog") == 16  # as the category of id 18 is numbered in published files
    assert COCO.index("toothbrush") == 79
