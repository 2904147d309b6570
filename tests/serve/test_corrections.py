from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from nextdetr.data.sources import load_data
from nextdetr.errors import ConfigError, DataError
from nextdetr.serve.corrections import Corrections
from nextdetr.serve.run import start
from tests.serve.conftest import CLASSES, client, encoded, fake_opens


@pytest.fixture
def served(engine, tmp_path):
    with start("fake", opens=fake_opens(engine), corrections=tmp_path / "fixed") as running, client(running) as ours:
        ours.folder = tmp_path / "fixed"
        yield ours


def send(ours, content, rows, name="a.png"):
    annotations = json.dumps({"detections": [{"box": box, "class_name": label} for box, label in rows]})
    return ours.post("/corrections", files={"image": (name, content), "annotations": (None, annotations)})


def stored(ours):
    return json.loads((ours.folder / "annotations" / "instances_train.json").read_text())


def test_corrections_are_a_data_set_that_training_reads(served):
    assert send(served, encoded((1, 2, 3)), [([5, 6, 25, 36], "dog"), ([1, 1, 9, 9], "lion")], "one/../ä.png").json() == {
        "model": "fake", "file": stored(served)["images"][0]["file_name"], "boxes": 2, "images": 1,
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded((200, 10, 10), form="JPEG", exif=exif)  # 64 x 48, shown as 48 x 64
    assert send(served, turned, [([0, 30, 48, 64], "cat")]).status_code == 201
    assert send(served, encoded((7, 7, 7)), []).status_code == 201
    data = stored(served)
    assert [category["name"] for category in data["categories"]] == [*CLASSES, "lion"]
    assert data["images"][0]["source_name"] == "one/../ä.png"
    assert all(name.parent == served.folder / "train" for name in served.folder.glob("train/*"))

    train = load_data(served.folder, "train", on_bad_data="error")
    assert train.classes == [*CLASSES, "lion"]
    assert sorted(len(record.boxes) for record in train.records) == [0, 1, 2]
    (upright,) = [record for record in train.records if len(record.boxes) == 1]
    assert (upright.width, upright.height) == (48, 64)
    np.testing.assert_allclose(upright.boxes, [[0, 30, 48, 64]])


def test_a_second_correction_of_a_picture_takes_the_place_of_the_first(served):
    content = encoded((1, 2, 3))
    send(served, encoded((9, 9, 9)), [([1, 1, 9, 9], "cat")])
    send(served, content, [([5, 6, 25, 36], "dog")])
    assert send(served, content, [([5, 6, 20, 30], "bird"), ([0, 0, 9, 9], "cat")]).json()["images"] == 2
    data = stored(served)
    assert len(data["annotations"]) == 3
    assert len({row["id"] for row in data["annotations"]}) == 3
    assert [row["bbox"] for row in data["annotations"] if row["category_id"] == 3] == [[5, 6, 15, 24]]


def test_a_misspelt_class_goes_with_its_last_box(served):
    content = encoded((1, 2, 3))
    send(served, encoded((9, 9, 9)), [([1, 1, 9, 9], "lion")])
    send(served, content, [([5, 6, 25, 36], "doog"), ([0, 0, 9, 9], "lion"), ([0, 0, 9, 9], "cat")])
    send(served, content, [([5, 6, 25, 36], "dog")])
    data = stored(served)
    assert [category["name"] for category in data["categories"]] == [*CLASSES, "lion"]
    assert {row["category_id"] for row in data["annotations"]} <= {category["id"] for category in data["categories"]}


def test_clients_that_save_at_once_lose_nothing_and_a_restart_goes_on(served, engine, tmp_path):
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda n: send(served, encoded((n, 0, 0)), [([1, 1, 9, 9], "cat")]).status_code, range(12)))
    assert set(answers) == {201}
    data = stored(served)
    assert (len(data["images"]), len({image["id"] for image in data["images"]}), len(data["annotations"])) == (12, 12, 12)
    with pytest.raises(ConfigError, match="another process is writing there"):
        start("fake", opens=fake_opens(engine), corrections=served.folder)


def test_a_restart_goes_on_where_the_last_server_ended(engine, tmp_path):
    for number in range(2):
        with start("fake", opens=fake_opens(engine), corrections=tmp_path) as running, client(running) as ours:
            assert send(ours, encoded((number, 0, 0)), [([1, 1, 9, 9], "cat")]).json()["images"] == number + 1


def rows(*rows):
    return f'{{"detections": [{", ".join(rows)}]}}'


@pytest.mark.parametrize("annotations", [
    " ", "no json", "[]", "{}", '{"detections": {}}', rows("5"), rows('{"box": [1, 2, 3]}'),
    rows('{"box": [1, 2, 30, 40]}'),
    rows('{"box": [1, 2, 30, 40], "class_name": ""}'), rows('{"box": [1, 2, 30, 40], "class_name": 5}'),
    rows('{"box": [1, 2, 30, 40], "class_name": "a\\nb"}'), rows('{"box": [1, 2, 30, NaN], "class_name": "cat"}'),
    rows('{"box": ["1", 2, 30, 4], "class_name": "cat"}'), rows('{"box": [30, 2, 1, 40], "class_name": "cat"}'),
    rows('{"box": [100, 2, 300, 40], "class_name": "cat"}'), rows('{"box": [true, 2, 30, 40], "class_name": "cat"}'),
    rows('{"box": [1, 2, 30, 1' + "0" * 400 + '], "class_name": "cat"}'), rows(*['{"a": 1}'] * 2500),
    '{"detections": ' + "[" * 100_000,
], ids=lambda text: text[:60])  # fmt: skip
def test_annotations_that_are_none_are_refused_and_nothing_is_written(served, annotations):
    answer = served.post("/corrections", files={"image": ("a.png", encoded()), "annotations": (None, annotations)})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].endswith(".")
    assert not list(served.folder.glob("train/*"))


def test_only_pictures_are_kept(served):
    assert send(served, b"#!/bin/sh\nrm -r ~\n", [([1, 1, 9, 9], "cat")]).status_code == 422
    assert send(served, encoded()[:60], [([1, 1, 9, 9], "cat")]).status_code == 422
    assert served.post("/corrections", files={"image": ("a.png", encoded())}).status_code == 422
    assert served.post("/corrections", content=encoded()).status_code == 422
    assert not list(served.folder.glob("train/*"))


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    file = tmp_path / "annotations" / "instances_train.json"
    file.parent.mkdir()
    for content in ("[1, 2]", "{"):
        file.write_text(content)
        with pytest.raises(DataError, match="move it away"):
            Corrections(tmp_path, 1000)
        assert file.read_text() == content
