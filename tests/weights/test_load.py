"""One entry for all weights: what is recognised, copied and refused, and that everything is reported."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from nextdetr import Detector
from nextdetr.cli.main import run
from nextdetr.errors import ModelFileError, WeightsError
from nextdetr.models.convnextv2 import SIZES
from nextdetr.models.graph import build_model, parse_model_text
from nextdetr.weights import load
from nextdetr.weights.checkpoint import save_detector
from nextdetr.weights.convert import save_backbone
from nextdetr.weights.layouts import table
from nextdetr.weights.load import load_into, open_weights
from nextdetr.weights.start import open_detector, start_model
from tests.helpers import TINY_MODEL, tiny_model
from tests.weights.layouts_of_original import original, sparse, v1

ATTO = SIZES["atto"][:2]


def model(text=TINY_MODEL, **options):
    return build_model(parse_model_text(text, "m.yaml"), **options)


def detector_file(path, classes, text=TINY_MODEL):
    built = model(text, num_classes=len(classes))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_()
    save_detector(path, built.state_dict(), model_text=text, classes=classes, image_size=96, weights_licence="CC0-1.0")
    return built


def pt(path, state):
    torch.save({"model": state}, path)
    return path


KINDS = {
    "convnextv2-original": lambda: original(*ATTO),
    "convnextv2-fcmae-sparse": lambda: sparse(original(*ATTO, classes=None)),
    "convnext-v1-original": lambda: v1(original(*ATTO)),
    "convnextv2-timm": lambda: timm.create_model("convnextv2_atto").state_dict(),
    "convnext-v1-timm": lambda: timm.create_model("convnext_atto").state_dict(),
}
LICENCES = {"convnext-v1-timm": "Apache-2.0", "convnext-v1-original": "unknown"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_backbone_layout_is_recognised_and_loads_whole(tmp_path, kind):
    path = pt(tmp_path / "b.pt", KINDS[kind]())
    _, identity = open_weights(path)
    assert (identity.kind, identity.model) == (kind, "convnextv2-atto")
    assert identity.num_classes == (None if "sparse" in kind else 1000)
    assert identity.licence == LICENCES.get(kind, "CC-BY-NC-4.0")
    built = model()
    head = {name: tensor.clone() for name, tensor in built.state_dict().items() if not name.startswith("rows.0.")}
    report = load_into(built, path, part="backbone")
    assert report.complete
    assert report.missing == []
    assert all(torch.equal(built.state_dict()[name], tensor) for name, tensor in head.items())
    assert len(report.loaded) == len(built.backbone.state_dict())


def test_a_backbone_of_another_size_names_both_sizes_and_changes_nothing(tmp_path):
    path = pt(tmp_path / "femto.pt", original(*SIZES["femto"][:2], classes=None))
    built = model()
    before = built.rows[0].stages[0][0].dwconv.weight.clone()
    with pytest.raises(WeightsError, match=r"femto\.pt: .* size femto, but the model's backbone is atto"):
        load_into(built, path, part="backbone")
    assert torch.equal(built.rows[0].stages[0][0].dwconv.weight, before)


def test_a_backbone_is_no_detector(tmp_path):
    path = pt(tmp_path / "b.pt", original(*ATTO))
    with pytest.raises(WeightsError, match="--backbone-weights"):
        load_into(model(), path)


def test_class_rows_are_carried_over_by_name(tmp_path):
    old = detector_file(tmp_path / "d.safetensors", ["cat", "dog", "cow"])
    new = model(num_classes=2)
    start = new.state_dict()["rows.3.enc_score_head.bias"].clone()
    report = load_into(new, tmp_path / "d.safetensors", classes_new=["fox", "cow"])
    for name in ("enc_score_head.weight", "dec_score_head.1.bias", "denoising_class_embed.weight"):
        assert torch.equal(new.state_dict()[f"rows.3.{name}"][1], old.state_dict()[f"rows.3.{name}"][2])
        assert f"rows.3.{name}" in report.reshaped
    assert new.state_dict()["rows.3.enc_score_head.bias"][0] == start[0]
    assert report.missing == report.unexpected == []
    assert "1 of the model's 2 classes are carried over by name (cow)" in report.text()
    assert report.by_module()["row 3 RTDETRDecoder"]["reshaped"] == 7


def test_the_same_classes_in_another_order_are_not_mixed_up(tmp_path):
    old = detector_file(tmp_path / "d.safetensors", ["cat", "dog"])
    new = model(num_classes=2)
    load_into(new, tmp_path / "d.safetensors", classes_new=["dog", "cat"])
    name = "rows.3.enc_score_head.bias"
    assert torch.equal(new.state_dict()[name], old.state_dict()[name].flip(0))


def test_everything_but_the_backbone_goes_under_another_backbone(tmp_path):
    old = detector_file(tmp_path / "d.safetensors", ["cat", "dog"])
    text = TINY_MODEL.replace("convnextv2_atto", "convnextv2_femto")
    backbone = pt(tmp_path / "femto.pt", original(*SIZES["femto"][:2]))
    (tmp_path / "femto.yaml").write_text(text)
    with pytest.raises(
        WeightsError, match="another size: its backbone is convnextv2_atto, and the model's is convnextv2_femto"
    ):
        load_into(model(text), tmp_path / "d.safetensors")
    started = start_model(tmp_path / "femto.yaml", weights=tmp_path / "d.safetensors", backbone_weights=backbone)
    head, body = started.reports
    assert head.part == "head"
    assert body.complete
    state = started.model.state_dict()
    assert torch.equal(state["rows.3.enc_output.0.weight"], old.state_dict()["rows.3.enc_output.0.weight"])
    # The rows that read the backbone have its width: shapes differ, and that is told.
    assert head.shapes["rows.1.conv.weight"] == ([32, 320, 1, 1], [32, 384, 1, 1])
    assert head.unexpected == []
    assert started.weights_licence == "CC0-1.0 and CC-BY-NC-4.0"
    assert started.classes == ["cat", "dog"]


def test_rows_are_matched_by_their_layers_where_the_files_count_differently(tmp_path):
    old = detector_file(tmp_path / "d.safetensors", ["cat", "dog"])
    text = TINY_MODEL.replace("  - [3, 1, Conv, [32, 1, 1]]", "  - [3, 1, Conv, [32, 1, 1]]\n  - [-1, 1, AIFI, [64, 2]]")
    text = text.replace("[[6, 5]", "[[7, 5]")
    new = model(text)
    report = load_into(new, tmp_path / "d.safetensors")
    assert torch.equal(new.rows[4].enc_output[0].weight, old.rows[3].enc_output[0].weight)
    assert {name.split(".")[1] for name in report.missing} == {"3"}  # the AIFI, which the file has not


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(tmp_path, value):
    state = original(*ATTO, classes=None)
    state["stages.2.1.pwconv1.weight"][3, 5] = value
    built = model()
    before = built.rows[0].downsample_layers[0][0].weight.clone()
    with pytest.raises(WeightsError, match=r"rows\.0\.stages\.2\.1\.pwconv1\.weight holds NaN or infinity"):
        load_into(built, pt(tmp_path / "b.pt", state), part="backbone")
    assert torch.equal(built.rows[0].downsample_layers[0][0].weight, before)


def test_a_tensor_of_whole_numbers_is_refused(tmp_path):
    state = original(*ATTO, classes=None)
    state["stages.2.1.pwconv1.weight"] = state["stages.2.1.pwconv1.weight"].to(torch.int8)
    with pytest.raises(WeightsError, match="is of type int8, but float32 is needed"):
        load_into(model(), pt(tmp_path / "b.pt", state), part="backbone")


def test_under_half_needs_to_be_allowed(tmp_path):
    built = detector_file(tmp_path / "whole.safetensors", ["cat", "dog"])
    few = {name: tensor for name, tensor in built.state_dict().items() if name.startswith("rows.3.")}
    save_detector(tmp_path / "d.safetensors", few, model_text=TINY_MODEL, classes=["cat", "dog"], image_size=64)
    with pytest.raises(WeightsError, match=r"only \d+ of the \d+ tensors .* --allow-partial"):
        load_into(model(), tmp_path / "d.safetensors")
    report = load_into(model(), tmp_path / "d.safetensors", allow_partial=True)
    assert sum(name.startswith("rows.0.") for name in report.missing) == len(built.backbone.state_dict())
    assert "row 0 convnextv2_atto: 0 loaded" in report.text()


def test_unknown_tensors_are_refused_or_told(tmp_path):
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="of no known layout"):
        open_weights(tmp_path / "x.safetensors")
    state = original(*ATTO) | {"extra.weight": torch.zeros(2)}
    report = load_into(model(), pt(tmp_path / "b.pt", state), part="backbone")
    assert set(report.unexpected) == {"extra.weight", "norm.weight", "norm.bias", "head.weight", "head.bias"}


def test_a_backbone_row_loads_any_layout_from_beside_its_file(tmp_path):
    state = original(*ATTO)
    pt(tmp_path / "atto.pt", state)
    path = tmp_path / "m.yaml"
    path.write_text(TINY_MODEL.replace("convnextv2_atto, []", "convnextv2_atto, [atto.pt]"))
    started = start_model(path)
    assert torch.equal(started.model.backbone.state_dict()["stages.0.0.grn.gamma"], state["stages.0.0.grn.gamma"])
    assert started.reports[0].complete
    with pytest.raises(ModelFileError, match=r"row 0 .* names weights"):
        build_model(path)


def test_a_backbone_that_saw_other_pixels_is_told_of(tmp_path):
    """FCMAE normalises as ImageNet's; what a detector's backbone has seen, only its model file says."""
    state = model().backbone.state_dict()
    for pretraining, told in (("fcmae", True), ("unknown", False)):
        file = save_backbone(
            tmp_path / "b.safetensors", state, weights_licence="MIT", source_weights="x", pretraining=pretraining
        )
        report = start_model(tiny_model(tmp_path), backbone_weights=file).reports[0]
        assert any("does not say normalize: imagenet" in note for note in report.notes) is told
    assert not start_model("nextdetr-atto", backbone_weights=file).reports[0].notes


def test_the_facade_starts_from_weights_and_keeps_their_licence(tmp_path):
    detector_file(tmp_path / "d.safetensors", ["cat", "dog"])
    detector = Detector(tiny_model(tmp_path), weights=tmp_path / "d.safetensors")
    assert detector.classes == ["cat", "dog"]
    assert detector.load_reports[0].complete
    assert detector.opened.trained
    saved = detector.save(tmp_path / "again.safetensors")
    opened, reports = open_detector(saved)
    assert opened.metadata["weights_licence"] == "CC0-1.0"
    assert (opened.image_size, reports) == (96, [])
    backbone = save_backbone(tmp_path / "b.safetensors", original(*ATTO), weights_licence="none", source_weights="none")
    fresh = Detector(tiny_model(tmp_path), backbone_weights=backbone)
    assert not fresh.opened.trained
    assert fresh.load_reports[0].identity.kind == "nextdetr-backbone"


def test_inspect(tmp_path, capsys):
    path = pt(tmp_path / "b.pt", original(*ATTO))
    assert run(["weights", "inspect", str(path), "--model", "nextdetr-atto", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "convnextv2-original"
    assert found["weights_licence"] == "CC-BY-NC-4.0"
    assert found["fit"]["fits"] is True
    assert run(["weights", "inspect", str(path), "--model", "rtdetr-l-convnextv2-femto"]) == 0
    text = capsys.readouterr().out
    assert "fits rtdetr-l-convnextv2-femto: no" in text
    assert "size atto, but the model's backbone is femto" in text
    assert run(["weights", "inspect", str(tmp_path / "no.pt"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "WeightsError"


def test_weights_are_recognised_once_until_one_of_their_files_changes(tmp_path, monkeypatch):
    recognised = []
    monkeypatch.setattr(load, "identify", lambda file: recognised.append(file.path) or table.identify(file))
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(original(*ATTO), folder / "model.safetensors")
    for path in (folder, folder / "model.safetensors"):
        recognised.clear()
        assert {open_weights(path)[1].licence for _ in range(3)} == {"CC-BY-NC-4.0"}
        assert len(recognised) == 1
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
        assert {open_weights(path)[1].licence for _ in range(3)} == {"mit and CC-BY-NC-4.0"}
        assert len(recognised) == 2
        (folder / "README.md").unlink()
    save_file(sparse(original(*ATTO, classes=None)), folder / "model.safetensors")
    assert open_weights(folder)[1].kind == "convnextv2-fcmae-sparse"


def test_the_weights_used_last_stay_recognised(tmp_path, monkeypatch):
    recognised = []
    monkeypatch.setattr(load, "_MOST_RECOGNISED", 2)
    monkeypatch.setattr(load, "identify", lambda file: recognised.append(file.path.name) or table.identify(file))
    for name in "abc":
        detector_file(tmp_path / name, ("cell",))
    for name in "ababcb":
        open_weights(tmp_path / name)
    assert recognised == ["a", "b", "c"]
