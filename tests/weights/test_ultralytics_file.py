"""Detectors as checkpoints for ultralytics, and back: every tensor, the classes, the size and the model file."""

from __future__ import annotations

import re

import pytest
import torch
import yaml

from nextdetr.cli.main import run
from nextdetr.errors import ConfigError, WeightsError
from nextdetr.models.graph import build_model, build_skeleton, load_model_file, parse_model_text
from nextdetr.weights.checkpoint import open_model, save_detector
from nextdetr.weights.convert import convert, save_backbone
from nextdetr.weights.layouts.rtdetr_ultralytics import model_text
from nextdetr.weights.layouts.table import identify
from nextdetr.weights.load import load_into, open_weights
from nextdetr.weights.reader import WeightsFile
from tests.docs.blocks import ROOT
from tests.helpers import TINY_MODEL
from tests.weights.layouts_of_original import one_stage, original
from tests.weights.test_detectors import _ultralytics

CLASSES = ["ring", "coin"]
#: Of rows that ultralytics has itself.
STOCK = """
nc: 2
backbone:
  - [-1, 1, Conv, [16, 3, 4]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
head:
  - [[1, 2], 1, RTDETRDecoder, [nc, 32, 20, 2, 4, 2, 64]]
"""


def detector(path, text=TINY_MODEL, image_size=96):
    """One of our files with random weights, including BatchNorm's statistics."""
    torch.manual_seed(0)
    model = build_model(parse_model_text(text, "m.yaml"), num_classes=len(CLASSES))
    state = {name: torch.rand_like(t) if t.is_floating_point() else t + 7 for name, t in model.state_dict().items()}
    return save_detector(
        path, state, model_text=model.text, classes=CLASSES, image_size=image_size, weights_licence="CC0-1.0"
    )  # fmt: skip


def test_there_and_back_is_exact(tmp_path):
    text = TINY_MODEL + "normalize: imagenet\n"
    source = detector(tmp_path / "d.safetensors", text)
    there, _ = convert(source, "ultralytics")
    assert there == tmp_path / "d-ultralytics.pt"
    content = torch.load(there, weights_only=True)
    assert content["names"] == dict(enumerate(CLASSES))
    assert content["train_args"] == {"task": "detect", "imgsz": 96}
    assert content["yaml"]["nc"] == 2
    assert content["yaml"]["normalize"] == "imagenet"
    assert content["yaml"]["classifier"] is False
    last = len(parse_model_text(TINY_MODEL, "m.yaml").rows) - 1
    assert all(name.startswith("model.") for name in content["model"])
    assert f"model.{last}.input_proj.0.1.running_var" in content["model"]
    back, identity = convert(there, "nextdetr", tmp_path / "back.safetensors")
    assert (identity.kind, identity.licence, identity.classes) == ("rtdetr-ultralytics", "CC0-1.0", CLASSES)
    first, again = open_model(source), open_model(back)
    assert again.model.text == text
    assert (again.classes, again.image_size) == (CLASSES, 96)
    assert "speed" not in again.metadata
    theirs = again.model.state_dict()
    assert theirs.keys() == first.model.state_dict().keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in first.model.state_dict().items())


def test_a_model_of_stock_rows_goes_there_as_it_is(tmp_path):
    content = torch.load(convert(detector(tmp_path / "d.safetensors", STOCK), "ultralytics")[0], weights_only=True)
    assert "classifier" not in content["yaml"]
    assert content["yaml"]["backbone"][0] == [-1, 1, "Conv", [16, 3, 4]]


def test_a_checkpoint_states_its_model_by_its_yaml(tmp_path):
    """As one that was trained there does: the mapping with keys of that framework's own, half precision, a classifier."""
    content = torch.load(convert(detector(tmp_path / "d.safetensors"), "ultralytics")[0], weights_only=True)
    recipe = content["yaml"] | {"channels": 3, "yaml_file": "/gone/tiny.yaml", "scale": "", "activation": "nn.SiLU()"}
    recipe["backbone"][0][3] = ["/gone/atto.pt"]
    state = {name: t.half() if t.is_floating_point() else t for name, t in content["model"].items()}
    state["model.0.head.weight"] = torch.zeros(1000, 320).half()
    torch.save({"model": state, "yaml": recipe, "names": content["names"]}, tmp_path / "best.pt")
    file, identity = open_weights(tmp_path / "best.pt")
    assert identity.model is None
    assert "fits no shipped model" not in " ".join(identity.notes)
    stated = yaml.safe_load(identity.model_text)
    assert stated["backbone"] == [[-1, 1, recipe["backbone"][0][2], []]]
    assert stated.keys() <= {"nc", "scales", "backbone", "head"}
    model = build_model(parse_model_text(TINY_MODEL, "m.yaml"), num_classes=2)
    report = load_into(model, (file, identity))
    assert report.complete
    assert report.unexpected == ["rows.0.head.weight"]
    back, _ = convert(tmp_path / "best.pt", "nextdetr")
    assert open_model(back).model.row_infos == model.row_infos


def test_the_recipe_and_the_shipped_file_are_one_model(tmp_path):
    shipped = load_model_file("rtdetr-l-convnextv2-atto")
    state = _ultralytics(build_skeleton(shipped, num_classes=3), 19)
    recipe = {**shipped.mapping, "nc": 3, "scale": "l", "yaml_file": "rtdetr-l-ConvNeXtV2.yaml"}
    for changes, text in (({}, None), ({"normalize": "imagenet"}, "normalize: imagenet")):
        extra = {"yaml": recipe | changes, "names": ["a", "b", "c"]}
        identity = identify(WeightsFile(tmp_path / "best.pt", "torch", state, extra=extra))
        assert identity.classes == ["a", "b", "c"]
        if text is None:
            assert (identity.model, identity.model_text) == ("rtdetr-l-convnextv2-atto", None)
        else:
            assert identity.model is None
            assert text in identity.model_text
    text = model_text({**shipped.mapping, "nc": 3, "yaml_file": "x"})
    assert [row[2:] for row in yaml.safe_load(text)["head"]] == [row[2:] for row in shipped.mapping["head"]]
    assert model_text({"backbone": 7}) is None
    assert model_text({"backbone": [[-1, 1]], "head": []}) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TINY_MODEL.replace("RTDETRDecoder", "DFINEDecoder"), "is DFINEDecoder, which ultralytics does not have"),
        (TINY_MODEL.replace("[nc, 32, 20, 2,", "[nc, 32, 20, [3, 2],"), "a list of points"),
        (TINY_MODEL.replace("[nc, 32, 20, 2, 4, 2, 64]", "[nc, 32, 20, 2, 4, 2, 64, 0, {dense: True}]"), "or options"),
        (STOCK + "normalize: imagenet\n", "normalize: imagenet, which ultralytics does not have"),
        (STOCK + "batch_norm_eps: 0.01\n", "batch_norm_eps: 0.01, which ultralytics does not have"),
    ],
)
def test_what_ultralytics_does_not_have_is_refused(tmp_path, text, said):
    assert text != TINY_MODEL
    source = detector(tmp_path / "d.safetensors", text)
    with pytest.raises(WeightsError, match=said):
        convert(source, "ultralytics")
    assert not (tmp_path / "d-ultralytics.pt").exists()


def test_a_backbone_alone_is_refused_and_so_is_another_ending(tmp_path, capsys):
    state = original(*one_stage("atto"), classes=None)
    backbone = save_backbone(tmp_path / "b.safetensors", state, weights_licence="none", source_weights="none")
    assert run(["weights", "convert", str(backbone), "--to", "ultralytics"]) == 2
    assert "backbone_weights=FILE" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"written as \*\.pt"):
        convert(detector(tmp_path / "d.safetensors"), "ultralytics", tmp_path / "x.safetensors")


def test_nothing_of_ours_imports_ultralytics_or_the_plug_in():
    """Both are AGPL-3.0; an import-linter contract says the same of the package."""
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    assert len(files) > 300
    imported = re.compile(r"^\s*(?:from|import)\s+(?:nextdetr_)?ultralytics\b", re.MULTILINE)
    assert [str(path) for path in files if imported.search(path.read_text(encoding="utf-8"))] == []
