"""Two processes on gloo: they equal one process with twice the batch; one without a box does not hang the other."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import pytest
import torch

from nextdetr.models.graph import build_model
from nextdetr.weights.checkpoint import save_detector
from tests.helpers import TINY_MODEL, squares, tiny_model

# Each process draws the noise of its denoising queries for itself, so that a comparison has to do without them.
WITHOUT_DENOISING = """
from nextdetr.models.decoder import RTDETRDecoder
build = RTDETRDecoder.__init__
RTDETRDecoder.__init__ = lambda self, *arguments, **options: build(self, *arguments, **options, nd=0)
"""

# Adam divides a gradient by its own size: one that is zero but for rounding moves its weight by a whole rate, either way.
# A larger epsilon leaves such weights where they are.
WITHOUT_ROUNDING = """
from functools import partial
from nextdetr.engine import optim
optim.AdamW = partial(optim.AdamW, eps=1e-5)
"""


SCRIPT = """
import os, sys
sys.ps1 = "In : "  # as in a notebook
from nextdetr import Detector
data, model, output = sys.argv[1:]
detector = Detector(model)
for name in ("a", "b"):
    result = detector.train(
        data, epochs=1, image_size=64, batch_size=4, workers=0, devices=2, accelerator="cpu", quiet=True,
        output=f"{output}/{name}",
    )
    print("trained", result.epochs, sorted({"LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"} & set(os.environ)))
print(sys.excepthook is sys.__excepthook__)  # which torch.distributed changes
"""


@pytest.mark.slow
def test_a_script_goes_on_once_after_each_training_on_two_processes(tmp_path):
    """From standard input (``python -``), or a notebook, which no other process can run again."""
    command = [sys.executable, "-", squares(tmp_path / "data", images=4), tiny_model(tmp_path), tmp_path / "runs"]
    done = subprocess.run(
        [str(part) for part in command], input=SCRIPT, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [*["trained 1 []"] * 2, "True"]


def run(data, model, output, *options, before="", code=0):
    site = output.parent / f"site-{output.name}"  # python imports it in each process of the run
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(before)
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [
        sys.executable, "-m", "nextdetr", "train", "--workers", "0", "--accelerator", "cpu", "--json", *options,
    ]  # fmt: skip
    if data is not None:
        command += ["--data", str(data), "--model", str(model), "--image-size", "64", "--output", str(output)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )
    assert done.returncode == code, done.stdout + done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_two_processes_train_and_score(tmp_path):
    """One image each: the last image of the split has no box, so that one of the processes gets none."""
    data = squares(tmp_path / "data", images=5)
    options = ("--epochs", "2", "--batch-size", "1", "--devices", "2", "--freeze-backbone-epochs", "1")
    result = run(data, tiny_model(tmp_path), tmp_path / "run", *options)
    assert result["epochs"] == 2
    assert (tmp_path / "run" / "best.safetensors").is_file()
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 3


@pytest.mark.slow
def test_two_processes_equal_one_with_the_doubled_batch(tmp_path):
    """After eight steps, four with a frozen backbone, losses agree to 1e-4, weights to 2e-6 (they moved by some 1e-3).

    They are not equal to the last bit, since sums are taken in another order. One of the images has no box.
    """
    data, model = squares(tmp_path / "data", images=8), tiny_model(tmp_path)
    options = ("--epochs", "2", "--freeze-backbone-epochs", "1")
    for name, own in (("one", ("--batch-size", "2")), ("two", ("--batch-size", "1", "--devices", "2"))):
        run(data, model, tmp_path / name, *own, *options, before=WITHOUT_DENOISING + WITHOUT_ROUNDING)
    rows = []
    for name in ("one", "two"):
        with (tmp_path / name / "metrics.csv").open(newline="") as file:
            rows.append(list(csv.DictReader(file)))
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == ["4", "8"]
    for one, two in zip(*rows, strict=True):
        for name in (name for name in one if name.startswith("loss")):
            assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-4, abs=1e-6), name
    one, two = (torch.load(tmp_path / name / "last.ckpt", weights_only=True)["model"] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
def test_two_processes_learn_from_a_teacher_as_one_does(tmp_path):
    """After four steps; without the maps, whose correlation is that of a process's own images.

    The teacher moves its boxes off the places where they start, as a trained one does. A new decoder leaves them there, the
    pupil's as well: their distance is then zero but for rounding, and so the L1 and GIoU gradients point either way.
    """
    data, model, teacher = squares(tmp_path / "data", images=8), tiny_model(tmp_path), tmp_path / "teacher.safetensors"
    torch.manual_seed(1)
    built = build_model(model)
    for head in built.rows[-1].dec_score_head:
        head.weight.data *= 40  # sure of some images, and not of others: what is divided by must be that of all processes
        head.bias.data += 4.0
    for mlp in built.rows[-1].dec_bbox_head:
        mlp.layers[-1].bias.data += torch.tensor([0.3, -0.4, 0.5, -0.6])
    state = {name: tensor for name, tensor in built.state_dict().items() if "denoising" not in name}  # as WITHOUT_DENOISING
    save_detector(teacher, state, model_text=built.text, classes=["bar", "square"], image_size=64)
    options = ("--epochs", "1", "--teacher", str(teacher), "--teacher-maps", "0")
    rows = []
    for name, own in (("one", ("--batch-size", "2")), ("two", ("--batch-size", "1", "--devices", "2"))):
        run(data, model, tmp_path / name, *own, *options, before=WITHOUT_DENOISING + WITHOUT_ROUNDING)
        with (tmp_path / name / "metrics.csv").open(newline="") as file:
            rows += csv.DictReader(file)
    one, two = rows
    for name in (name for name in one if name.startswith("loss")):
        assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-4, abs=1e-6), name
    assert all(float(one[f"loss_teacher_{name}"]) > 0.01 for name in ("class", "l1", "giou"))


# Notes which images each batch shows, and asks the first process to stop after the first step of the second epoch.
WATCHED = """
import signal
from pathlib import Path
from nextdetr.engine.train import Trainer
step = Trainer.step
def watched(self, batch, *arguments):
    with (Path(__file__).parent / f"shown-{self.cursor.epoch}.txt").open("a") as file:
        file.write("".join(f"{index} " for index in batch.indices))
    values = step(self, batch, *arguments)
    if STOPS and self.main and (self.cursor.epoch, self.cursor.place) == (1, 0):
        signal.raise_signal(signal.SIGINT)
    return values
Trainer.step = watched
"""


@pytest.mark.slow
@pytest.mark.parametrize(("images", "first", "then"), [(8, 2, 1), (6, 1, 2)])
def test_an_epoch_goes_on_with_other_processes(tmp_path, images, first, then):
    """Batches of two per process: the second session uses the images that the first did not, each once."""
    data, output = squares(tmp_path / "data", images=images), tmp_path / "run"
    options = ("--epochs", "2", "--batch-size", "2")
    run(data, tiny_model(tmp_path), output, *options, "--devices", str(first), before=f"STOPS = True{WATCHED}", code=130)
    done = run(None, None, output, "--resume", str(output), "--devices", str(then), before=f"STOPS = False{WATCHED}")
    assert done["epochs"] == 2
    for epoch in range(2):
        shown = (tmp_path / "site-run" / f"shown-{epoch}.txt").read_text().split()
        assert sorted(map(int, shown)) == list(range(images)), epoch


@pytest.mark.slow
def test_two_processes_learn_from_unlabelled_images_as_one_does(tmp_path):
    """After four steps; a fixed teacher finds the boxes, as an average of few steps finds none."""
    data, model, teacher = squares(tmp_path / "data", images=16), tiny_model(tmp_path), tmp_path / "teacher.safetensors"
    more = squares(tmp_path / "more", images=7, size=80) / "images" / "val"
    torch.manual_seed(1)
    built = build_model(model)
    for head in built.rows[-1].dec_score_head:
        head.weight.data *= 40
        head.bias.data += 4.0
    for mlp in built.rows[-1].dec_bbox_head:
        mlp.layers[-1].bias.data += torch.tensor([0.3, -0.4, 0.5, -0.6])
    state = {name: tensor for name, tensor in built.state_dict().items() if "denoising" not in name}  # as WITHOUT_DENOISING
    save_detector(teacher, state, model_text=built.text, classes=["bar", "square"], image_size=64)
    options = ("--epochs", "1", "--teacher", str(teacher), "--teacher-maps", "0", "--unlabelled", str(more))
    every = "import nextdetr.data.near_copies\nnextdetr.data.near_copies.COPY = 2.0\n"  # these pictures are all alike
    rows = []
    for name, own in (
        ("one", ("--batch-size", "4", "--unlabelled-batch", "2")),
        ("two", ("--batch-size", "2", "--unlabelled-batch", "1", "--devices", "2")),
    ):
        run(data, model, tmp_path / name, *own, *options, before=WITHOUT_DENOISING + WITHOUT_ROUNDING + every)
        with (tmp_path / name / "metrics.csv").open(newline="") as file:
            rows += csv.DictReader(file)
    one, two = rows
    assert float(one["pseudo_boxes"]) > 0
    for name in (name for name in one if name.startswith("loss") or name == "pseudo_boxes"):
        assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-3, abs=1e-5), name


@pytest.mark.slow
def test_two_processes_do_not_wait_for_what_the_decoder_never_reads(tmp_path):
    """The last stage under a head without stride 32 gets no gradient, as in a graft of a small DEIMv2."""
    model = tmp_path / "short.yaml"
    model.write_text(TINY_MODEL.replace("[[6, 5],", "[[6],"))
    data = squares(tmp_path / "data", images=4)
    result = run(data, model, tmp_path / "run", "--epochs", "1", "--batch-size", "1", "--devices", "2")
    assert result["epochs"] == 1  # of two steps; the second one would find the first unfinished
