"""Licences and teachers of several files in one line; they pass through every conversion."""

from __future__ import annotations

import pytest
import torch

from nextdetr.models.graph import build_model, parse_model_text
from nextdetr.weights.checkpoint import open_model, save_detector
from nextdetr.weights.convert import convert
from nextdetr.weights.licences import joined_licences, joined_teachers, with_owners
from nextdetr.weights.load import open_weights
from nextdetr.weights.start import open_detector, start_model
from tests.helpers import TINY_MODEL

TAUGHT = {"teacher": "big.pt", "teacher_licence": "AGPL-3.0"}


def taught(path):
    """A detector file that states a teacher."""
    torch.manual_seed(0)
    model = build_model(parse_model_text(TINY_MODEL, "tiny"))
    return save_detector(
        path, model.state_dict(), model_text=TINY_MODEL, classes=["a", "b"], image_size=64, weights_licence="Apache-2.0",
        source_weights="first.pt", extra=TAUGHT,
    )  # fmt: skip


def test_each_licence_is_there_once():
    assert joined_licences([]) == joined_licences(["none", "", "none"]) == "none"
    assert joined_licences(["Apache-2.0 and CC-BY-NC-4.0", "cc-by-nc-4.0", "none"]) == "Apache-2.0 and CC-BY-NC-4.0"
    assert joined_licences(["unknown", "CC BY-NC 4.0", "ccby-nc4.0"]) == "unknown and CC BY-NC 4.0"


def test_teachers_of_several_detectors():
    assert joined_teachers() == joined_teachers({}, {"teacher_licence": "x"}) == {}
    assert joined_teachers(TAUGHT, {}, TAUGHT) == TAUGHT
    both = joined_teachers(TAUGHT, {"teacher": "other.onnx"})
    assert both == {"teacher": "big.pt and other.onnx", "teacher_licence": "AGPL-3.0 and unknown"}
    assert joined_teachers(both, TAUGHT) == both


@pytest.mark.parametrize(
    ("own", "stated", "both"),
    [
        ("none", None, "none"), ("none", "mit", "mit"), ("Apache-2.0", "apache-2.0", "Apache-2.0"),
        ("cc-by-nc-4.0 and Apache-2.0", "cc-by-nc-4.0", "cc-by-nc-4.0 and Apache-2.0"),
        ("mit and Apache-2.0", "mit-apache-2.0", "mit and Apache-2.0"), ("Apache-2.0", "mit", "mit and Apache-2.0"),
    ],
)  # fmt: skip
def test_what_an_owner_states_is_added_once(own, stated, both):
    assert with_owners(own, stated)[0] == both


@pytest.mark.parametrize("to", ["original", "timm", "transformers"])
def test_a_backbone_keeps_the_teachers_of_its_detector(tmp_path, to):
    written, _ = convert(taught(tmp_path / "d.safetensors"), to)
    file, identity = open_weights(convert(written, "nextdetr", tmp_path / "b.safetensors")[0])
    assert identity.taught == TAUGHT
    assert (file.metadata["weights_licence"], file.metadata["source_weights"]) == ("Apache-2.0", "first.pt")


def test_a_detector_keeps_its_teachers(tmp_path):
    path = taught(tmp_path / "d.safetensors")
    written, _ = convert(path, "ultralytics")
    metadata = open_model(convert(written, "nextdetr", tmp_path / "back.safetensors")[0]).metadata
    assert {key: metadata[key] for key in TAUGHT} == TAUGHT
    assert metadata["source_weights"] == "first.pt"
    (tmp_path / "m.yaml").write_text(TINY_MODEL)
    assert start_model(tmp_path / "m.yaml", weights=path, classes=["b", "c"]).origin.taught == TAUGHT
    opened, _ = open_detector(tmp_path / "m.yaml", backbone_weights=path)
    assert {key: opened.metadata[key] for key in TAUGHT} == TAUGHT
