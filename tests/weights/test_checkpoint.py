"""Detector files with damaged metadata: one sentence that names the file, exit code 2, and little work."""

from __future__ import annotations

import json
import time

import pytest
from safetensors.torch import load_file, save_file

from nextdetr.cli.main import run
from nextdetr.errors import WeightsError
from nextdetr.models.graph import build_model, parse_model_text
from nextdetr.weights.checkpoint import open_model, save_detector
from nextdetr.weights.convert import convert
from nextdetr.weights.start import start_model
from nextdetr.weights.tensorfile import read_metadata
from tests.helpers import TINY_MODEL, tiny_model

MANY = "  - [-1, 1000, Conv, [32, 1, 1]]\n"  # a thousand layers in 33 bytes
HUGE = TINY_MODEL.replace("  - [[6, 5]", 200 * MANY + "  - [[6, 5]")
DAMAGED = {
    "classes are no JSON": ({"classes": '["a"'}, "classes is not a list of names"),
    "classes are deep": ({"classes": "[" * 100_000}, "classes is not a list of names"),
    "classes are an object": ({"classes": '{"a": 1}'}, "classes is not a list of names"),
    "classes are numbers": ({"classes": "[1, 2]"}, "classes is not a list of names"),
    "there are no classes": ({"classes": "[]"}, "classes is not a list of names"),
    "one class too many": ({"classes": '["a", "b", "c"]'}, "names 3 classes, but its tensors are for 2"),
    "image size of 80": ({"image_size": "80"}, "image_size is '80'"),
    "image size of words": ({"image_size": "large"}, "image_size is 'large'"),
    "image size without end": ({"image_size": "9" * 9999}, "image_size is '999"),
    "image size below 0": ({"image_size": "-64"}, "image_size is '-64'"),
    "no YAML": ({"model": "[unfinished"}, "the model file in its metadata cannot be built"),
    "200,000 layers": ({"model": HUGE}, "far more layers than the weights file has tensors"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "whole.safetensors"
    state = build_model(parse_model_text(TINY_MODEL, "m.yaml"), num_classes=2).state_dict()
    return save_detector(path, state, model_text=TINY_MODEL, classes=["a", "b"], image_size=64)


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_metadata_are_a_sentence(whole, tmp_path, capsys, name):
    change, cause = DAMAGED[name]
    path = tmp_path / "damaged.safetensors"
    save_file(load_file(whole), path, metadata=read_metadata(whole) | change)
    started = time.process_time()
    with pytest.raises(WeightsError) as caught:
        open_model(path)
    assert cause in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert run(["info", str(path), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "WeightsError"
    assert time.process_time() - started < 15  # the last one took minutes, and gigabytes


@pytest.mark.parametrize("name", ["no YAML", "200,000 layers"])
def test_other_doors_are_no_slower(whole, tmp_path, name):
    path = tmp_path / "damaged.safetensors"
    save_file(load_file(whole), path, metadata=read_metadata(whole) | DAMAGED[name][0])
    doors = (
        lambda: start_model(path), lambda: convert(path, "nextdetr", tmp_path / "a.safetensors"),
        lambda: start_model(tiny_model(tmp_path), weights=path),
    )  # fmt: skip
    for door in doors:
        started = time.process_time()
        with pytest.raises(WeightsError, match=r"damaged\.safetensors"):
            door()
        assert time.process_time() - started < 10
