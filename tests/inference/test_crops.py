"""``--save crops``: one file an object."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from nextdetr.inference._supervision import sv
from nextdetr.inference.outputs import save_predictions
from nextdetr.inference.predictor import Prediction
from nextdetr.inference.writers.crops import class_folders
from tests.inference.test_outputs import prediction

CLASSES = ["cat", "dog", "Vögel"]


def written(predictions, folder, classes=CLASSES) -> list[str]:
    list(save_predictions(predictions, folder, ["crops"], classes=classes))
    return sorted(path.relative_to(folder / "crops").as_posix() for path in (folder / "crops").rglob("*.jpg"))


def test_one_file_an_object_in_a_folder_for_each_class(tmp_path):
    given = [
        prediction("a/scene.png"),
        prediction("b/scene.jpg"),
        prediction("scene-2.png"),
        prediction("none.png", found=False),
    ]
    assert written(given, tmp_path) == [
        "Vögel/scene-2-2-2.jpg", "Vögel/scene-2-2.jpg", "Vögel/scene-2.jpg",
        "dog/scene-1.jpg", "dog/scene-2-1.jpg", "dog/scene-2-2-1.jpg",
    ]  # fmt: skip
    with Image.open(tmp_path / "crops" / "dog" / "scene-1.jpg") as crop:
        assert crop.size == (60, 40)


def test_names_of_images_and_frames_never_collide(tmp_path):
    frames = [replace(prediction("cars.mp4"), frame=number, seconds=0.0) for number in (0, 1)]
    photos = [prediction(name) for name in ("cars_000000.png", "cars_000001_1.png", "cars.png", "CARS.png", "cars-1.png")]
    assert len(written([*frames, *photos], tmp_path)) == 2 * 7
    assert (tmp_path / "crops" / "dog" / "cars_000001_1.jpg").is_file()


def test_pixels_are_those_of_the_image(tmp_path):
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[10:50, 20:80] = 255
    given = replace(prediction(), image=Image.fromarray(pixels))
    written([given], tmp_path)
    with Image.open(tmp_path / "crops" / "dog" / "scene-1.jpg") as crop:
        assert np.asarray(crop).min() > 250


@pytest.mark.parametrize(
    ("classes", "folders"),
    [
        (["Dog", "dog", "dog-1"], ["Dog", "dog-1", "dog-1-2"]),
        (["a/b", "a\\b", "a:b"], ["a_b", "a_b-1", "a_b-2"]),
        (["..", "", ".", "nul"], ["class 0", "class 1", "class 2", "class 3"]),
        (["traffic light", "血", "m\udcfcnze"], ["traffic light", "血", "m_xfcnze"]),
    ],
)
def test_any_class_has_a_folder_of_its_own(classes, folders):
    assert class_folders(classes) == folders


def test_without_a_list_of_classes_those_of_the_detections_are_taken(tmp_path):
    found = sv.Detections(
        xyxy=np.array([[0, 0, 9, 9]] * 3, np.float32), confidence=np.ones(3, np.float32), class_id=np.array([0, 1, 5]),
        data={"class_name": np.array(["a/b", "a:b", "../../x"])},
    )  # fmt: skip
    given = Prediction("p.png", 20, 20, found, Image.new("RGB", (20, 20)))
    assert written([given], tmp_path, None) == ["_.._x/p-3.jpg", "a_b-1/p-2.jpg", "a_b/p-1.jpg"]
