"""One opened detector: device, size, bits and limits are decided once, and threads may share it."""

from __future__ import annotations

import json
import logging
import re
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from nextdetr import Detector
from nextdetr.cli.main import run
from nextdetr.config import PredictConfig, TrainConfig, ValConfig
from nextdetr.data import dataset
from nextdetr.engine import evaluate, setup
from nextdetr.engine.validate import score_detector
from nextdetr.errors import ConfigError, DataError
from nextdetr.inference.contract import Contract
from nextdetr.inference.exported import ExportedModel, OpenedExport
from nextdetr.inference.opened import settle
from nextdetr.installation import install_command
from nextdetr.tensors import choose_device
from nextdetr.weights.checkpoint import save_opened
from tests.helpers import squares, tiny_model


@pytest.fixture
def detector(tmp_path):
    return Detector(tiny_model(tmp_path), device="cpu")


@pytest.fixture
def no_gpu(monkeypatch):
    """Note which devices are asked for, and let every name mean the processor."""
    asked = []

    def choose(name=None):
        asked.append(None if name is None else str(name))
        return torch.device("cpu")

    monkeypatch.setattr("nextdetr.inference.pytorch.opening.choose_device", choose)
    return asked


def test_the_detectors_device_is_that_of_all_it_does(tmp_path, no_gpu):
    detector = Detector(tiny_model(tmp_path), device="cuda:7")
    image = Image.new("RGB", (40, 40))
    detector.predict(image)
    list(detector.stream(image, PredictConfig()))
    detector.embed(image)
    detector.val(squares(tmp_path / "data", 2), quiet=True)
    assert no_gpu == ["cuda:7"] * 4
    no_gpu.clear()
    detector.predict(image, device="cuda:3")
    list(detector.stream(image, PredictConfig(device="cuda:3")))
    detector.embed(image, device="cuda:3")
    assert no_gpu == ["cuda:3"] * 3


@pytest.mark.parametrize("device", ["99", 99, "cuda:99"])
def test_a_number_is_a_gpu_everywhere(device, tmp_path):
    with pytest.raises(ConfigError, match="the device cuda:99 cannot be used"):
        Detector(tiny_model(tmp_path), device=device).predict(Image.new("RGB", (40, 40)))
    with pytest.raises(ConfigError, match="the device cuda:99 cannot be used"):
        choose_device(device)


def test_training_runs_where_the_detector_does(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr("nextdetr.engine.train.launch", lambda given, *_: asked.update(device=given.device) or 1 / 0)
    detector = Detector(tiny_model(tmp_path), device="cpu")
    for settings, device in (({}, "cpu"), ({"device": "cuda:1"}, "cuda:1"), ({"accelerator": "cuda"}, None)):
        with pytest.raises(ZeroDivisionError):
            detector.train(data=tmp_path, **settings)
        assert asked["device"] == device


def test_launch_takes_one_device(monkeypatch):
    from nextdetr.engine import launch

    made = {}

    class Fabric:
        def __init__(self, **settings):
            made.update(settings)

        def launch(self):
            pass

    monkeypatch.setattr(launch, "Fabric", Fabric)
    monkeypatch.setattr(launch, "choose_device", torch.device)
    for device, accelerator, devices in (("cpu", "cpu", 1), ("cuda:1", "cuda", [1]), ("cuda", "cuda", 1)):
        given = TrainConfig(device=device)
        with launch.launch(given, given, None):
            pass
        assert (made["accelerator"], made["devices"]) == (accelerator, devices)
    given = TrainConfig(device="cuda:1", devices=2)
    with pytest.raises(ConfigError, match="one device"), launch.launch(given, given, None):
        pass


def exported():
    model = ExportedModel(None, Contract(["a"], 64, 10), "model.onnx")
    return OpenedExport(model, ["a"], 64, "model.onnx", {})


def test_an_exported_file_runs_on_the_processor(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert settle(exported()).device == settle(exported(), device="cpu").device == "cpu"
    with pytest.raises(ConfigError, match=r"model\.onnx: an exported file runs on the processor"):
        settle(exported(), device="cuda")


def together(*works):
    """Run callables in threads of their own, at once, and return what they return."""
    results, ready = [None] * len(works), threading.Barrier(len(works))

    def start(number, work):
        ready.wait()
        results[number] = work()

    threads = [threading.Thread(target=start, args=item) for item in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_four_threads_share_one_detector(detector, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 80, 60, 3), dtype=np.uint8)
    again = Detector(detector.save(tmp_path / "same.safetensors"), device="cpu")

    def works(detector):
        return [
            lambda part=part: detector.predict(list(part), confidence=0.0, batch_size=2, max_detections=5)
            for part in pixels
        ]

    alone = [work() for work in works(detector)]
    again._opened = None  # as after a training: the first of them opens it
    for ours, theirs in zip(alone, together(*works(again)), strict=True):
        for one, two in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one.xyxy, two.xyxy)
            np.testing.assert_array_equal(one.confidence, two.confidence)


def test_a_detector_can_be_copied(detector):
    import copy

    assert copy.deepcopy(detector).classes == detector.classes


@pytest.fixture
def deep(tmp_path):
    """A set of pictures of 12 bits in 16, and the same in 8."""
    for kind in ("deep", "plain"):
        data = squares(tmp_path / kind, 2)
        for path in (data / "images").rglob("*.png"):
            grey = np.asarray(Image.open(path).convert("L"))
            stored = np.rint(grey * (4095 / 255)).astype(np.uint16) if kind == "deep" else grey
            Image.fromarray(stored).save(path)
    return tmp_path / "deep", tmp_path / "plain"


def test_twelve_bits_are_as_bright_as_eight(detector, deep):
    settings = {"confidence": 0.0, "image_size": 64}
    one, two, dark = (
        detector.predict(data / "images" / "val", **settings, **more)[0].xyxy
        for data, more in ((deep[0], {"bits": 12}), (deep[1], {}), (deep[0], {}))
    )
    np.testing.assert_array_equal(one, two)
    assert np.abs(dark - two).max() > 1
    ours, theirs = (
        detector.embed(d / "images" / "val", **m).embeddings for d, m in ((deep[0], {"bits": 12}), (deep[1], {}))
    )
    np.testing.assert_array_equal(ours, theirs)
    scored = detector.val(deep[0], bits=12, quiet=True)
    assert scored.metrics == pytest.approx(detector.val(deep[1], quiet=True).metrics)


def noting(seen, real):
    def load(path, reading):
        seen.add(reading.bits)
        return real(path, reading)

    return load


def test_a_checkpoint_remembers_its_bits(detector, deep, tmp_path, monkeypatch):
    saved = save_opened(tmp_path / "d.safetensors", detector.opened, classes=["square", "bar"], extra={"bits": "12"})
    again = Detector(saved, device="cpu")
    settings = {"confidence": 0.0, "image_size": 64}
    one, two = (
        d.predict(deep[0] / "images" / "val", **settings, **m)[0] for d, m in ((again, {}), (detector, {"bits": 12}))
    )
    np.testing.assert_array_equal(one.xyxy, two.xyxy)
    assert settle(again.opened).reading.bits == 12
    assert settle(again.opened, bits=16).reading.bits == 16
    seen = set()
    monkeypatch.setattr(evaluate, "load_image", noting(seen, evaluate.load_image))
    score_detector(again.opened, ValConfig(data=str(deep[0]), device="cpu"), quiet=True)
    assert seen == {12}


def test_training_stores_its_bits(deep, tmp_path, monkeypatch):
    """Training, its validation and its resumed state read 12 bits, and so does a training that goes on from the file."""
    seen = set()
    for module in (dataset, evaluate):
        monkeypatch.setattr(module, "load_image", noting(seen, module.load_image))
    detector = Detector(tiny_model(tmp_path), device="cpu")
    arguments = {"image_size": 64, "batch_size": 2, "workers": 0, "cache": "off", "multi_scale": False, "quiet": True}
    detector.train(data=deep[0], epochs=1, bits=12, output=tmp_path / "run", **arguments)
    assert seen == {12}
    assert settle(detector.opened).reading.bits == 12
    assert "bits: 12" in (tmp_path / "run" / "config.yaml").read_text()
    later = TrainConfig(data=str(deep[0]), model=str(tmp_path / "run"))
    assert setup.resolve_config(later).bits == 12
    assert setup.resolve_config(later.model_copy(update={"bits": 16})).bits == 16


def test_large_pictures(detector, tmp_path, monkeypatch):
    monkeypatch.setattr("nextdetr.inference.opened.MAX_PIXELS", 10_000)
    Image.new("RGB", (150, 100)).save(tmp_path / "large.png")
    with pytest.raises(DataError, match=r"large\.png is too large: 150 x 100 .* 10,000.*--tile.*--max-pixels"):
        detector.predict(tmp_path / "large.png")
    assert len(detector.predict(tmp_path / "large.png", max_pixels=15_000)) == 1
    assert len(detector.predict(tmp_path / "large.png", tile=64)) == 1  # the limit is four times as high
    with pytest.raises(DataError, match="the limit is 14,999"):
        detector.predict(tmp_path / "large.png", tile=64, max_pixels=14_999)


def test_a_folder_with_a_checkpoint_is_that_checkpoint(detector, tmp_path):
    from nextdetr.inference.header import is_exported
    from nextdetr.inference.pipeline import file_identity

    folder = tmp_path / "saved"
    detector.save_pretrained(folder)
    assert not is_exported(folder)
    (folder / "model.onnx").write_bytes(b"an export beside it")
    assert not is_exported(folder)
    assert is_exported(folder / "model.onnx")
    opened = Detector(folder, device="cpu").opened
    assert file_identity(opened.source).startswith(str(folder.resolve() / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    assert is_exported(folder)


def test_random_weights_are_told(detector, tmp_path, caplog):
    image = Image.new("RGB", (40, 40))
    with caplog.at_level(logging.WARNING, "nextdetr"):
        detector.predict(image)
        assert caplog.messages == [
            f"{detector.source}: random weights, so the result means nothing: train it first, or give it weights."
        ]
        detector.embed(image)
        assert len(caplog.messages) == 2
        detector.predict(image)
        detector.embed(image)
        assert len(caplog.messages) == 2  # once each
        caplog.clear()
        saved = detector.save(tmp_path / "d.safetensors")
        Detector(saved, device="cpu").predict(image)
        Detector(saved, device="cpu").embed(image)
        Detector(detector.source, weights=saved, device="cpu").predict(image)
    assert caplog.messages == []


def test_the_only_image_that_cannot_be_read_is_told_once(detector, tmp_path, caplog):
    (tmp_path / "a.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING, "nextdetr"), pytest.raises(DataError, match=r"a\.png is not an image"):
        detector.predict(tmp_path / "a.png")
    assert not any("skipped" in message for message in caplog.messages)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "nextdetr"), pytest.raises(DataError, match=r"none of the 2 images"):
        detector.predict([tmp_path / "a.png"] * 2)
    assert sum("skipped" in message for message in caplog.messages) == 2


def test_what_is_skipped_is_counted_by_kind(detector, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nextdetr.pictures.find_spec", lambda _: None)  # no pillow-heif
    folder = tmp_path / "photos"
    folder.mkdir()
    picture = Image.new("RGB", (40, 40))
    picture.save(folder / "a.png")
    picture.save(folder / "b.tif", save_all=True, append_images=[Image.new("RGB", (40, 40), "red"), picture])
    for name in ("c.heic", "d.HEIF", "e.nef", ".f.heic", "readme.txt"):
        (folder / name).write_bytes(b"x")
    (folder / "g.jpg").write_bytes(b"no image")
    for more in ([], ["--tile", "64"]):
        arguments = ["predict", detector.source, str(folder), str(folder / "c.heic"), "--save", "json", *more]
        assert run([*arguments, "--output", str(tmp_path / "out"), "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert len(result["images"]) == 4
        assert result["skipped"] == {"heic": 3, "raw": 1, "frames": 2, "unreadable": 1}
    assert run([*arguments, "--output", str(tmp_path / "out")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Skipped: ")]
    for part in (
        f"3 HEIC ({install_command('heif')})",
        "1 camera raw",
        "2 beyond the first frame",
        "1 that could not be read",
    ):
        assert part in line
    for name in ("a.png", "b.tif", "g.jpg"):
        (folder / name).unlink()
    skipped = re.escape(f"no image or video; skipped: 2 HEIC ({install_command('heif')}); skipped: 1 camera raw")
    with pytest.raises(DataError, match=skipped):
        detector.predict(folder)


def test_subfolders_are_entered_where_asked_for_and_else_counted(detector, tmp_path, capsys):
    for name in ("photos/a.png", "photos/1/a.png", "photos/1/2/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    arguments = ["predict", detector.source, str(tmp_path / "photos"), "--output", str(tmp_path / "out"), "--save", "yolo"]
    assert run(arguments) == 0
    assert "Skipped: 1 in subfolders (--recursive takes them in)" in capsys.readouterr().out
    for more in ([], ["--tile", "64"]):
        assert run([*arguments, "--recursive", "--json", *more]) == 0
        result = json.loads(capsys.readouterr().out)
        assert (len(result["images"]), result["skipped"]) == (3, {})
    labels = tmp_path / "out" / "labels"
    assert sorted(path.relative_to(labels).as_posix() for path in labels.rglob("*.txt")) == [
        "1/2/a.txt",
        "1/a.txt",
        "a.txt",
    ]
    assert len(detector.predict(tmp_path / "photos", recursive=True)) == 3
    assert len(detector.embed(tmp_path / "photos", recursive=True)) == 3
