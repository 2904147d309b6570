from __future__ import annotations

import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from nextdetr import Detector
from nextdetr.cli.main import run
from nextdetr.confidence import thresholds_metadata
from nextdetr.serve.run import start
from tests.export.handmade import handmade, terms
from tests.export.helpers import checkpoint
from tests.serve.conftest import client, encoded


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(1)
    for number, (size, form) in enumerate([((90, 60), "png"), ((70, 130), "jpg"), ((64, 64), "webp")]):
        exif = Image.Exif()
        exif[0x0112] = 6
        pixels = generator.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.{form}", **({"exif": exif} if form == "jpg" else {}))
    return sorted(folder.iterdir())


def told_by_the_command_line(capsys, model, photos, *options):
    assert (
        run(["predict", str(model), *map(str, photos), "--json", "--output", str(photos[0].parent / "out"), *options]) == 0
    )
    return json.loads(capsys.readouterr().out)["images"]


def as_served(images):
    """Results of the command line as the server's; the last digit may differ, as it postprocesses image by image."""
    return [
        {
            "name": image["path"].rpartition("/")[2],
            "width": image["width"],
            "height": image["height"],
            "detections": [
                {
                    **row,
                    "box": pytest.approx(row["box"], rel=1e-6),
                    "confidence": pytest.approx(row["confidence"], rel=1e-6),
                }
                for row in image["detections"]
            ],
        }
        for image in images
    ]


def test_a_form_of_several_pictures_is_answered_as_predict_does(server, model, photos, capsys):
    answer = server.post("/predict", files=[("image", (path.name, path.read_bytes())) for path in photos])
    expected = as_served(told_by_the_command_line(capsys, model, photos))
    assert answer.json()["images"] == expected
    assert answer.json()["model"] == "toy"
    assert set(answer.json()["seconds"]) == {"queue", "preprocess", "model", "postprocess"}
    assert any(image["detections"] for image in expected)


def test_answers_have_no_more_digits_than_float32(server, model, photos):
    answer = server.post("/predict", params={"confidence": 0}, content=photos[0].read_bytes())
    (found,) = Detector(model).predict(photos[0], confidence=0)
    rows = answer.json()["images"][0]["detections"]
    assert np.array_equal(np.array([row["box"] for row in rows], np.float32), found.xyxy)
    numbers = [number for row in rows for number in (*row["box"], row["confidence"])]
    assert max(len(str(number).replace(".", "").strip("0")) for number in numbers) <= 9
    taken = answer.json()["seconds"]
    assert {step: round(seconds, 6) for step, seconds in taken.items()} == taken
    assert taken["model"] > 0


def test_settings_count_as_in_predict(server, model, photos, capsys):
    query = {"confidence": 0.05, "classes": "dog,bird", "max_detections": 1}
    answer = server.post("/models/toy/predict", params=query, content=photos[1].read_bytes())
    options = ["--confidence", "0.05", "--classes", "dog,bird", "--max-detections", "1"]
    (expected,) = as_served(told_by_the_command_line(capsys, model, photos[1:2], *options))
    (image,) = answer.json()["images"]
    assert image == {**expected, "name": "image"}
    assert len(image["detections"]) == 1
    assert (image["width"], image["height"]) == (130, 70)  # turned upright


def test_a_checkpoint_is_answered_as_predict_does_in_batches(tmp_path, photos):
    path = checkpoint(tmp_path, "nextdetr-zepto", 64)
    expected = Detector(path).predict(photos, confidence=0.0)
    with start(path, batch=3, wait=200, confidence=0.0) as running, client(running) as ours:
        files = [("image", (photo.name, photo.read_bytes())) for photo in photos]
        images = ours.post("/predict", files=files).json()["images"]
        assert 'nextdetr_batch_images_bucket{le="2.0",model="nextdetr-zepto"} 0.0' in ours.get("/metrics").text
    for image, found in zip(images, expected, strict=True):
        boxes = np.array([row["box"] for row in image["detections"]])
        assert len(boxes) == len(found) > 100
        np.testing.assert_allclose(boxes, found.xyxy, atol=1e-3)
        np.testing.assert_allclose([row["confidence"] for row in image["detections"]], found.confidence, atol=1e-5)


def test_near_duplicates_are_merged_as_predict_does(tmp_path, photos, capsys):
    path = checkpoint(tmp_path, "nextdetr-zepto", 64)
    options = ["--confidence", "0", "--merge-iou", "0.05"]
    (expected,) = as_served(told_by_the_command_line(capsys, path, photos[:1], *options))
    with start(path, confidence=0.0, merge_iou=0.05) as running, client(running) as ours:
        assert ours.get("/model").json()["merge_iou"] == 0.05
        found = {
            limit: ours.post("/predict", params=limit, content=photos[0].read_bytes()).json()["images"][0]["detections"]
            for limit in ("", "merge_iou=0.05", "merge_iou=0.01", "merge_iou=1")
        }
    assert found[""] == found["merge_iou=0.05"] == expected["detections"]
    assert 0 < len(found["merge_iou=0.01"]) < len(found[""]) < len(found["merge_iou=1"])


@pytest.mark.parametrize(
    ("accept", "form"), [("image/jpeg", "JPEG"), ("image/png", "PNG"), ("image/*;q=0.9, text/html", "JPEG")]
)
def test_the_annotated_picture_is_sent_where_it_is_asked_for(server, accept, form):
    answer = server.post("/predict?confidence=0", content=encoded(size=(200, 120)), headers={"Accept": accept})
    picture = Image.open(BytesIO(answer.content))
    assert (answer.status_code, picture.format, picture.size) == (200, form, (200, 120))
    assert answer.headers["content-type"] == f"image/{form.lower()}"
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 2  # more than the one colour that came


def test_what_is_said_of_models_fits_the_file(server):
    info = server.get("/model").json()
    assert (info["name"], info["classes"], info["image_size"]) == ("toy", ["cat", "dog", "bird"], 64)
    assert (info["max_detections"], info["merge_iou"]) == (300, None)
    everything = server.get("/models").json()
    assert everything["models"] == [server.get("/models/toy").json()] == [info]
    assert everything["limits"]["max_images"] == 4
    assert server.get("/health").json() == {"status": "ok"}
    assert server.get("/ready").json() == {"status": "ready"}


def test_metrics_count_images_and_requests_by_declared_addresses_only(server):
    server.post("/predict", content=encoded())
    server.get("/made/up/by/somebody")
    text = server.get("/metrics").text
    assert 'nextdetr_requests_total{route="/predict",status="200"}' in text
    assert 'nextdetr_requests_total{route="other",status="404"}' in text
    assert "somebody" not in text
    assert 'nextdetr_images_total{model="toy"}' in text
    assert 'nextdetr_queue_images{model="toy"} 0.0' in text


def test_openapi_describes_bodies_answers_and_errors_with_examples(server):
    document = server.get("/openapi.json").json()
    predict = document["paths"]["/models/{name}/predict"]["post"]
    assert {"image/jpeg", "multipart/form-data"} <= set(predict["requestBody"]["content"])
    assert {"200", "413", "422", "503"} <= set(predict["responses"])
    assert {"confidence", "classes", "max_detections", "merge_iou"} <= {
        parameter["name"] for parameter in predict["parameters"]
    }
    schemas = document["components"]["schemas"]
    assert schemas["PredictBody"]["example"]["images"][0]["detections"]
    assert schemas["ErrorBody"]["example"]["error"]["message"]


def test_the_models_own_thresholds_count_unless_the_request_has_one(tmp_path, capsys, photos):
    path = tmp_path / "toy.onnx"
    contract = terms()
    contract.details.update(thresholds_metadata([0.1, 0.9, 0.0]))
    handmade(path, contract)
    expected = as_served(told_by_the_command_line(capsys, path, photos[:1]))
    assert {row["class_name"] for row in expected[0]["detections"]} == {"cat", "bird"}
    with start(path) as running, client(running) as ours:
        files = [("image", (photos[0].name, photos[0].read_bytes()))]
        assert ours.post("/predict", files=files).json()["images"] == expected
        assert ours.post("/predict?confidence=auto", files=files).json()["images"] == expected
        assert len(ours.post("/predict?confidence=0", files=files).json()["images"][0]["detections"]) == 4
        info = ours.get("/model").json()
        assert (info["confidence"], info["thresholds"]) == ("auto", {"cat": 0.1, "dog": 0.9, "bird": 0.0})


def test_a_moving_picture_of_a_phone_is_read_without_its_video(server):
    picture = encoded((200, 10, 10), form="JPEG", progressive=True)
    moving = picture + np.random.default_rng(0).bytes(400_000) + b"\xff\xda\0\0" * 150
    expected, found = (server.post("/predict", content=content) for content in (picture, moving))
    assert (found.status_code, found.json()["images"]) == (200, expected.json()["images"])
