"""Everything that ``RTDETR`` does: it trains, validates, predicts, profiles, visualises, embeds, exports and resumes."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from ultralytics.nn.tasks import RTDETRDetectionModel

from conftest import CLASSES, TINY, fresh, gap
from nextdetr import Detector
from nextdetr.cli.main import run
from nextdetr.models.graph import build_model as build_ours
from nextdetr.models.graph import parse_model_text
from nextdetr.weights.checkpoint import save_detector
from nextdetr.weights.layouts.rtdetr_ultralytics import model_text
from nextdetr_ultralytics import RTDETR
from nextdetr_ultralytics.backbone import ConvNeXtV2
from nextdetr_ultralytics.model import RTDETRConvNeXtModel
from nextdetr_ultralytics.train import RTDETRTrainer

QUICK = {"imgsz": 64, "batch": 2, "workers": 0, "device": "cpu", "amp": False, "plots": False, "verbose": False}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """Folder of a run of two epochs of two steps, from the tiny recipe."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    model = RTDETR(folder / "tiny.yaml", classifier=False)
    model.train(data=str(data), epochs=2, project=str(folder), name="train", **QUICK)
    assert isinstance(model.model, RTDETRConvNeXtModel)
    return folder / "train"


def picture(data):
    return data.parent / "images" / "val" / "0.png"


def boxes(result):
    return result.boxes.data[:, :4].cpu()


def test_training_leaves_a_checkpoint_that_opens_in_a_new_process(trained, data):
    assert {"args.yaml", "results.csv", "weights"} <= {path.name for path in trained.iterdir()}
    opened = RTDETR(trained / "weights" / "best.pt")
    assert opened.names == CLASSES
    assert opened.model.yaml["nc"] == 2
    assert opened.model.model[0].head is None
    code = f"""
import torch
from nextdetr_ultralytics import RTDETR
model = RTDETR({str(trained / "weights" / "best.pt")!r})
result = model.predict({str(picture(data))!r}, imgsz=64, conf=0.0, device="cpu", verbose=False)[0]
print(float(result.boxes.data.double().sum()))
"""
    out = subprocess.run(fresh(code), check=True, capture_output=True, text=True).stdout
    here = opened.predict(picture(data), imgsz=64, conf=0.0, device="cpu", verbose=False)[0]
    assert float(out.split()[-1]) == pytest.approx(float(here.boxes.data.double().sum()), rel=1e-4)


def test_validation_and_prediction(trained, data):
    model = RTDETR(trained / "weights" / "best.pt")
    metrics = model.val(data=str(data), **QUICK)
    assert 0 <= metrics.box.map <= 1
    (result,) = model.predict(picture(data), imgsz=64, conf=0.0, device="cpu", verbose=False)
    assert len(result.boxes) == 20  # as many as the decoder has queries


def test_profile_and_table(trained, monkeypatch):
    model, lines = RTDETR(trained / "weights" / "best.pt").model, []
    monkeypatch.setattr("ultralytics.utils.LOGGER.info", lambda text, *rest: lines.append(str(text)))
    with torch.no_grad():
        model.predict(torch.zeros(1, 3, 64, 64), profile=True)
    times = [line.split() for line in lines if line.split()[-1].startswith(("convnextv2_", "ultralytics.", "torch."))]
    assert [int(words[2]) for words in times] == [row.parameters for row in model.table()][:-1]  # all but the decoder
    assert float(times[0][1]) > 0  # its operations are counted


def test_embedding(trained, data):
    model = RTDETR(trained / "weights" / "best.pt")
    (last,) = model.embed(picture(data), imgsz=64, device="cpu", verbose=False)
    (named,) = model.embed(picture(data), embed=[10], imgsz=64, device="cpu", verbose=False)
    assert last.shape == (32,)
    assert torch.equal(last, named)  # the last map before the decoder, by its index in the YAML
    (backbone,) = model.embed(picture(data), embed=[2, 4], imgsz=64, device="cpu", verbose=False)
    assert backbone.shape == (80 + 320,)


def test_visualisation(trained, data, tmp_path):
    model = RTDETR(trained / "weights" / "best.pt")
    model.predict(
        picture(data), imgsz=64, visualize=True, conf=0.0, device="cpu", project=str(tmp_path), name="maps", verbose=False
    )  # fmt: skip
    assert list((tmp_path / "maps").glob("*_cam.jpg"))


def test_export_to_onnx_finds_the_same(trained, data, tmp_path):
    weights = tmp_path / "best.pt"
    weights.write_bytes((trained / "weights" / "best.pt").read_bytes())
    model = RTDETR(weights)
    file = model.export(format="onnx", imgsz=64, simplify=False, device="cpu")
    (here,) = model.predict(picture(data), imgsz=64, conf=0.0, device="cpu", verbose=False)
    (there,) = RTDETR(file).predict(picture(data), imgsz=64, conf=0.0, device="cpu", verbose=False)
    gaps = (boxes(here)[:, None] - boxes(there)[None]).abs().amax(-1)
    assert gaps.min(dim=0).values.max() < 0.1  # pixels of 64


def test_resuming_and_freezing(trained, data, tmp_path):
    model = RTDETR(trained / "weights" / "best.pt")
    model.train(data=str(data), epochs=1, freeze=1, project=str(tmp_path), name="frozen", **QUICK)
    before, after = RTDETR(trained / "weights" / "best.pt"), RTDETR(tmp_path / "frozen" / "weights" / "last.pt")
    first, second = (m.model.model[0].stages[3][1].pwconv2.weight for m in (before, after))
    assert torch.equal(first, second)
    assert not torch.equal(before.model.model[1].conv.weight, after.model.model[1].conv.weight)


def test_the_trainer_is_found_by_its_name_in_other_processes():
    """Training on several devices pickles the trainer's class for its processes."""
    assert pickle.loads(pickle.dumps(RTDETRTrainer)) is RTDETRTrainer
    code = "import pickle, sys; print(pickle.loads(bytes.fromhex(sys.argv[1])).__name__)"
    command = [*fresh(code), pickle.dumps(RTDETRTrainer).hex()]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert out.split()[-1] == "RTDETRTrainer"


def test_a_checkpoint_goes_to_nextdetr_and_back(trained, data, tmp_path):
    """Boxes there, here, and there again agree to 1e-3 of the image."""
    image = np.asarray(Image.open(picture(data)))
    first = RTDETR(trained / "weights" / "best.pt")
    (there,) = first.predict(image[..., ::-1], imgsz=64, conf=0.0, device="cpu", verbose=False)
    ours = tmp_path / "ours.safetensors"
    assert run(["weights", "convert", str(trained / "weights" / "best.pt"), "--to", "nextdetr", "--output", str(ours)]) == 0
    detector = Detector(ours)
    assert detector.classes == list(CLASSES.values())
    (here,) = detector.predict(Image.fromarray(image), confidence=0.0)
    gaps = np.abs(there.boxes.xyxy.numpy()[:, None] - here.xyxy[None]).max(-1)
    assert gaps.min(axis=1).max() < 1e-3 * 64
    back = tmp_path / "back.pt"
    assert run(["weights", "convert", str(ours), "--to", "ultralytics", "--output", str(back)]) == 0
    for source in (back, ours):  # NextDETR's own file opens as well
        again = RTDETR(source)
        assert again.names == CLASSES
        assert again.overrides["imgsz"] == 64
        (found,) = again.predict(image[..., ::-1], imgsz=64, conf=0.0, device="cpu", verbose=False)
        assert (boxes(found) - boxes(there)).abs().max() < 1e-3 * 64
    again.train(data=str(data), epochs=1, project=str(tmp_path), name="more", **QUICK)
    assert RTDETR(tmp_path / "more" / "weights" / "last.pt").names == CLASSES


def test_a_model_without_a_convnext_goes_there_as_ultralytics_own(tmp_path):
    rows = [[-1, 1, "Conv", [16, 3, 4]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [16, 3, 2]]]
    recipe = {"nc": 2, "backbone": rows, "head": [[[1, 2], 1, "RTDETRDecoder", ["nc", 32, 20, 2, 4, 2, 64]]]}
    text = model_text(recipe)
    ours = build_ours(parse_model_text(text, "m.yaml")).eval()
    path = save_detector(
        tmp_path / "d.safetensors", ours.state_dict(), model_text=text, classes=list(CLASSES.values()), image_size=64
    )
    theirs = RTDETR(path).model
    assert type(theirs) is RTDETRDetectionModel
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        raw, output = theirs(images)[1], ours(images)
    assert gap(torch.cat((raw[0][-1], raw[1][-1]), -1)[0], torch.cat((output.boxes, output.logits), -1)[0]) < 1e-4


def test_a_checkpoint_of_the_patched_source_opens_without_the_patch(trained, tmp_path, monkeypatch):
    """Its backbone is of a module that the patch put into ultralytics, its model of ultralytics' own class."""

    class ConvNeXtV2Patched(ConvNeXtV2):
        pass

    patch = types.ModuleType("ultralytics.nn.patch")
    patch.ConvNeXtV2Patched = ConvNeXtV2Patched
    ConvNeXtV2Patched.__module__, ConvNeXtV2Patched.__qualname__ = patch.__name__, "ConvNeXtV2Patched"
    monkeypatch.setitem(sys.modules, patch.__name__, patch)
    model = RTDETR(trained / "weights" / "best.pt").model
    model.model[0].__class__, model.__class__ = ConvNeXtV2Patched, RTDETRDetectionModel
    torch.save({"model": model, "ema": None, "train_args": {"task": "detect", "imgsz": 64}}, tmp_path / "old.pt")
    monkeypatch.delitem(sys.modules, patch.__name__)
    again = RTDETR(tmp_path / "old.pt")
    assert (again.names, again.overrides["imgsz"]) == (CLASSES, 64)
    state = again.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_a_run_is_imported(trained, data, tmp_path):
    output = tmp_path / "imported"
    assert run(["import-run", str(trained), "--output", str(output), "--json"]) == 0
    assert {"best.safetensors", "config.yaml", "metrics.csv", "model.yaml"} <= {path.name for path in output.iterdir()}
    assert Detector(output / "best.safetensors").classes == list(CLASSES.values())
    # In a process of its own: ultralytics changes PIL.Image.open of the process that imports it.
    command = [sys.executable, "-m", "nextdetr", "val", str(output / "best.safetensors"), "--data", str(data), "--json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found["images"] == 4
    assert (output / "metrics.csv").read_text().count("\n") == 3  # a head, and two epochs
