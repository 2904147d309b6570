"""Weights through the command line: started from, inspected, converted; what is damaged or hostile ends in a sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import zipfile

import pytest
import timm
import torch
from torchvision.models import convnext_tiny
from transformers import ConvNextV2Config, ConvNextV2Model

from nextdetr.cli.main import run
from nextdetr.models.convnextv2 import SIZES
from nextdetr.models.graph import build_model, parse_model_text
from nextdetr.weights.checkpoint import open_model, save_detector
from nextdetr.weights.convert import FORMATS
from nextdetr.weights.reader import read_tensors
from tests.helpers import TINY_MODEL, squares, tiny_model
from tests.weights.layouts_of_original import original, sparse, v1
from tests.weights.test_detectors import _ultralytics
from tests.weights.torch_files import Runs, spoil, state_dict, tensor, torch_zip

#: Those of whole detectors are in test_ultralytics_file.py.
OF_BACKBONES = [to for to in FORMATS if to != "ultralytics"]

ATTO = SIZES["atto"]
SHAPE = ATTO[:2]
BIG = TINY_MODEL.replace("  - [3, 1, Conv, [32, 1, 1]]", "  - [3, 1, Conv, [65000, 3]]\n  - [-1, 1, Conv, [65000, 31]]")
BIG = BIG.replace("[[6, 5]", "[[7, 5]")


def detector(path, text=TINY_MODEL, change=None, **metadata):
    built = build_model(parse_model_text(text, "m.yaml"))
    state = dict(built.state_dict())
    save_detector(path, state, **{"model_text": text, "classes": ["square", "cat"], "image_size": 64} | metadata)
    if change is not None:
        spoil(path, "rows.0.stages.1.0.pwconv1.weight", change)
    return built


def code(path, folder):
    torch.save({"model": {"w": torch.ones(2)}, "x": Runs(os.system, f"touch {folder / 'canary'}")}, path)


def bomb(path, folder):
    torch_zip(path, state_dict(w=tensor()), {"0": bytes(50 << 20)}, compression=zipfile.ZIP_DEFLATED)


def cut(path, folder):
    detector(folder / "whole.safetensors")
    content = (folder / "whole.safetensors").read_bytes()
    path.write_bytes(content[: len(content) // 2])


HOSTILE = {
    "code.pt": (code, "would run code (posix.system)"),
    "bomb.pt": (bomb, "is compressed"),
    "cut.safetensors": (cut, "incomplete"),
    "int8.safetensors": (lambda path, _: detector(path, change=lambda t: t.to(torch.int8)), "is of type int8"),
    "complex.safetensors": (lambda path, _: detector(path, change=lambda t: t.to(torch.complex64)), "type complex64"),
    "nan.safetensors": (
        lambda path, _: detector(path, change=lambda t: t.index_fill(0, torch.tensor(2), torch.nan)),
        "NaN",
    ),
    "femto.safetensors": (lambda path, _: detector(path, TINY_MODEL.replace("atto", "femto")), "is for another size"),
    "text.pt": (lambda path, _: path.write_text("epoch,loss\n1,0.5\n" * 9), "a text file"),
    "text.safetensors": (lambda path, _: path.write_text("epoch,loss\n1,0.5\n" * 9), "a text file"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return squares(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_end_in_a_sentence(tmp_path, data, name, capsys):
    make, cause = HOSTILE[name]
    path = tmp_path / name
    make(path, tmp_path)
    model = str(tiny_model(tmp_path))
    training = ["train", "--data", str(data), "--model", model, "--output", str(tmp_path / "run"), "--epochs", "1"]
    for arguments in ([*training, "--weights", str(path)], [*training, "--backbone-weights", str(path)]):
        assert run(arguments) == 2
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert told.startswith("nextdetr: ")
        assert str(path) in told
        assert cause in told
        assert run([*arguments, "--json"]) == 2
        assert json.loads(capsys.readouterr().out)["error"]["type"] == "WeightsError"
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("name", "cause"), [("nan.safetensors", "NaN"), ("int8.safetensors", "int8"), ("big", "do not fit")]
)
def test_a_checkpoint_is_checked_when_it_is_opened(tmp_path, name, cause, capsys):
    """The last one states a model of a terabyte, and is refused before any memory is taken for it."""
    path = tmp_path / "m.safetensors"
    if name == "big":
        detector(path, TINY_MODEL, model_text=BIG)
    else:
        HOSTILE[name][0](path, tmp_path)
    for arguments in (["info", str(path)], ["predict", str(path), "no.jpg"]):
        assert run(arguments) == 2
        told = capsys.readouterr().err
        assert cause in told
        assert told.count("\n") == 1
    if name == "big":
        assert run(["weights", "convert", str(path), "--to", "nextdetr"]) == 2


def test_inspect_tells_of_numbers_that_cannot_be_loaded(tmp_path, capsys):
    detector(tmp_path / "d.safetensors", change=lambda t: t * torch.nan)
    assert run(["weights", "inspect", str(tmp_path / "d.safetensors")]) == 0
    assert "rows.0.stages.1.0.pwconv1.weight holds NaN" in capsys.readouterr().out
    detector(tmp_path / "d.safetensors", change=lambda t: t.to(torch.int8))
    assert run(["weights", "inspect", str(tmp_path / "d.safetensors")]) == 0
    assert "rows.0.stages.1.0.pwconv1.weight is of type int8" in capsys.readouterr().out
    detector(tmp_path / "e.safetensors", classes=[])
    assert run(["weights", "inspect", str(tmp_path / "e.safetensors"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["classes"] is None
    assert found["notes"] == ["it does not state its classes."]


def test_training_starts_from_a_head_and_another_backbone(tmp_path, data, capsys):
    """COCO-trained encoder and decoder under a new backbone: the rest of --weights, the whole of --backbone-weights."""
    detector(tmp_path / "d.safetensors", weights_licence="AGPL-3.0")
    (tmp_path / "femto.yaml").write_text(TINY_MODEL.replace("atto", "femto"))
    backbone = original(*SIZES["femto"][:2])
    torch.save({"model": backbone}, tmp_path / "femto.pt")
    arguments = [
        "train", "--data", str(data), "--model", str(tmp_path / "femto.yaml"), "--weights", str(tmp_path / "d.safetensors"),
        "--backbone-weights", str(tmp_path / "femto.pt"), "--epochs", "1", "--workers", "0", "--learning-rate", "1e-9",
        "--output", str(tmp_path / "run"),
    ]  # fmt: skip
    assert run(arguments) == 0
    told = capsys.readouterr().err
    assert "its backbone (convnextv2_atto) is not the model's (convnextv2_femto): left out." in told
    assert "1 of the model's 2 classes are carried over by name (square)" in told
    assert "row 1 Conv" in told  # its projection has another width
    opened = open_model(tmp_path / "run" / "best.safetensors")
    assert opened.metadata["weights_licence"] == "AGPL-3.0 and CC-BY-NC-4.0"
    kept = opened.model.backbone.state_dict()["stages.2.1.pwconv1.weight"]
    torch.testing.assert_close(kept, backbone["stages.2.1.pwconv1.weight"], atol=1e-5, rtol=1e-4)
    alone = [*arguments[:7], *arguments[9:-1], str(tmp_path / "second")]
    assert run(alone) == 2  # another backbone, and nothing to put in its place
    assert "--allow-partial" in capsys.readouterr().err
    assert run([*alone, "--allow-partial"]) == 0


def test_training_refuses_under_half_unless_it_is_allowed(tmp_path, data, capsys):
    built = build_model(parse_model_text(TINY_MODEL, "m.yaml"))
    few = {name: value for name, value in built.state_dict().items() if name.startswith("rows.3.")}
    path = tmp_path / "few.safetensors"
    save_detector(path, few, model_text=TINY_MODEL, classes=["square", "bar"], image_size=64)
    arguments = ["train", "--data", str(data), "--model", str(tiny_model(tmp_path)), "--weights", str(path)]
    arguments += ["--epochs", "1", "--workers", "0", "--output", str(tmp_path / "run")]
    assert run(arguments) == 2
    assert "To load them nevertheless, give --allow-partial." in capsys.readouterr().err
    assert run([*arguments, "--allow-partial"]) == 0


def transformers_folder(path):
    config = ConvNextV2Config(depths=list(ATTO.depths), hidden_sizes=list(ATTO.dims))
    ConvNextV2Model(config).save_pretrained(path)


def ultralytics_file(path):
    torch.save({"model": _ultralytics(build_model(parse_model_text(TINY_MODEL, "m.yaml")), 3)}, path)


LAYOUTS = {
    "convnextv2-original": ("a.pt", lambda path: torch.save({"model": original(*SHAPE)}, path), "CC-BY-NC-4.0"),
    "convnextv2-fcmae-sparse": ("b.pt", lambda path: torch.save({"model": sparse(original(*SHAPE))}, path), "CC-BY-NC-4.0"),
    "convnextv2-timm": (
        "c.bin", lambda path: torch.save(timm.create_model("convnextv2_atto").state_dict(), path), "CC-BY-NC-4.0",
    ),
    "convnextv2-transformers": ("d-1.0", transformers_folder, "CC-BY-NC-4.0"),
    "convnext-v1-original": ("e.pt", lambda path: torch.save({"model": v1(original(*SHAPE))}, path), "unknown"),
    "convnext-v1-timm": (
        "f.pth", lambda path: torch.save(timm.create_model("convnext_atto").state_dict(), path), "Apache-2.0",
    ),
    "convnext-v1-torchvision": ("g.pth", lambda path: torch.save(convnext_tiny().state_dict(), path), "unknown"),
    "nextdetr-detector": ("h.safetensors", lambda path: detector(path, weights_licence="CC-BY-NC-4.0"), "CC-BY-NC-4.0"),
    "rtdetr-ultralytics": ("i.pt", ultralytics_file, "AGPL-3.0"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_is_inspected_and_converted(tmp_path, kind, capsys):
    name, make, licence = LAYOUTS[kind]
    source = tmp_path / name
    make(source)
    assert run(["weights", "inspect", str(source)]) == 0
    assert f"licence of the weights: {licence}" in capsys.readouterr().out
    assert run(["weights", "inspect", str(source), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    found = json.loads(captured.out)
    assert (found["kind"], found["weights_licence"]) == (kind, licence)
    for to in OF_BACKBONES:
        if kind == "rtdetr-ultralytics" and to == "nextdetr":
            continue  # its model file is not known
        suffix = {"original": ".pt", "transformers": ""}.get(to, ".safetensors")
        target = tmp_path / "out" / f"v1.0-{to}{suffix}"
        assert run(["weights", "convert", str(source), "--to", to, "--output", str(target), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["output"] == str(target)
        assert run(["weights", "inspect", str(target), "--json"]) == 0
        again = json.loads(capsys.readouterr().out)
        assert again["weights_licence"] == licence
        expected = ("nextdetr-backbone", "nextdetr-detector") if to == "nextdetr" else (f"convnextv2-{to}",)
        assert again["kind"] in expected


def test_loading_brings_no_compiler_and_little_memory(tmp_path):
    """torch imports its compiler, 150 MB and a second, for the first arithmetic on a tensor without memory."""
    path = tmp_path / "d.pt"
    model = build_model("rtdetr-l-convnextv2-atto", num_classes=3)
    torch.save({"model": _ultralytics(model, 19)}, path)
    script = """
        import sys
        import nextdetr.weights.start
        from nextdetr.models.graph import build_model
        from nextdetr.weights.load import load_into
        def memory(which):
            line = next(line for line in open("/proc/self/status") if line.startswith(which))
            return int(line.split()[1]) * 1024
        before = memory("VmRSS")
        model = build_model("rtdetr-l-convnextv2-atto", num_classes=3)
        assert load_into(model, sys.argv[1]).complete
        print("torch._dynamo" in sys.modules, memory("VmHWM") - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)], capture_output=True, text=True, check=True
    )
    compiler, peak = done.stdout.split()
    assert compiler == "False"
    assert int(peak) < 2.2 * path.stat().st_size  # the model itself included


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_memory_given_back_is_read_again(tmp_path, suffix):
    built = detector(tmp_path / "d.safetensors")
    torch.save(built.state_dict(), tmp_path / "d.pt")
    file = read_tensors(tmp_path / f"d.{suffix}")
    file.release()
    assert all(torch.equal(file.tensors[name], value) for name, value in built.state_dict().items())
    file.release()
    assert torch.equal(file.tensors["rows.1.conv.weight"], built.state_dict()["rows.1.conv.weight"])
