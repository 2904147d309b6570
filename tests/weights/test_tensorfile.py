"""Safetensors files as we write them: readable by safetensors, and the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from nextdetr.errors import WeightsError
from nextdetr.weights.checkpoint import extra_metadata, open_model, save_detector, save_opened
from nextdetr.weights.convert import convert
from nextdetr.weights.tensorfile import read_metadata, write_tensors

MODEL = "backbone:\n  - [-1, 1, convnextv2_atto, []]\nhead:\n  - [[2, 3, 4], 1, RTDETRDecoder, [nc, 32, 20, 4, 2, 1]]\n"


def test_two_saves_are_the_same_bytes_and_safetensors_reads_them(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 5), "a.half": torch.randn(7).half(), "a.counter": torch.tensor(5), "empty": torch.zeros(0, 4),
        "brain": torch.randn(2, 2).bfloat16(), "flags": torch.tensor([True, False, True]), "turned": torch.randn(4, 6).T,
    }  # fmt: skip
    metadata = {f"key{number}": f"Wert {number} ä 中\n\"'" for number in range(40)}
    first = write_tensors(tmp_path / "one.safetensors", tensors, metadata)
    second = write_tensors(tmp_path / "two.safetensors", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert first.read_bytes() == second.read_bytes()
    loaded = load_file(first)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype for name, tensor in tensors.items())
    with safe_open(first, framework="pt") as file:
        assert file.metadata() == metadata == read_metadata(first)


def test_a_file_without_tensors_and_a_missing_one(tmp_path: Path) -> None:
    assert load_file(write_tensors(tmp_path / "none.safetensors", {}, {"a": "b"})) == {}
    with pytest.raises(WeightsError, match=r"gone\.safetensors"):
        read_metadata(tmp_path / "gone.safetensors")


def test_further_metadata_travel_through_every_save(tmp_path: Path) -> None:
    model = tmp_path / "small.yaml"
    model.write_text(MODEL)
    opened = open_model(model, num_classes=2)
    first = save_detector(
        tmp_path / "first.safetensors", opened.model.state_dict(), model_text=MODEL, classes=["a", "b"], image_size=96,
        metrics={"AP": 0.5}, weights_licence="MIT", source_weights="x.pt", data="set", extra={"category_ids": "[3, 7]"},
    )  # fmt: skip
    again = open_model(first)
    assert extra_metadata(again.metadata) == {"category_ids": "[3, 7]"}
    assert save_opened(tmp_path / "again.safetensors", again).read_bytes() == first.read_bytes()
    converted, _ = convert(first, "nextdetr", tmp_path / "converted.safetensors")
    assert read_metadata(converted) == read_metadata(first)
    with pytest.raises(ValueError, match="classes"):
        save_detector(
            tmp_path / "no.safetensors", {}, model_text=MODEL, classes=["a"], image_size=96, extra={"classes": "x"}
        )
