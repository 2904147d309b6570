"""Rows of two model files are matched by layer, strides and arguments; classes by their names, wherever a row has them."""

from __future__ import annotations

import torch

from nextdetr.models.graph import build_model, parse_model_text
from nextdetr.weights.checkpoint import save_detector
from nextdetr.weights.load import load_into

SMALL_DENSE = """
backbone:
  - [-1, 1, convnextv2_atto, []]
head:
  - [4, 1, Conv, [32, 1, 1]]
  - [[3, 5], 1, RTDETRDecoder, [nc, 32, 20, 4, 2, 1, 64, {dense: True}]]
"""


def test_rows_are_matched_by_what_they_compute_and_not_by_name(tmp_path):
    """atto into atto-p2: no row at stride 4 gets weights of another row, and levels are matched by stride."""
    old, new = build_model("nextdetr-atto", num_classes=2), build_model("nextdetr-atto-p2", num_classes=2)
    save_detector(
        tmp_path / "a.safetensors", old.state_dict(), model_text=old.text, classes=["a", "b"], image_size=64
    )  # fmt: skip
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    report = load_into(new, tmp_path / "a.safetensors")
    after, theirs = new.state_dict(), old.state_dict()
    pairs = {**{k: k for k in range(13)}, 13: 21, 14: 22, 15: 23, 16: 24, 17: 25, 18: 26}
    for row, place in pairs.items():
        for name, tensor in old.rows[row].state_dict().items():
            assert torch.equal(after[f"rows.{place}.{name}"], tensor), f"row {row}"
    for place in range(13, 21):  # stride 4, which the file does not have
        assert all(
            torch.equal(after[f"rows.{place}.{n}"], before[f"rows.{place}.{n}"]) for n in new.rows[place].state_dict()
        )
    for level in range(3):  # strides 8, 16, 32 are its levels 0, 1, 2, and the model's 1, 2, 3
        name = "conv.weight"
        assert torch.equal(after[f"rows.27.input_proj.{level + 1}.{name}"], theirs[f"rows.19.input_proj.{level}.{name}"])
    assert torch.equal(after["rows.27.input_proj.0.conv.weight"], before["rows.27.input_proj.0.conv.weight"])
    assert torch.equal(after["rows.27.enc_score_head.weight"], theirs["rows.19.enc_score_head.weight"])
    touched = {name for name in after if not torch.equal(after[name], before[name])}
    assert not touched & set(report.missing)
    assert any("sampling_offsets" in name for name in report.missing)
    assert "the file's row 19 DFINEDecoder" in report.by_module()


def test_heads_of_other_arguments_do_not_match(tmp_path):
    """Attention of eight heads has the tensors of four, and computes something else."""
    old, new = build_model("nextdetr-atto-rtdetr", num_classes=1), build_model("nextdetr-atto", num_classes=1)
    save_detector(tmp_path / "a.safetensors", old.state_dict(), model_text=old.text, classes=["a"], image_size=64)
    report = load_into(new, tmp_path / "a.safetensors", allow_partial=True)
    assert all(f"rows.2.{name}" in report.missing for name in new.rows[2].state_dict() if "pos" not in name)


def test_every_tensor_of_a_class_is_carried_by_name(tmp_path):
    """Those of the dense head as well, which stood in the file's order of classes."""
    text = SMALL_DENSE
    old = build_model(parse_model_text(text, "dense"), num_classes=3)
    save_detector(tmp_path / "a.safetensors", old.state_dict(), model_text=text, classes=["a", "b", "c"], image_size=64)
    new = build_model(parse_model_text(text, "dense"), num_classes=3)
    load_into(new, tmp_path / "a.safetensors", classes_new=["c", "a", "b"])
    names = new.class_parameters()
    assert any("dense_head" in name for name in names)
    for name in names:
        assert torch.equal(new.state_dict()[name], old.state_dict()[name][[2, 0, 1]]), name
    rest = set(new.state_dict()) - set(names)
    assert all(torch.equal(new.state_dict()[name], old.state_dict()[name]) for name in rest)
