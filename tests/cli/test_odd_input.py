"""Odd input to every command: exit code 2, one sentence, and the same under --json."""

from __future__ import annotations

import json
import shlex

import pytest
from PIL import Image

from nextdetr import Detector
from nextdetr.cli.main import run
from tests.helpers import squares, tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with good and odd files, which is the working directory of each command."""
    folder = tmp_path_factory.mktemp("odd")
    Detector(tiny_model(folder), device="cpu").save(folder / "good.safetensors")
    squares(folder / "set", 2)
    for name in ("empty.safetensors", "empty.yaml", "empty.png", "empty.onnx", "empty.pt", "empty.mp4", "empty.xml"):
        (folder / name).write_bytes(b"")
    for name in ("text.png", "text.safetensors", "text.yaml", "text.onnx", "text.pt", "text.mp4", "text.jpg"):
        (folder / name).write_text("this is no such file\n")
    (folder / "binary.yaml").write_bytes(bytes(range(128, 256)))
    (folder / "list.yaml").write_text("- a\n- b\n")
    (folder / "folder.png").mkdir()
    (folder / "folder.safetensors").mkdir()
    (folder / "nothing").mkdir()
    (folder / "text_only").mkdir()
    (folder / "text_only" / "a.txt").write_text("x")
    (folder / "bad_set").mkdir()
    (folder / "bad_set" / "annotations").mkdir()
    (folder / "bad_set" / "annotations" / "instances_val.json").write_text("{")
    Image.new("RGB", (40, 40)).save(folder / "good.png")
    return folder


def words(text, mark=None):
    return [part.strip() for part in text.split(mark)]


MODELS = words("""none.safetensors none.yaml none.onnx nonsense nothing set empty.safetensors empty.yaml empty.onnx
    empty.xml empty.pt text.safetensors text.yaml text.onnx text.pt binary.yaml list.yaml good.png
    folder.safetensors text_only ''""")
SETS = words("none none.yaml nothing text_only bad_set empty.yaml text.yaml list.yaml binary.yaml good.png '' .")
IMAGES = words("none.png none/*.png empty.png text.png folder.png nothing text_only http://x/y.png text.mp4 empty.mp4 ''")
OPTIONS = """--confidence 2; --confidence -1; --confidence nan; --confidence x; --classes nobody; --classes 99; --save gif;
    --max-detections 0; --batch-size -3; --image-size 0; --image-size 100; --image-size -64; --tile 3; --queries 0;
    --tile 64 --overlap 1; --device toaster; --device cuda:99; --runtime tvm; --runtime openvino; --bits 3; --max-pixels 0;
    --max-pixels 100; --line 1,2; --zone x; --engine ray; --weights none.pt; --weights text.pt; --no-such-option;
    --output"""
OTHERS = """predict; predict GOOD; embed GOOD; embed GOOD good.png --output v.txt; embed GOOD good.png --row 99; val GOOD;
    val GOOD --data set --split none; val GOOD --data set --image-size 33; val GOOD --data set --device toaster;
    --epochs 3; export GOOD --format gif; export GOOD --int8; export GOOD --image-size 50; train;
    train --data set --epochs 0; train --data set --minutes -1; train --data set --image-size 70;
    train --data set --minutes inf; train --data set --cache-gigabytes inf; train --data set --seed 99999999999999999999;
    train --resume nothing; train --resume none;
    train --data set --epochs 1 --minutes 1; train --config none.yaml; train --config list.yaml; train --config binary.yaml;
    train --data set --weights none.pt --epochs 1; train --data set --device toaster --epochs 1; train --data set --bits 33;
    train --data set --device cpu --devices 2 --epochs 1; pretrain; pretrain set --resume nothing;
    pretrain set --mask-ratio 2;
    benchmark; benchmark GOOD --threads 0; benchmark GOOD --peers none.onnx; quickstart --minutes 0; weights inspect;
    weights convert GOOD --to tvm; analyze collapse; analyze collapse convnextv2-atto --images nothing;
    analyze collapse convnextv2-atto --images set --limit 0; analyze collapse convnextv2-atto --images set --image-size 33;
    analyze attention GOOD; analyze attention GOOD good.png --layer 9; analyze attention GOOD good.png --layer 0;
    analyze attention GOOD good.png --detections 0; analyze attention GOOD good.png --image-size 33;
    analyze attention GOOD good.png --device toaster; probe convnextv2-atto set/images --held-out 1;
    info GOOD --image-size 0; info GOOD --image-size -64; info GOOD --plot .; report; report GOOD;
    report GOOD --data set --split none; report GOOD --data set --pictures -1; report GOOD --data set --queries 0;
    report GOOD --data set --latency 5; report GOOD --data set --image-size 33; compare GOOD GOOD;
    compare GOOD GOOD --data set --level 1; compare GOOD GOOD --data set --resamples 1; calibrate; calibrate GOOD;
    compare GOOD GOOD --data set --runtime openvino; compare GOOD nextdetr-zepto --data set --split none;
    calibrate GOOD --data set --recall 1; calibrate GOOD --data set --split none; calibrate GOOD --data set --iou 0;
    calibrate GOOD --data set --device toaster --split val; calibrate GOOD --data set --unlike 0;
    embed GOOD good.png --output v.npz --batch-size 0; runs a b; import-run; completion tcsh"""
EACH = {
    "info X": MODELS, "predict X good.png": MODELS, "val X --data set": MODELS, "embed X good.png": MODELS,
    "export X": MODELS,
    "train --data set --epochs 1 --model X": MODELS, "weights inspect X": set(MODELS) - {"empty.xml"},
    "weights convert X --to timm": MODELS, "probe X set/images": MODELS, "analyze collapse X --images set/images": MODELS,
    "predict GOOD X": IMAGES, "predict GOOD X --tile 64": IMAGES, "embed GOOD X --output v.npz": IMAGES,
    "predict GOOD X --output t.parquet": ["none.png", "empty.png"],
    "val GOOD --data X": SETS, "train --epochs 1 --data X": SETS,
    "pretrain X --epochs 1": set(SETS) - {"bad_set", "good.png", "."}, "predict GOOD good.png X": words(OPTIONS, ";"),
    "report X --data set": MODELS, "compare GOOD X --data set": MODELS, "calibrate X --data set": MODELS,
    "analyze attention X good.png": MODELS, "analyze attention GOOD X": IMAGES,
    "report GOOD --data X": SETS, "compare GOOD GOOD --data X": SETS, "calibrate GOOD --data X": SETS,
    "import-run X": words("none nothing set text_only good.png . ''"), "runs X": words("none good.png"),
    "X": ["trian", *words(OTHERS, ";")],  # codespell:ignore
}  # fmt: skip
COMMANDS = [command.replace("X", odd) for command, odds in EACH.items() for odd in sorted(odds)]


@pytest.mark.parametrize("command", COMMANDS)
def test_odd_input_is_told_in_one_sentence(command, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    before = {path.name for path in place.iterdir()}
    code = run([*shlex.split(command.replace("GOOD", "good.safetensors")), "--json"])
    told = capsys.readouterr()
    error = json.loads(told.out)["error"]
    assert code == 2, error
    assert error["type"].endswith("Error")
    message = error["message"]
    assert "\n" not in message
    assert "unexpected" not in message
    assert message.endswith((".", "?"))
    assert len(message) < 1200
    assert "Traceback" not in told.err
    assert {path.name for path in place.iterdir()} - before <= {"runs", "t.parquet.parts"}


def test_the_same_sentence_without_json(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert run(["predict", "good.safetensors", "none.png"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "nextdetr: none.png: there is no such file or folder.\n"


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("doctor", "DATA is missing. See nextdetr doctor --help."),
        ("compare GOOD --data set", "B is missing. See nextdetr compare --help."),
        ("pretrain set --images set", "the images are given twice, as IMAGES and as --images: give them in one place."),
        (
            "graft GOOD --detector GOOD --backbone convnextv2-atto --images set",
            "the detector is given twice, as DETECTOR and as --detector: give it in one place.",
        ),
        ("train --data", 'Command "train" parameter --data requires an argument. See nextdetr train --help.'),
        ("info none", "none: neither a file nor a shipped model; shipped are deim-l, "),
    ],
)
def test_what_is_missing_is_named_as_it_is_given(command, sentence, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert run(shlex.split(command.replace("GOOD", "good.safetensors"))) == 2
    assert capsys.readouterr().err.startswith(f"nextdetr: {sentence}")
