"""Detectors know which images they were trained on, and are compared on others."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from nextdetr import Detector
from nextdetr.cli.main import run
from nextdetr.config import ExportConfig, TrainConfig
from nextdetr.data import seen
from nextdetr.data.seen import TRAINED_ON, file_digests, is_seen, trained_on, trained_on_metadata
from nextdetr.data.sources import load_data
from nextdetr.data.split import SetAside, split_off
from nextdetr.data.unlabelled import find_unlabelled
from nextdetr.engine.fine_tune import seen_in_val, trained_before
from nextdetr.engine.train import train
from nextdetr.export.run import _contract
from nextdetr.identity import Identity
from nextdetr.inference.header import read_metadata
from nextdetr.weights.checkpoint import open_model, save_opened
from tests.helpers import squares, tiny_model


def without_val(folder, **options):
    squares(folder, **options)
    (folder / "annotations" / "instances_val.json").unlink()
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data set, the same without val, and a model."""
    folder = tmp_path_factory.mktemp("seen")
    squares(folder / "data")
    without_val(folder / "no_val")
    tiny_model(folder)
    return folder


def saved(place, path, records, **options):
    extra = {} if records is None else trained_on_metadata(records)
    return save_opened(path, open_model(place / "tiny.yaml"), classes=["square", "bar"], extra=extra, **options)


def compared(capsys, a, b, data, *options):
    code = run(["compare", str(a), str(b), "--data", str(data), "--resamples", "100", "--json", *options])
    out, err = capsys.readouterr()
    return code, json.loads(out), " ".join(err.split())


def test_what_is_stored_is_read_again(place, tmp_path):
    records = load_data(place / "data", "train").records
    metadata = trained_on_metadata(records)
    assert len(metadata[TRAINED_ON]) == 8 * 6
    known = trained_on(metadata)
    assert is_seen(records, known) == [True] * 6
    assert is_seen(load_data(place / "data", "val").records, known) == [False] * 6
    shutil.copytree(place / "data", tmp_path / "copy")
    assert is_seen(load_data(tmp_path / "copy", "train").records, known) == [True] * 6
    assert trained_on(trained_on_metadata([], known)) == known
    assert len(set(file_digests(records))) == 6
    for text in ("%", "AAAA", "Ä"):
        assert trained_on({TRAINED_ON: text}) is None
    assert trained_on({}) is None
    assert trained_on({TRAINED_ON: ""}) == frozenset()


def test_without_val_they_are_compared_on_what_neither_was_trained_on(place, tmp_path, capsys):
    records = load_data(place / "no_val", "train").records
    a = saved(place, tmp_path / "a.safetensors", records[:4])
    b = saved(place, tmp_path / "b.safetensors", load_data(place / "data", "val").records)
    code, result, told = compared(capsys, a, b, place / "no_val")
    assert (code, result["images"], result["split"]) == (0, 2, "val")
    assert "; no val, so the 2 of 6 images that neither detector was trained on" in told
    b = saved(place, tmp_path / "b.safetensors", records[3:5])
    assert compared(capsys, a, b, place / "no_val")[1]["images"] == 1
    b = saved(place, tmp_path / "b.safetensors", records[3:])
    code, result, _ = compared(capsys, a, b, place / "no_val")
    assert code == 2
    assert result["error"]["message"] == (
        f"{place / 'no_val'}: there is no val, and {a} or {b} was trained on every image of train, so none is left to "
        "compare on: label some new images, and name them with --data."
    )
    assert compared(capsys, a, b, place / "no_val", "--split", "train")[1]["images"] == 6  # as asked for


def test_images_of_val_that_one_was_trained_on_are_left_out(place, tmp_path, capsys):
    records = load_data(place / "data", "val").records
    a = saved(place, tmp_path / "a.safetensors", [])
    b = saved(place, tmp_path / "b.safetensors", records[:2])
    code, result, told = compared(capsys, a, b, place / "data")
    assert (code, result["images"]) == (0, 4)
    assert "; the 4 of 6 images that neither detector was trained on" in told
    code, result, told = compared(capsys, a, a, place / "data")
    assert (result["images"], "neither" in told) == (6, False)
    c = saved(place, tmp_path / "c.safetensors", records)
    message = compared(capsys, b, c, place / "data")[1]["error"]["message"]
    assert f"{b} or {c} was trained on every image of val" in message
    unknown = saved(place, tmp_path / "unknown.safetensors", None)
    code, result, told = compared(capsys, unknown, c, place / "data")
    assert (code, result["images"]) == (0, 6)  # it may have been trained on any
    why = f"; {unknown} may have been trained on some of it (its file does not list its training images)"
    assert told.count(why) == told.count("may have been trained") == 1
    assert "may have been" not in compared(capsys, unknown, c, place / "data", "--split", "train")[2]


def test_other_images_set_aside_are_no_change_of_the_data_set(place, tmp_path, capsys):
    """As of two detectors that were shared, and so list no training images."""
    data = load_data(place / "no_val", "train")
    asides = {}
    for seed in range(20):
        val = split_off(data, 0.2, seed).val
        asides.setdefault(val.records[0].path, SetAside.of(val, 0.2, seed))
    a, b = (
        save_opened(
            tmp_path / f"{name}.safetensors", open_model(place / "tiny.yaml"), classes=["square", "bar"],
            extra=aside.to_metadata(),
        )
        for name, aside in zip("ab", asides.values(), strict=False)
    )  # fmt: skip
    code, result, _ = compared(capsys, a, b, place / "no_val")
    assert code == 2
    assert f"{a} and {b} set different images of train aside in training" in result["error"]["message"]
    assert compared(capsys, a, a, place / "no_val")[1]["images"] == 1


def test_classes_in_another_order_are_compared_too(place, tmp_path, capsys):
    records = load_data(place / "no_val", "train").records
    a = saved(place, tmp_path / "a.safetensors", records[:4])
    b = save_opened(
        tmp_path / "b.safetensors", open_model(place / "tiny.yaml"), classes=["bar", "square"],
        extra=trained_on_metadata(records[:3]),
    )  # fmt: skip
    code, result, _ = compared(capsys, a, b, place / "no_val")
    assert (code, result["images"], set(result["per_class"])) == (0, 2, {"square", "bar"})


@pytest.mark.slow
def test_a_training_writes_them_and_one_that_starts_from_it_keeps_them(place, tmp_path, capsys):
    options = {"epochs": 1, "image_size": 64, "batch_size": 3, "workers": 0}
    settings = TrainConfig(data=str(place / "no_val"), model=str(place / "tiny.yaml"), output=tmp_path / "a", **options)
    first = train(settings, quiet=True).checkpoint
    records = load_data(place / "no_val", "train").records
    used = is_seen(records, trained_on(open_model(first).metadata))
    assert used.count(True) == 5  # one is set aside
    more = squares(tmp_path / "more", size=80)
    second = train(TrainConfig(data=str(more), model=first, output=tmp_path / "b", **options), quiet=True).checkpoint
    known = trained_on(open_model(second).metadata)
    assert is_seen(records, known) == used
    assert all(is_seen(load_data(more, "train").records, known))
    assert not any(is_seen(load_data(more, "val").records, known))
    train(TrainConfig(resume=tmp_path / "b", epochs=2), quiet=True)
    assert trained_on(open_model(tmp_path / "b" / "last.safetensors").metadata) == known
    code, result, told = compared(capsys, tmp_path / "a", tmp_path / "b", place / "no_val")
    assert (code, result["images"]) == (0, 1), told
    unknown = saved(place, tmp_path / "unknown.safetensors", None)
    third = train(TrainConfig(data=str(more), model=str(unknown), output=tmp_path / "c", **options), quiet=True).checkpoint
    assert TRAINED_ON not in open_model(third).metadata  # what it started from may have seen anything


@pytest.mark.slow
def test_more_images_than_are_listed_are_reported_in_training_and_by_compare(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(seen, "MOST", 5)
    settings = {"epochs": 1, "image_size": 64, "batch_size": 3, "workers": 0, "model": str(place / "tiny.yaml")}
    few = TrainConfig(data=str(place / "no_val"), output=tmp_path / "few", **settings)  # one of six is set aside
    many = TrainConfig(data=str(place / "data"), output=tmp_path / "many", **settings)
    train(few)
    assert "training images: the" not in capsys.readouterr().err
    checkpoint = train(many).checkpoint
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("training images: the detector's file cannot list them for compare to leave out.") == 1
    assert trained_on(open_model(checkpoint).metadata) is None
    code, result, told = compared(capsys, tmp_path / "few", checkpoint, place / "data")
    assert (code, result["images"]) == (0, 6)
    assert f"; {checkpoint} may have been trained on some of it (its file lists no training images, as there are" in told


def test_what_started_from_unknown_weights_is_unknown(place, tmp_path):
    records = load_data(place / "data", "train").records
    file = saved(place, tmp_path / "a.safetensors", records)
    shared = Detector(file).save_pretrained(tmp_path / "shared")
    elsewhere = tmp_path / "none.safetensors"
    known = trained_on(trained_on_metadata(records))
    for settings, expected in (
        ({}, frozenset()), ({"weights": file}, known), ({"model": str(file)}, known), ({"backbone_weights": file}, known),
        ({"weights": shared}, None), ({"backbone_weights": shared}, None), ({"resume": tmp_path, "weights": file}, known),
    ):  # fmt: skip
        assert trained_before(TrainConfig(**settings), elsewhere) == expected, settings
    assert trained_before(TrainConfig(resume=tmp_path), file) == known


def test_a_student_lists_the_images_of_its_teacher(place, tmp_path):
    val = load_data(place / "data", "val").records
    settings = {
        "data": str(place / "data"), "model": str(place / "tiny.yaml"), "epochs": 1, "image_size": 64, "batch_size": 3,
        "workers": 0, "report": False,
    }  # fmt: skip
    own = load_data(place / "data", "train").records
    for name, records, more in (("known", val[:2], val[:2]), ("unknown", None, [])):
        teacher = saved(place, tmp_path / f"{name}.safetensors", records)
        student = train(TrainConfig(teacher=teacher, output=tmp_path / name, **settings), quiet=True).checkpoint
        assert trained_on(open_model(student).metadata) == trained_on(trained_on_metadata([*own, *more]))


def test_images_that_end_alike_differ(tmp_path):
    for name, value in (("a", 10), ("b", 20)):
        image = Image.new("RGB", (60, 60), (0, 0, 0))
        image.paste((value, value, value), (0, 0, 60, 10))
        image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(tmp_path / f"{name}.bmp")
    data = find_unlabelled([tmp_path])
    assert len(set(file_digests(data.records))) == 1
    assert is_seen(data.records, trained_on(trained_on_metadata(data.records[:1]))) == [True, False]


def test_the_names_of_images_are_not_in_files_for_the_web(place):
    opened = open_model(place / "tiny.yaml")
    opened = replace(opened, metadata=Identity((3, 7), {"a patient.png": 5}).to_metadata())
    for kind, known in (("onnx", {"category_ids", "image_ids"}), ("web", {"category_ids"})):
        assert known == _contract(opened, ExportConfig(format=kind)).details.keys() & {"category_ids", "image_ids"}


def test_exports_keep_them_and_shared_folders_do_not(place, tmp_path):
    records = load_data(place / "data", "train").records
    detector = Detector(saved(place, tmp_path / "a.safetensors", records))
    exported = detector.export("onnx", output=tmp_path / "out", image_size=64, quiet=True)
    assert trained_on(read_metadata(Path(exported.file))) == trained_on(trained_on_metadata(records))
    assert TRAINED_ON not in _contract(detector.opened, ExportConfig(format="web")).details
    assert TRAINED_ON not in Detector(detector.save_pretrained(tmp_path / "shared")).opened.metadata


def test_images_of_val_that_a_start_or_teacher_was_trained_on_are_reported(place, tmp_path, capsys):
    val = load_data(place / "data", "val").records
    one, two = (trained_on(trained_on_metadata(val[:count])) for count in (1, 2))
    rest = trained_on(trained_on_metadata(load_data(place / "data", "train").records))
    assert seen_in_val(val, {"a": None, "b": frozenset(), "c": rest}) == []
    words = "so scores on val say little about new images"
    assert seen_in_val(val, {"a": one, "b": rest, "c": two}) == [
        f"note: a was trained on 1 of the 6 images of val, {words}",
        f"note: c was trained on 2 of the 6 images of val, {words}",
    ]
    start = saved(place, tmp_path / "start.safetensors", val[:2])
    train(
        TrainConfig(
            data=str(place / "data"), model=str(start), teacher=start, epochs=1, image_size=64, batch_size=3, workers=0,
            report=False, output=tmp_path / "run",
        )
    )  # fmt: skip
    said = " ".join(capsys.readouterr().err.split())
    for who in ("the detector that this run starts from", "the teacher"):
        assert said.count(f"note: {who} was trained on 2 of the 6 images of val, {words}") == 1
    train(TrainConfig(resume=tmp_path / "run", epochs=2))
    assert words not in capsys.readouterr().err  # it has seen this run's own images since
