"""What a file is: its config.json decides, then the names of its tensors; and whose licence it has."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from nextdetr import Detector
from nextdetr.engine.teacher import open_teacher, open_trained
from nextdetr.errors import WeightsError
from nextdetr.models.graph import build_model, parse_model_text
from nextdetr.weights import remote
from nextdetr.weights.checkpoint import save_detector
from nextdetr.weights.folder import read_card
from nextdetr.weights.layouts.convnext_timm import to_timm
from nextdetr.weights.layouts.convnext_transformers import to_transformers
from nextdetr.weights.layouts.foreign import stated_type
from nextdetr.weights.load import open_weights
from nextdetr.weights.start import resolve_model, start_model
from tests.helpers import TINY_MODEL
from tests.weights.layouts_of_original import SMALL, original

RT_DETR = (
    "model.encoder.lateral_convs.0.conv.weight", "model.decoder.layers.0.encoder_attn.sampling_offsets.weight",
    "model.decoder.layers.0.encoder_attn.value_proj.weight", "model.enc_score_head.weight",
)  # fmt: skip
OFFICIAL = (
    "decoder.decoder.layers.0.cross_attn.sampling_offsets.weight", "decoder.decoder.layers.0.cross_attn.value_proj.weight",
    "decoder.dec_score_head.0.weight",
)  # fmt: skip


def folder(path, names, config=None, card=None):
    path.mkdir(parents=True, exist_ok=True)
    tensors = names if isinstance(names, dict) else {name: torch.ones(3, 2) for name in names}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    if card is not None:
        (path / "README.md").write_text(card)
    return path


def card(**entries):
    return "---\n" + "".join(f"{key}: {value}\n" for key, value in entries.items()) + "---\n# A model\n"


def kind_of(path):
    return open_weights(path)[1].kind


def licence_of(path):
    return open_weights(path)[1].licence


def refused(path, message):
    with pytest.raises(WeightsError, match=message) as caught:
        open_weights(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_config_decides(tmp_path):
    assert kind_of(folder(tmp_path / "a", RT_DETR, {"model_type": "rt_detr"})) == "rtdetr-transformers"
    assert kind_of(folder(tmp_path / "b", RT_DETR)) == "rtdetr-transformers"
    refused(folder(tmp_path / "c", RT_DETR, {"model_type": "deformable_detr"}), r"says Deformable DETR \(deformable_detr\)")
    refused(
        folder(tmp_path / "d", RT_DETR, {"model_type": "new_one"}), "says new_one, which NextDETR cannot open; .*rt_detr,"
    )
    refused(folder(tmp_path / "e", RT_DETR, {"model_type": "convnextv2"}), "says convnextv2, but its 4 tensors")
    refused(tmp_path / "c" / "model.safetensors", "Deformable DETR")  # the file of a folder, named by itself
    with pytest.raises(WeightsError, match="Deformable DETR"):
        resolve_model(tmp_path / "c")


def test_published_weights_are_no_model():
    with pytest.raises(
        WeightsError, match="name rtdetr-r50vd as the model and give it --weights PekingU/rtdetr_r50vd@main"
    ):
        resolve_model("PekingU/rtdetr_r50vd@main")
    with pytest.raises(WeightsError, match="--backbone-weights convnext-atto-in1k"):
        resolve_model("convnext-atto-in1k")
    assert resolve_model("nobody/knows") == "nobody/knows"


def test_timms_config_decides_too(tmp_path):
    state = to_timm(original(*SMALL))
    config = {"architecture": "convnextv2_atto", "pretrained_cfg": {"tag": "fcmae", "license": "cc-by-nc-4.0"}}
    path = folder(tmp_path / "a", state, config)
    assert (kind_of(path), licence_of(path)) == ("convnextv2-timm", "CC-BY-NC-4.0")
    refused(folder(tmp_path / "b", state, config | {"architecture": "edgenext_small"}), "says edgenext_small, which")
    assert kind_of(folder(tmp_path / "c", state, config | {"model_type": "timm_wrapper"})) == "convnextv2-timm"
    assert stated_type({"architecture": "LSTM"}) is None  # some other program's word


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("names", "more", "what"),
    [
        (RT_DETR, "model.decoder.lqe_layers.0.reg_conf.layers.0.weight", "D-FINE, DEIM"),
        (RT_DETR, "reading_order.encoder.weight", "PP-DocLayout"),
        (RT_DETR, "model.decoder_norm.weight", "no known layout"),
        (OFFICIAL, "decoder.pre_bbox_head.layers.0.weight", "D-FINE, DEIM"),
        (OFFICIAL, "decoder.decoder.lqe_layers.0.reg_conf.layers.0.weight", "D-FINE, DEIM"),
        (OFFICIAL, "decoder.decoder.extra.weight", "no known layout"),
        (("backbone.layer1.0.conv1.weight",), "fc.weight", "a ResNet, which NextDETR cannot open"),
    ],
)
def test_names_that_differ_decide_without_a_config(tmp_path, names, more, what, prefix):
    known = [f"{prefix}{name}" for name in names]
    if "decoder" in known[1 % len(known)]:
        assert kind_of(folder(tmp_path / "whole", known)) in ("rtdetr-transformers", "rtdetr-official")
        without = [name for name in known if "value_proj" not in name]  # neither D-FINE nor DEIM has it
        refused(folder(tmp_path / "less", without), "no known layout")
    refused(folder(tmp_path / "more", [*known, prefix + more]), what)


def test_a_detector_that_contradicts_itself_is_refused_in_a_sentence(tmp_path):
    projections = {f"model.decoder.layers.0.self_attn.{part}_proj.weight": torch.ones(4, 4) for part in "qkv"}
    projections["model.decoder.layers.0.self_attn.k_proj.weight"] = torch.ones(4, 5)
    names = {name: torch.ones(3, 2) for name in RT_DETR} | projections
    path = folder(tmp_path / "a", names, {"model_type": "rt_detr"})
    assert open_weights(path)[1].model is None
    with pytest.raises(WeightsError, match="a: not a complete rtdetr-transformers checkpoint") as caught:
        start_model("rtdetr-r18vd", weights=path, allow_partial=True)
    assert "\n" not in str(caught.value)
    for setting, value in (("batch_norm_eps", "tiny"), ("decoder_offset_scale", [0.5]), ("batch_norm_eps", 10**400)):
        path = folder(tmp_path / "b", RT_DETR, {"model_type": "rt_detr", setting: value})
        with pytest.raises(WeightsError, match=f"b: config.json says {setting}: .*, which is no number"):
            start_model("rtdetr-r18vd", weights=path, allow_partial=True)
    path = folder(tmp_path / "c", RT_DETR, {"model_type": "rt_detr", "batch_norm_eps": None})
    with pytest.raises(WeightsError, match="none of its tensors fits"):  # a setting left out
        start_model("rtdetr-r18vd", weights=path, allow_partial=True)


def test_the_card_of_a_folder_states_the_licence(tmp_path):
    config = {"model_type": "rt_detr"}
    assert licence_of(folder(tmp_path / "a", RT_DETR, config)) == "unknown"
    path = folder(tmp_path / "b", RT_DETR, config, card(license="mit"))
    assert licence_of(path) == "mit"
    assert any("model card" in note for note in open_weights(path)[1].notes)
    named = card(license="other", license_name="dinov3-license")
    assert licence_of(folder(tmp_path / "c", RT_DETR, config, named)) == "dinov3-license"
    save_file({name: torch.ones(3, 2) for name in RT_DETR}, tmp_path / "c" / "model.safetensors", {"weights_licence": "x"})
    assert licence_of(tmp_path / "c") == "x"  # the file's own word goes first


def test_a_card_does_not_lift_what_published_weights_ask_for(tmp_path):
    state = {name.removeprefix("convnextv2."): tensor for name, tensor in to_transformers(original(*SMALL)).items()}
    config = {"model_type": "convnextv2"}
    path = folder(tmp_path / "a", state, config, card(license="apache-2.0"))
    assert licence_of(path) == "apache-2.0 and CC-BY-NC-4.0"
    assert any("states apache-2.0" in note for note in open_weights(path)[1].notes)
    assert licence_of(folder(tmp_path / "b", state, config, card(license="cc-by-nc-4.0"))) == "CC-BY-NC-4.0"


def test_a_detector_has_the_licence_of_its_backbone_too(tmp_path):
    v2 = (
        "model.backbone.model.embeddings.patch_embeddings.weight",
        "model.backbone.model.encoder.stages.0.layers.0.grn.weight",
    )
    dinov3 = ("model.backbone.model.model.stages.0.downsample_layers.0.weight",)
    config = {"model_type": "rt_detr"}
    for name, more, licence in (("a", v2, "CC-BY-NC-4.0"), ("b", dinov3, "dinov3-license"), ("c", v2[:1], None)):
        path = folder(tmp_path / name, (*RT_DETR, *more), config, card(license="apache-2.0"))
        identity = open_weights(path)[1]
        assert identity.licence == ("apache-2.0" if licence is None else f"apache-2.0 and {licence}")
        assert any("its backbone is" in note for note in identity.notes) == (licence is not None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# No card",
        "---\n---\n",
        "---\n[\n---\n",
        "---\nlicense: [a, b]\n---\n",
        "text\n---\nlicense: mit\n---\n",
        "---\n- a\n---\n",
    ],
)
def test_what_is_no_card_says_nothing(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert read_card(tmp_path / "README.md") == {}
    assert read_card(tmp_path / "none.md") == {}


@pytest.mark.parametrize(
    ("weights", "stated", "expected"),
    [
        ("none", None, "none"),
        ("none", "CC-BY-NC-4.0", "cc-by-nc-4.0"),
        ("Apache-2.0", None, "Apache-2.0"),
        ("Apache-2.0", "MIT", "mit and Apache-2.0"),
        ("AGPL-3.0 and CC-BY-NC-4.0", None, "AGPL-3.0 and CC-BY-NC-4.0"),
        ("Apache-2.0 and unknown", None, "Apache-2.0 and unknown"),
    ],
)
def test_what_the_owner_of_one_of_our_detectors_states_goes_along(tmp_path, monkeypatch, weights, stated, expected):
    model = build_model(parse_model_text(TINY_MODEL, "tiny"))
    file = save_detector(
        tmp_path / "mine.safetensors", model.state_dict(), model_text=TINY_MODEL, classes=["a", "b"], image_size=64,
        weights_licence=weights,
    )  # fmt: skip
    assert licence_of(file) == weights
    path = Detector(file, device="cpu").save_pretrained(tmp_path / "published", licence=stated)
    assert licence_of(path) == licence_of(path / "model.safetensors") == expected
    assert start_model(path, classes=["a", "c"]).weights_licence == expected
    assert open_teacher(path).to_metadata()["teacher_licence"] == expected
    pinned = f"owner/name@{'0' * 40}"
    monkeypatch.setattr(remote, "_fetched", lambda *_: remote.Located(path, pinned, read_card(path / "README.md")))
    opened, _ = open_trained("owner/name", option="graft")
    assert {opened.metadata["weights_licence"], opened.metadata["source_weights"]} == {expected, pinned}
