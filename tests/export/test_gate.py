from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from nextdetr import ConfigError, Detector
from nextdetr.cli.main import run
from nextdetr.export.gate import compare, drawn_images
from nextdetr.inference.contract import Contract
from nextdetr.inference.runtimes import choose_runtime
from nextdetr.installation import install_command
from nextdetr.structures import DetectorOutput
from tests.helpers import tiny_model


def fixed(logits, boxes):
    return lambda images: DetectorOutput(logits.clone(), boxes.clone())


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_file_whose_export_was_broken_off_says_so(kind, tmp_path, monkeypatch, caplog, capsys):
    detector = Detector(tiny_model(tmp_path), device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr("nextdetr.export.run.stamp_passed", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            detector.export(kind, output=tmp_path / "out", quiet=True)
    assert "broken off" not in caplog.text  # by the export itself, which opens the file to judge it
    Detector(tmp_path / "out")
    assert "its export was broken off before the file was compared" in caplog.text
    assert run(["info", str(tmp_path / "out")]) == 0
    assert "passed its gate in: not judged" in capsys.readouterr().out
    caplog.clear()
    detector.export(kind, output=tmp_path / "out", quiet=True)
    Detector(tmp_path / "out")
    assert "broken off" not in caplog.text


def test_the_gate_matches_by_box_whatever_the_order():
    logits, boxes = torch.randn(1, 40, 3), torch.rand(1, 40, 4) * 0.4 + 0.3
    order = torch.randperm(40)
    found = compare(fixed(logits, boxes), fixed(logits[:, order], boxes[:, order]), [torch.zeros(3, 8, 8)], 1e-3)
    assert (found.matched, found.box, found.score, found.finite) == (1.0, 0.0, 0.0, True)


def test_the_gate_measures_the_differences():
    logits, boxes = torch.linspace(3, -1, 40).reshape(1, 40, 1), torch.rand(1, 40, 4) * 0.4 + 0.3
    moved = boxes.clone()
    moved[0, :, 0] += 4e-4
    found = compare(fixed(logits, boxes), fixed(logits, moved), [torch.zeros(3, 8, 8)], 1e-3)
    assert found.matched == 1.0
    assert found.box == pytest.approx(4e-4, rel=0.01)
    moved[0, 5] = torch.tensor([0.9, 0.1, 0.05, 0.05])
    found = compare(fixed(logits, boxes), fixed(logits, moved), [torch.zeros(3, 8, 8)], 1e-3)
    assert found.matched == pytest.approx(39 / 40)
    moved[0, 6] = torch.nan
    assert not compare(fixed(logits, boxes), fixed(logits, moved), [torch.zeros(3, 8, 8)], 1e-3).finite


def test_an_object_that_is_missing_or_added_counts_with_its_score():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.2]).logit().reshape(1, 4, 1)
    boxes = torch.tensor([[[0.1 + 0.2 * i, 0.5, 0.1, 0.1] for i in range(4)]])
    some, none = scores.clone(), torch.full_like(scores, -torch.inf)
    some[0, 1] = -torch.inf
    image = [torch.zeros(3, 8, 8)]
    missing = compare(fixed(scores, boxes), fixed(some, boxes), image, 1e-3)
    added = compare(fixed(some, boxes), fixed(scores, boxes), image, 1e-3)
    assert missing.score == added.score == pytest.approx(0.8)
    assert missing.matched == added.matched == pytest.approx(6 / 7)
    assert (missing.detections, added.detections) == (4, 3)
    assert compare(fixed(scores, boxes), fixed(none, boxes), image, None).score == pytest.approx(0.9)


def test_the_gate_sees_a_wrong_class():
    logits, boxes = torch.randn(1, 30, 2), torch.rand(1, 30, 4) * 0.4 + 0.3
    found = compare(fixed(logits, boxes), fixed(logits.flip(2), boxes), [torch.zeros(3, 8, 8)], 1e-3)
    assert found.matched < 0.2


def test_drawn_images_are_8_bit_pictures():
    for image in drawn_images(2, 64, seed=int(torch.randint(1000, ()))):
        assert image.shape == (3, 64, 64)
        assert image.dtype == torch.float32
        assert torch.equal((image * 255).round() / 255, image)
        assert image.std() > 0.02


def test_the_terms_survive_their_metadata():
    contract = Contract(
        ["Größe", 'a "b"'], 320, 77, "uint8", "nhwc", raw=True, dynamic=True, precision="half", max_detections=154,
        details={"licence": "MIT"},
    )  # fmt: skip
    assert Contract.from_metadata(contract.to_metadata(), "x.onnx") == contract


@pytest.mark.parametrize(
    ("arguments", "package"),
    [([], "onnx"), (["--format", "openvino"], "openvino"), (["--int8", "--data", "x"], "nncf")],
)
def test_a_missing_package_is_named_with_its_installation(arguments, package, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nextdetr.export.run.is_installed", lambda name: name != package)
    assert run(["export", str(tiny_model(tmp_path)), *arguments]) == 2
    message = capsys.readouterr().err
    assert package in message
    assert install_command("export") in message


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("model.onnx", "onnxruntime", ""), ("model.xml", "openvino", "openvino")],
)
def test_a_missing_runtime_is_named_with_its_installation(name, package, extra, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{package}.*: {re.escape(install_command(extra))}\.$"):
        Detector(tmp_path, runtime=package)


@pytest.mark.parametrize(
    ("machine", "installed", "chosen"),
    [
        ("x86_64", True, "openvino"),
        ("AMD64", True, "openvino"),
        ("x86_64", False, "onnxruntime"),
        ("arm64", True, "onnxruntime"),
    ],
)
def test_an_onnx_file_goes_to_the_fastest_runtime_that_is_installed(machine, installed, chosen, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("nextdetr.inference.runtimes.find_spec", lambda name: object() if installed else None)
    both = ["onnxruntime", "openvino"]
    assert choose_runtime(Path("model.onnx"), passed=both) == chosen
    assert choose_runtime(Path("model.onnx"), "onnxruntime", both) == "onnxruntime"
    for passed in (None, ["onnxruntime"], []):  # no runtime is chosen that the file did not pass in
        assert choose_runtime(Path("model.onnx"), passed=passed) == "onnxruntime"
    assert choose_runtime(Path("model.xml")) == "openvino"


def test_a_runtime_that_cannot_open_a_file_is_refused(tmp_path, capsys):
    with pytest.raises(ConfigError, match="opens ONNX files only"):
        choose_runtime(Path("model.xml"), "onnxruntime")
    with pytest.raises(ConfigError, match="no runtime 'tensorrt'"):
        choose_runtime(Path("model.onnx"), "tensorrt")
    assert run(["predict", str(tiny_model(tmp_path)), "x.jpg", "--runtime", "openvino"]) == 2
    assert "export the detector first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"half": True, "int8": True, "data": "x"}, "--half and --int8"),
        ({"int8": True}, "--data"),
        ({"image_size": 100}, "multiple of 32"),
        ({"decoder_layers": 9}, "--decoder-layers"),
        ({"format": "tflite"}, "--format"),
        ({"quereis": 3}, "queries"),  # codespell:ignore
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message, tmp_path, monkeypatch):
    monkeypatch.setattr("nextdetr.export.run.check_packages", lambda kind, int8: None)
    with pytest.raises(ConfigError, match=message):
        Detector(tiny_model(tmp_path)).export(**settings)


def test_weights_are_refused_beside_an_exported_file(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ConfigError, match="weights inside"):
        Detector(tmp_path, weights="x.safetensors")
