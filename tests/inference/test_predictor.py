from __future__ import annotations

import json
import weakref

import numpy as np
import pytest
from PIL import Image

from nextdetr.errors import ConfigError, DataError
from nextdetr.inference._supervision import sv
from nextdetr.inference.predictor import Predictor, select_classes
from nextdetr.inference.sources import SourceItem
from tests.inference.conftest import CLASSES

BOX = [20, 10, 80, 50]


@pytest.fixture
def predictor(model) -> Predictor:
    return Predictor(model, CLASSES, 200, device="cpu")


def test_boxes_are_in_pixels_of_the_image(predictor, scene):
    (found,) = predictor.predict(scene)
    assert isinstance(found, sv.Detections)
    np.testing.assert_allclose(found.xyxy, [BOX, [0, 0, 200, 100]], atol=1e-4)
    np.testing.assert_allclose(found.confidence, [0.9, 0.4], atol=1e-6)
    assert found.class_id.tolist() == [1, 2]
    assert found.data["class_name"].tolist() == ["dog", "bird"]
    assert found.xyxy.dtype == np.float32


def test_always_a_list_one_an_image(predictor, scene, tmp_path, model):
    scene.save(tmp_path / "scene.png")
    scene.resize((100, 50)).save(tmp_path / "small.png")
    found = predictor.predict([tmp_path, np.asarray(scene), scene.convert("L")], batch_size=3)
    assert len(found) == 4
    assert model.batches == [3, 1]
    np.testing.assert_allclose(found[1].xyxy[0], [10, 5, 40, 25], atol=0.6)
    np.testing.assert_allclose(found[3].xyxy[0], BOX, atol=1e-4)


def test_grey_arrays(predictor, scene):
    (found,) = predictor.predict(np.asarray(scene)[:, :, 0])
    np.testing.assert_allclose(found.xyxy[0], BOX, atol=1e-4)


def test_boxes_fit_the_upright_picture(predictor, scene, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    scene.save(tmp_path / "turned.png", exif=exif)
    (prediction,) = predictor.stream(tmp_path / "turned.png")
    assert (prediction.width, prediction.height) == (100, 200)
    np.testing.assert_allclose(prediction.detections.xyxy[0], [50, 20, 90, 80], atol=1e-4)


def test_thresholds(predictor, scene):
    counts = {level: len(predictor.predict(scene, confidence=level)[0]) for level in (0, 0.05, 0.3, 0.5, 1)}
    assert counts == {0: 9, 0.05: 3, 0.3: 2, 0.5: 1, 1: 0}
    assert len(predictor.predict(scene, confidence=0, max_detections=4)[0]) == 4


def test_nothing_found_has_all_fields(predictor, scene):
    (found,) = predictor.predict(scene, confidence=1)
    assert found.xyxy.shape == (0, 4)
    assert found.class_id.shape == found.confidence.shape == found.data["class_name"].shape == (0,)


def test_the_class_filter_comes_before_the_limit(predictor, scene):
    for wanted in (["Katze"], [0], ["0"], "Katze"):
        (found,) = predictor.predict(scene, confidence=0.05, classes=wanted, max_detections=1)
        assert found.data["class_name"].tolist() == ["Katze"]
        np.testing.assert_allclose(found.confidence, [0.1], atol=1e-6)


def test_queries_reach_the_model(predictor, scene, model):
    predictor.predict(scene)
    assert model.queries is None
    predictor.predict(scene, queries=50)
    assert model.queries == 50


def test_the_model_predicts_in_evaluation_mode(model, scene):
    predictor = Predictor(model.train(), CLASSES, 64, device="cpu")
    model.train()
    predictor.predict(scene)
    assert not model.training


def test_json(predictor, scene, tmp_path):
    scene.save(tmp_path / "ü.png")
    (prediction,) = predictor.stream(str(tmp_path / "ü.png"))
    result = json.loads(json.dumps(prediction.to_json()))
    assert list(result) == ["path", "width", "height", "detections"]
    assert result["path"] == str(tmp_path / "ü.png")
    assert (result["width"], result["height"]) == (200, 100)
    assert result["detections"][0] == {
        "box": pytest.approx(BOX, abs=1e-4),
        "confidence": pytest.approx(0.9),
        "class_id": 1,
        "class_name": "dog",
    }
    assert prediction.counts() == {"dog": 1, "bird": 1}


@pytest.mark.parametrize("names", ["folder", "list"])
def test_a_damaged_image_does_not_end_the_run(predictor, scene, tmp_path, caplog, names):
    scene.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"nonsense")
    scene.save(tmp_path / "c.png")
    sources = tmp_path if names == "folder" else [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"]
    results = list(predictor.stream(sources, batch_size=2))
    assert [len(result.detections) for result in results] == [2, 0, 2]
    assert [result.problem is None for result in results] == [True, False, True]
    assert "b.png is not an image" in results[1].problem
    assert results[1].image is None
    assert "b.png" in results[1].to_json()["problem"]
    assert "problem" not in results[0].to_json()
    assert "b.png" in caplog.text
    assert len(predictor.predict(sources)) == 3


def test_a_damaged_file_alone_is_an_error(predictor, tmp_path):
    (tmp_path / "b.png").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"b\.png is not an image"):
        predictor.predict(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"none of the 2 images could be read; the first: .*b\.png"):
        predictor.predict(tmp_path)


def test_mistakes_are_told_before_anything_runs(predictor, scene):
    for settings in ({"confidence": 30}, {"max_detections": 0}, {"batch_size": 0}, {"queries": 0}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            predictor.stream(scene, **settings)
    with pytest.raises(DataError, match="nowhere"):
        predictor.stream("nowhere.jpg")
    with pytest.raises(DataError, match=r"image-2.*channels-first"):
        predictor.predict([scene, np.zeros((3, 50, 50), np.uint8)])


def test_unknown_device(model):
    with pytest.raises(ConfigError, match="toaster"):
        Predictor(model, CLASSES, 64, device="toaster")


def test_memory_is_bounded(predictor, model):
    frames: list[weakref.ref[np.ndarray]] = []

    def camera():
        for _ in range(20):
            pixels = np.full((40, 40, 3), 255, np.uint8)
            frames.append(weakref.ref(pixels))
            yield pixels

    stream = predictor.stream(camera(), batch_size=4)
    alive = [sum(frame() is not None for frame in frames) for _ in stream]
    assert len(alive) == 20
    assert max(alive) <= 5
    assert model.batches == [4] * 5


@pytest.mark.parametrize("threads", [0, 2])  # on the processor, and beside a GPU
@pytest.mark.parametrize("live", [False, True])
def test_the_result_of_a_camera_comes_before_its_next_image(predictor, monkeypatch, threads, live):
    monkeypatch.setattr("nextdetr.inference.predictor.reading_threads", lambda device: threads)
    results, pixels = [], np.full((40, 40, 3), 255, np.uint8)

    def camera():
        for number in range(5):
            assert len(results) == number  # as of a program that waits for it
            yield pixels

    def frames(items, **_):
        for number, item in enumerate(items):
            yield SourceItem("camera 0", item.image, number, number / 10, live=True)

    if live:
        monkeypatch.setattr("nextdetr.inference.predictor.unfold", frames)
    for result in predictor.stream(camera(), batch_size=8 if live else 1):
        results.append(result)  # noqa: PERF402 - the camera counts them
    assert len(results) == 5


class TestSelectClasses:
    def test_names_and_indices(self):
        assert select_classes(CLASSES, ["bird", 0, "bird", "2"]) == [0, 2]
        assert select_classes(CLASSES, [np.int64(1)]) == [1]

    def test_a_name_goes_before_an_index(self):
        assert select_classes(["1", "0"], ["0"]) == [1]

    @pytest.mark.parametrize("wanted", ["katze", "Kaze", "KATZE"])
    def test_the_closest_name_is_offered(self, wanted):
        with pytest.raises(DataError, match="did you mean Katze"):
            select_classes(CLASSES, [wanted])

    @pytest.mark.parametrize("wanted", [3, -1, "3", "zebra", True])
    def test_unknown(self, wanted):
        with pytest.raises(DataError, match="it knows 3: Katze, dog, bird"):
            select_classes(CLASSES, [wanted])

    def test_empty(self):
        with pytest.raises(DataError, match="empty"):
            select_classes(CLASSES, [])


NAMES_WITH_COMMAS = ["tench, Tinca tinca", "tench", "car", "bow,arrow"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["car,tench"], [1, 2]), (["tench, Tinca tinca"], [0]), (["tench, Tinca tinca,car"], [0, 2]), (["bow,arrow"], [3]),
        (["car", "bow,arrow, tench"], [1, 2, 3]), (["car,,"], [2]), ([0, "2"], [0, 2]), ("car,tench", [1, 2]),
    ],
)  # fmt: skip
def test_names_of_classes_may_have_commas(wanted, found):
    assert select_classes(NAMES_WITH_COMMAS, wanted) == found
