"""What works without torch, and what the rest reports; ``tests/light.py`` hides all that ``pip install nextdetr`` lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextdetr import Detector
from nextdetr.installation import install_command
from tests.export.handmade import handmade, terms
from tests.export.helpers import needs_runtimes
from tests.helpers import squares, tiny_model

ROOT = Path(__file__).parents[1]
CLASSES = ["square", "bar"]
INSTALL = install_command("train")


def light(*arguments, extras="", code=0):
    """Run a command in the light installation; return what it printed, or what it said where it is to fail."""
    environment = {**os.environ, "NEXTDETR_EXTRAS": extras, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.light", *map(str, arguments)],
        check=False, env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An exported detector, a data set and a photograph."""
    needs_runtimes()
    folder = tmp_path_factory.mktemp("light")
    handmade(folder / "model.onnx", replace(terms(passed_runtimes=("onnxruntime",)), classes=CLASSES), labels=(0, 1, 1, 0))
    squares(folder / "data", images=3)
    pixels = np.random.default_rng(0).integers(0, 255, (90, 140, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return folder


def test_torch_is_not_there():
    text = "import importlib.util as u; print([u.find_spec(n) for n in ('torch', 'safetensors', 'openvino', 'onnx')])"
    assert light("-c", text).strip() == "[None, None, None, None]"


def test_predict(place, tmp_path):
    command = ["predict", place / "model.onnx", place / "photo.png", "--json", "--confidence", "0.1"]
    written = json.loads(light(*command, "--output", tmp_path, "--save", "images", "json", "yolo"))
    expected = Detector(place / "model.onnx", runtime="onnxruntime").predict(str(place / "photo.png"), confidence=0.1)[0]
    found = written["images"][0]["detections"]
    assert len(found) == len(expected) > 1
    np.testing.assert_allclose([row["box"] for row in found], expected.xyxy, rtol=1e-6)
    np.testing.assert_allclose([row["confidence"] for row in found], expected.confidence, rtol=1e-6)
    assert {"images", "labels", "predictions.json"} <= {path.name for path in tmp_path.iterdir()}
    tiles = json.loads(light(*command, "--output", tmp_path / "tiles", "--tile", "64"))
    assert tiles["images"][0]["detections"]


def test_pictures_need_neither_supervision_nor_what_it_brings(place, tmp_path):
    """Its import takes longer than all else that ``predict`` does with a photograph."""
    text = f"""
import sys
from nextdetr import Detector
from nextdetr.cli.main import run

def imported():
    return {{"av", "faster_coco_eval", "matplotlib", "pandas", "requests", "scipy", "supervision"}} & set(sys.modules)

model, photo = {str(place / "model.onnx")!r}, {str(place / "photo.png")!r}
for number, more in enumerate(([], ["--tile", "64"], ["--json"])):
    command = ["predict", model, photo, "--confidence", "0.1", "--output", f"{tmp_path}/{{number}}"]
    assert run([*command, "--save", "images", "json", "yolo", "crops", *more]) == 0
    assert not imported(), (more, imported())
(item,) = Detector(model).stream(photo, confidence=0.1)
assert len(item.found) > 1 and sum(item.counts().values()) == len(item.crops()) == len(item.found)
item.save({str(tmp_path / "found.png")!r})
item.plot()
assert not imported(), imported()
assert type(item.detections).__module__.startswith("supervision") and "supervision" in imported()
print("done")
"""
    assert light("-c", text).splitlines()[-1] == "done"
    written = {path.name for path in (tmp_path / "0").iterdir()}
    assert written == {"crops", "images", "labels", "predictions.json", "predictions.txt", "predictions.yaml"}


def test_val_and_report(place, tmp_path):
    command = [place / "model.onnx", "--data", place / "data", "--json"]
    result = json.loads(light("val", *command))
    expected = Detector(place / "model.onnx", runtime="onnxruntime").val(place / "data", quiet=True)
    assert result["metrics"] == expected.metrics
    assert result["images"] == 3
    report = json.loads(light("report", *command, "--output", tmp_path / "page.html"))
    assert report["metrics"] == expected.metrics
    same = ["compare", place / "model.onnx", *command, "--resamples", "100"]
    assert json.loads(light(*same))["difference"] is not None


@pytest.mark.slow
def test_benchmark(place, tmp_path):
    command = ["benchmark", place / "model.onnx", "--data", place / "data", "--seconds", "0.1", "--threads", "1"]
    result = json.loads(light(*command, "--output", tmp_path, "--json"))
    assert [row["runtime"] for row in result["rows"]] == ["onnxruntime"]
    assert result["rows"][0]["median"] > 0
    assert result["ceilings"]["1"]["gflops"] > 0
    said = light("benchmark", tiny_model(tmp_path), code=2)
    assert INSTALL in said


def test_the_detector(place):
    text = f"""
from nextdetr import ConfigError, Detector
detector = Detector({str(place / "model.onnx")!r})
assert len(detector.predict({str(place / "photo.png")!r}, confidence=0.1)[0]) > 1
assert detector.val({str(place / "data")!r}, quiet=True).images == 3
import nextdetr, sys
for refused in (
    lambda: detector.train("x"), lambda: detector.calibrate("x"), lambda: Detector(), lambda: nextdetr.pretrain,
    lambda: nextdetr.graft, lambda: Detector.from_pretrained("a/b"),
):
    try:
        refused()
    except ConfigError as error:
        assert {INSTALL!r} in str(error), error
    else:
        raise AssertionError
for refused in (detector.export, detector.info, lambda: detector.embed("x"), lambda: detector.save("x.safetensors")):
    try:
        refused()
    except ConfigError as error:
        assert "an exported file cannot" in str(error), error
    else:
        raise AssertionError
assert "torch" not in sys.modules and "pandas" not in sys.modules
(result,) = detector({str(place / "photo.png")!r}, confidence=0.1, merge_iou=0.9)
assert result.plot().size == (140, 90) and "<img" in result._repr_html_() and len(result.crops()) == len(result)
assert len(detector.predict([result.image, open({str(place / "photo.png")!r}, "rb")])) == 2
try:
    result.to_pandas()
except ConfigError as error:
    assert "pip install pandas" in str(error), error
else:
    raise AssertionError
assert "torch" not in sys.modules
print("done")
"""
    assert light("-c", text).strip() == "done"


def test_serve(place):
    """A picture goes in, detections come out; Ctrl-C ends it."""
    environment = {**os.environ, "NEXTDETR_EXTRAS": "serve", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tests.light", "serve", place / "model.onnx", "--port", "0", "--json"]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    timer = threading.Timer(240, server.kill)
    timer.start()
    try:
        line = server.stdout.readline()
        assert line, server.stderr.read()
        url = json.loads(line)["url"]
        body = (place / "photo.png").read_bytes()
        request = urllib.request.Request(f"{url}/predict?confidence=0.1", body, {"Content-Type": "image/png"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["images"][0]["detections"]
        with urllib.request.urlopen(f"{url}/model", timeout=60) as answer:
            assert json.load(answer)["runtime"] == "onnxruntime"
        server.terminate()
        assert server.wait(timeout=60) == 0
    finally:
        timer.cancel()
        server.kill()
        server.communicate()


def test_the_server_names_its_extra(place):
    assert install_command("serve") in light("serve", place / "model.onnx", code=2)


def test_what_needs_no_model_works(place, tmp_path):
    light("convert", place / "data", "--to", "yolo", "--output", tmp_path / "yolo")
    assert json.loads(light("info", place / "model.onnx", "--json"))["classes"] == CLASSES
    assert "runs" in json.loads(light("runs", tmp_path, "--json"))


def test_the_rest_says_what_to_install(place, tmp_path):
    """Each command ends with one sentence; all of them in one process, as starting Python takes longer than they do."""
    (tmp_path / "best.safetensors").write_bytes(b"")
    commands = [
        ["train", "--data", str(place / "data")], ["pretrain", str(place)], ["quickstart"],
        ["predict", str(tmp_path / "best.safetensors"), str(place / "photo.png")],
        ["val", "nextdetr-atto", "--data", str(place / "data")], ["export", "nextdetr-atto"], ["info", "nextdetr-atto"],
        ["embed", "nextdetr-atto", str(place / "photo.png")], ["probe", "x.pt", str(place)],
        ["analyze", "collapse", "x.pt", "--images", str(place)], ["doctor", str(place / "data")],
        ["calibrate", str(tmp_path / "best.safetensors"), "--data", str(place / "data")],
        ["graft", "nextdetr-atto", "--backbone", "convnextv2-atto", "--images", str(place)],
        ["weights", "inspect", "x.pt"], ["weights", "convert", "x.pt", "--to", "timm"],
    ]  # fmt: skip
    text = "from nextdetr.cli.main import run\n" + "\n".join(
        f"print(run({command!r} + ['--json']))" for command in commands
    )
    lines = light("-c", text).splitlines()
    for command, said, status in zip(commands, lines[::2], lines[1::2], strict=True):
        error = json.loads(said)["error"]
        assert (error["type"], status) == ("ConfigError", "2"), (command, error)
        assert INSTALL in error["message"], command
        assert "\n" not in error["message"]
    assert "or export the detector" in json.loads(lines[6])["error"]["message"]


def test_help_of_every_command():
    text = """
from nextdetr.cli.commands import app
from nextdetr.cli.main import run
names = [name for name in app if not name.startswith("-")]
print([name for name in names if run([name, "--help", "--json"]) != 0], len(names))
"""
    assert light("-c", text).splitlines()[-1].startswith("[] ")
