"""A run with a teacher: which ones are allowed, their output, how the student learns from it, and resuming."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from safetensors import safe_open
from torch.nn import functional

from nextdetr.cli.main import main
from nextdetr.config import TrainConfig
from nextdetr.data.records import DetectionData
from nextdetr.engine.semi import Semi, Views
from nextdetr.engine.teacher import Teacher, _digest, open_teacher
from nextdetr.engine.teaching import Teaching
from nextdetr.engine.train import train
from nextdetr.errors import ConfigError, ModelFileError, WeightsError
from nextdetr.inference.contract import Contract
from nextdetr.inference.exported import ExportedModel, OpenedExport
from nextdetr.losses.criterion import Criterion
from nextdetr.losses.matcher import HungarianMatcher
from nextdetr.losses.pseudo import find_boxes
from nextdetr.models.graph import build_model, parse_model_text
from nextdetr.structures import Target
from nextdetr.weights.checkpoint import open_model, save_detector, save_opened
from nextdetr.weights.convert import save_backbone
from tests.helpers import TINY_MODEL, interrupt_training, squares, tiny_model

DFINE = TINY_MODEL.replace("RTDETRDecoder, [nc, 32, 20, 2, 4, 2, 64]", "DFINEDecoder, [nc, 32, 20, 2, 4, 2, 64]")
WIDER = DFINE.replace("DFINEDecoder, [nc, 32, 20", "DFINEDecoder, [nc, 64, 30")


def checkpoint(path, classes=("square", "bar"), text=WIDER, seed=1):
    """An untrained detector file with perturbed heads and high class scores, so that it has detections."""
    torch.manual_seed(seed)
    model = build_model(parse_model_text(text, "test"), num_classes=len(classes))
    for parameter in model.rows[-1].parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for head in model.rows[-1].dec_score_head:
        head.bias.data += 4.0
    return save_detector(path, model.state_dict(), model_text=text, classes=list(classes), image_size=64)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    squares(folder / "data")
    (folder / "dfine.yaml").write_text(DFINE)
    checkpoint(folder / "teacher.safetensors")
    return folder


@pytest.fixture
def settings(given, tmp_path):
    return {
        "data": str(given / "data"), "model": str(given / "dfine.yaml"), "teacher": given / "teacher.safetensors",
        "epochs": 2, "image_size": 64, "batch_size": 2, "workers": 0, "val_every": 2, "output": tmp_path / "run",
    }  # fmt: skip


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def losses(folder):
    return [{name: value for name, value in row.items() if name.startswith("loss")} for row in rows(folder)]


# Who may be a teacher


def test_classes_are_matched_by_name(tmp_path):
    teacher = open_teacher(checkpoint(tmp_path / "t.safetensors", ("bird", "Bar", "square")))
    teacher.for_classes(["square", "bar", "cat"])
    assert teacher.pairs == [(0, 2), (1, 1)]
    pupil = build_model(parse_model_text(DFINE, "test"), num_classes=3)
    lines = teacher.lines(pupil, places=True, maps=(16, 32))
    assert lines[0].endswith("teaches classes, boxes, distributions of the edges and the backbone's maps of stride 16, 32.")
    assert lines[1] == "It does not know cat: learnt from the labels alone."
    lesson = teacher.teach(torch.rand(2, 3, 64, 64), (16,))
    assert lesson.told[0, 0].tolist() == [True, True, False]
    assert (lesson.scores[..., 2] == 0).all()


def test_a_teacher_of_other_classes_is_refused(tmp_path, settings, capsys):
    other = checkpoint(tmp_path / "other.safetensors", ("cat", "dog"))
    with pytest.raises(ConfigError, match=r"knows none of the data's classes \(square, bar; it has cat, dog\)"):
        train(TrainConfig(**settings | {"teacher": other}), quiet=True)
    options = ["--data", settings["data"], "--model", settings["model"], "--output", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        main(["train", *options, "--teacher", str(other)])
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_is_no_trained_detector_is_refused(tmp_path):
    backbone = build_model(parse_model_text(DFINE, "test")).backbone
    save_backbone(tmp_path / "b.safetensors", backbone.state_dict(), weights_licence="none", source_weights="none")
    (tmp_path / "noise.safetensors").write_bytes(b"nothing of the kind" * 10)
    (tmp_path / "noise.onnx").write_bytes(b"nothing of the kind" * 10)
    for name, error, words in (
        ("nextdetr-atto", ConfigError, "there is no such teacher.* without weights: train it first"),
        (tmp_path / "gone.safetensors", ConfigError, "there is no such teacher"),
        (tiny_model(tmp_path), ConfigError, "a model file has no weights to teach with"),
        (tmp_path / "b.safetensors", WeightsError, "a backbone alone"),
        (tmp_path / "noise.safetensors", WeightsError, "noise"),
        (tmp_path / "noise.onnx", ModelFileError, "noise"),
    ):
        with pytest.raises(error, match=words) as raised:
            open_teacher(name)
        assert raised.value.exit_code == 2


def test_weights_of_zero_are_refused(settings):
    with pytest.raises(ValueError, match="both 0"):
        TrainConfig(**settings | {"teacher_weight": 0, "teacher_maps": 0})


def test_settings_of_a_teacher_without_one_are_refused(settings):
    with pytest.raises(ValueError, match="--teacher-until is about a teacher: name it with --teacher too"):
        TrainConfig(**settings | {"teacher": None, "teacher_until": 0.5})


# What it says


def test_a_lesson_holds_the_surest_places_at_any_size_of_image(given):
    teacher = open_teacher(given / "teacher.safetensors")
    teacher.for_classes(["bar", "square"])
    images = torch.rand(2, 3, 72, 72, generator=torch.Generator().manual_seed(0))
    lesson = teacher.teach(images, (32,))
    resized = functional.interpolate(images, size=(64, 64), mode="bilinear", antialias=True)  # the nearest that it takes
    with torch.no_grad():
        output = teacher.opened.model(resized)
    scores, index = output.logits.sigmoid().amax(-1).sort(descending=True)
    torch.testing.assert_close(lesson.confidence, scores, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lesson.boxes[1], output.boxes[1, index[1]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lesson.scores[1], output.logits[1, index[1]].sigmoid().flip(-1), atol=1e-5, rtol=1e-5)
    assert lesson.edges.bins.shape == (1, 2, 20, 4, 33)  # as many as there are tokens
    assert lesson.maps[32].shape == (2, 320, 2, 2)
    assert not any(value.requires_grad for value in (lesson.points, lesson.scores, lesson.boxes, lesson.maps[32]))


def test_all_boxes_of_a_crowded_image_are_found(tmp_path, monkeypatch):
    """On unlabelled images, those beyond the places that a pupil is asked about would be taught as background."""
    text = WIDER.replace("DFINEDecoder, [nc, 64, 30", "DFINEDecoder, [nc, 64, 150")
    teacher = open_teacher(checkpoint(tmp_path / "many.safetensors", text=text))
    teacher.for_classes(["square", "bar"])
    images = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    assert teacher.teach(images, ()).scores.shape == (1, 100, 2)
    data, seen = DetectionData("d", "train", ["square", "bar"], [1, 2], [], []), []
    monkeypatch.setattr("nextdetr.engine.semi.find_boxes", lambda *found: seen.append(found[0].shape) or find_boxes(*found))
    model, fabric = build_model(parse_model_text(DFINE, "test"), num_classes=2), Fabric(accelerator="cpu")
    semi = Semi(data, data, model, model, Criterion(2, HungarianMatcher()), TrainConfig(data="d"), fabric, teacher)
    semi.look(Views(images, images, [torch.eye(2, 3)], []))
    assert seen == [(1, 150, 2)]


class FileSession:
    """Three detections an image, two of them of one box; the pictures that it got are kept."""

    name = "stub"

    def __init__(self):
        self.images = []

    def run(self, inputs):
        self.images.append(inputs["images"])
        corners = np.array([[0.2, 0.2, 0.6, 0.6], [0.2, 0.2, 0.6, 0.6], [0.7, 0.7, 0.9, 0.9]], np.float32)[None]
        scores, labels = np.array([[0.9, 0.6, 0.3]], np.float32), np.array([[1, 0, 1]], np.int64)
        return {"boxes": corners, "scores": scores, "labels": labels}


def exported(classes, **terms):
    contract = Contract(list(classes), 96, 20, max_detections=3, **terms)
    session = FileSession()
    model = ExportedModel(session, contract, "file.onnx")
    return Teacher(OpenedExport(model, contract.classes, 96, "file.onnx", {"trained": "yes"}), "file.onnx", "0"), session


def test_an_exported_file_teaches_its_detections():
    teacher, session = exported(["bar", "square"], input_type="uint8", layout="nhwc")
    teacher.for_classes(["square", "bar"])
    torch.manual_seed(0)
    lesson = teacher.teach(torch.rand(2, 3, 64, 64), ())
    assert [(image.shape, image.dtype) for image in session.images] == [((1, 96, 96, 3), np.uint8)] * 2  # its own terms
    torch.testing.assert_close(lesson.confidence, torch.tensor([[0.9, 0.3, 0.0]]).repeat(2, 1))
    torch.testing.assert_close(lesson.scores[0, 0], torch.tensor([0.9, 0.6]))  # two rows of one box are one place
    assert lesson.told[0].tolist() == [[True, True], [True, True], [False, False]]
    torch.testing.assert_close(lesson.boxes[0, 0], torch.tensor([0.4, 0.4, 0.4, 0.4]))
    moved = (lesson.points - lesson.boxes).abs()[:, :2]
    assert (moved > 0).all()  # the pupil has something to find
    assert moved.max() <= 0.2 + 1e-6  # each side by a quarter of the box at most
    assert lesson.edges is None
    assert lesson.maps == {}
    dynamic, session = exported(["bar"], dynamic=True, least_size=64, largest_size=128)
    dynamic.for_classes(["bar"])
    dynamic.opened.model.num_classes = 2
    for side in (48, 80, 256):
        dynamic.teach(torch.rand(1, 3, side, side), ())
    assert [image.shape[-1] for image in session.images] == [64, 64, 128]


# How a pupil learns


def teaching(teacher, pupil, **more):
    teacher.for_classes(["square", "bar"])
    return Teaching(teacher, pupil, TrainConfig(**more), Fabric(accelerator="cpu"))


def test_a_pupil_comes_to_answer_as_its_teacher_does(given):
    """Without a label: nothing but the teacher's losses, which fall to under 60 % in 40 steps."""
    torch.manual_seed(0)
    pupil = build_model(parse_model_text(DFINE, "test")).train()
    lessons = teaching(open_teacher(given / "teacher.safetensors"), pupil)
    optimizer = torch.optim.AdamW([*pupil.parameters(), *lessons.projections.parameters()], lr=2e-3)
    images, none = torch.rand(2, 3, 64, 64), [Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))] * 2
    history = []
    for step in range(40):
        output = pupil(images, none, questions=lessons.ask(images, step / 40))
        terms = lessons.losses(output)
        sum(terms.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append({name: value.item() for name, value in terms.items()})
    assert list(terms) == lessons.names
    for name in lessons.names:
        early, late = (np.mean([one[name] for one in part]) for part in (history[:3], history[-3:]))
        assert late < 0.8 * early, (name, early, late)
    assert sum(history[-1].values()) < 0.6 * sum(history[0].values())


def test_a_run_with_a_teacher_leaves_a_detector_without_its_traces(settings):
    result = train(TrainConfig(**settings | {"profile": True}), quiet=True)
    assert result.profile is not None
    assert "teacher" in result.profile["parts"]
    found = [name for name in rows(settings["output"])[0] if name.startswith("loss_teacher")]
    assert found == [f"loss_teacher_{name}" for name in ("class", "l1", "giou", "edges", "maps")]
    assert all(float(row[name]) > 0 for row in rows(settings["output"]) for name in found)
    with safe_open(settings["output"] / "best.safetensors", "pt") as file:
        assert file.metadata()["teacher"] == "teacher.safetensors"
        assert set(file.keys()) == set(build_model(settings["model"]).state_dict())
    state = torch.load(settings["output"] / "last.ckpt", weights_only=True)
    assert sorted(state["projections"]) == sorted(f"layers.{s}.{k}" for s in (16, 32) for k in ("weight", "bias"))


def test_the_licence_of_a_teacher_survives_more_trainings(settings, tmp_path):
    teacher = save_opened(
        tmp_path / "licensed.safetensors", open_model(settings["teacher"]), weights_licence="AGPL-3.0",
        extra={"teacher": "first.onnx", "teacher_licence": "CC-BY-NC-4.0"},
    )  # fmt: skip

    def trained(output, **changes):
        given = settings | {"epochs": 1, "val_every": 1, "output": tmp_path / output} | changes
        config = TrainConfig(**{key: value for key, value in given.items() if value is not None})
        checkpoint = train(config, quiet=True).checkpoint
        metadata = open_model(checkpoint).metadata
        return checkpoint, {key: metadata.get(key) for key in ("teacher", "teacher_licence")}

    stated = {"teacher": "licensed.safetensors", "teacher_licence": "AGPL-3.0 and CC-BY-NC-4.0"}
    first, found = trained("first", teacher=teacher)
    assert found == stated
    second, found = trained("second", model=str(first), teacher=None)
    assert found == stated
    resumed = train(TrainConfig(resume=tmp_path / "second", epochs=2), quiet=True).checkpoint
    assert open_model(resumed).metadata["teacher_licence"] == stated["teacher_licence"]
    _, found = trained("third", weights=second)  # with another teacher
    assert found == stated | {"teacher": "licensed.safetensors and teacher.safetensors"}


def test_a_teacher_is_asked_in_its_share_of_the_run(settings, monkeypatch):
    asked = []
    teach = Teacher.teach
    monkeypatch.setattr(Teacher, "teach", lambda self, *given: asked.append(1) or teach(self, *given))
    train(TrainConfig(**settings | {"teacher_until": 0.5, "teacher_maps": 0}), quiet=True)
    assert len(asked) == 3
    first, second = losses(settings["output"])
    assert float(first["loss_teacher_class"]) > 0
    assert float(second["loss_teacher_class"]) == 0
    assert "loss_teacher_maps" not in first


def test_without_a_teacher_nothing_of_it_is_done(settings):
    train(TrainConfig(**settings | {"teacher": None, "epochs": 1}), quiet=True)
    assert not [name for name in rows(settings["output"])[0] if "teacher" in name]
    state = torch.load(settings["output"] / "last.ckpt", weights_only=True)
    assert "projections" not in state
    assert state["contract"]["teacher"] == ""


def test_gradients_of_the_projections_are_the_mean_of_all_processes(given):
    pupil = build_model(parse_model_text(DFINE, "test"))
    lessons = teaching(open_teacher(given / "teacher.safetensors"), pupil)
    for number, parameter in enumerate(lessons.projections.parameters()):
        parameter.grad = torch.full_like(parameter, float(number))
    lessons.fabric = SimpleNamespace(world_size=2, all_reduce=lambda values, reduce_op: values / 2)
    lessons.synchronize()
    found = [parameter.grad.unique().tolist() for parameter in lessons.projections.parameters()]
    assert found == [[number / 2] for number in range(len(found))]


# Resuming such a run


def test_a_resumed_run_with_a_teacher_equals_the_uninterrupted_one(settings, tmp_path, monkeypatch):
    """The teacher's file was moved in between, and its new path is given."""
    moved = tmp_path / "moved.safetensors"
    train(TrainConfig(**settings | {"output": tmp_path / "whole"}), quiet=True)
    own = shutil.copy(settings["teacher"], tmp_path / "own.safetensors")
    interrupt_training(settings | {"teacher": own}, 2, match="--resume")
    shutil.move(own, moved)
    with pytest.raises(ConfigError, match="the teacher of the run no longer exists; if it has moved, name it"):
        train(TrainConfig(resume=settings["output"]), quiet=True)
    train(TrainConfig(resume=settings["output"], teacher=moved), quiet=True)
    assert losses(settings["output"]) == losses(tmp_path / "whole")
    first, second = (torch.load(run / "last.ckpt", weights_only=True) for run in (tmp_path / "whole", settings["output"]))
    for part in ("model", "ema", "projections"):
        torch.testing.assert_close(first[part], second[part], rtol=0, atol=0)


def test_a_teacher_that_was_calibrated_meanwhile_is_the_same_one(settings, tmp_path):
    own = Path(shutil.copy(settings["teacher"], tmp_path / "own.safetensors"))
    before = open_teacher(own).digest
    interrupt_training(settings | {"teacher": own}, 1, match="--resume")
    save_opened(own, open_model(own), extra={"calibration": "a threshold"})
    assert train(TrainConfig(resume=settings["output"]), quiet=True).epochs == 2
    assert open_teacher(own).digest == before
    assert open_teacher(checkpoint(own, ("square", "bird"))).digest != before


def test_a_teacher_stays_the_same_when_more_is_downloaded_beside_it(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text(name)
    before = _digest(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")  # as transformers does, in the cache of the Hub
    assert _digest(tmp_path) == before
    (tmp_path / "config.json").write_text("other settings")
    assert _digest(tmp_path) != before


def test_another_teacher_is_refused_on_resume(settings, tmp_path, monkeypatch):
    interrupt_training(settings, 1, match="--resume")
    other = checkpoint(tmp_path / "other.safetensors", seed=2)
    with pytest.raises(ConfigError, match=r"other.safetensors: not the teacher of the run.*--model .*best.safetensors"):
        train(TrainConfig(resume=settings["output"], teacher=other), quiet=True)


def test_a_run_without_a_teacher_gets_none_on_resume(settings, monkeypatch):
    interrupt_training(settings | {"teacher": None}, 1, match="--resume")
    with pytest.raises(ConfigError, match="has no teacher; leave --teacher out"):
        train(TrainConfig(resume=settings["output"], teacher=settings["teacher"]), quiet=True)


def test_teacher_and_weights_may_be_one_file_in_half_precision_at_several_sizes(settings):
    changed = {
        "model": str(settings["teacher"]), "weights": settings["teacher"], "precision": "bf16-mixed", "epochs": 1,
        "multi_scale": True, "image_size": 96,
    }  # fmt: skip
    train(TrainConfig(**settings | changed), quiet=True)
    assert float(rows(settings["output"])[0]["loss_teacher_class"]) > 0
