"""Results of ``Detector.predict``: supervision's detections that know their image."""

from __future__ import annotations

import builtins
import copy
import json
import pickle
import sys
import types
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
import supervision as sv
from PIL import Image

from nextdetr import Detector
from nextdetr.config import PredictConfig
from nextdetr.errors import ConfigError, DataError
from nextdetr.inference import notebook, video
from nextdetr.inference.origin import ImageReader
from nextdetr.inference.picture_file import picture_stem
from nextdetr.inference.pipeline import predict_stream
from nextdetr.inference.prediction import Prediction
from nextdetr.inference.predictor import Predictor
from nextdetr.inference.results import Result, Results
from nextdetr.inference.writers.video import VideoWriter
from nextdetr.streams import Predicting
from tests.helpers import tiny_model
from tests.inference.conftest import CLASSES

BOX = [20, 10, 80, 50]


@pytest.fixture
def finder(model, monkeypatch):
    """A detector that finds what is bright."""
    found = Predicting()
    found.device, found.source, found.runtime, found._start = "cpu", "finder", "auto", {}
    monkeypatch.setattr(Predicting, "opened", None)
    monkeypatch.setattr(
        "nextdetr.streams.predictions",
        lambda opened, source, config, **rest: predict_stream(Predictor(model, CLASSES, 200, device="cpu"), source, config),
    )
    return found


@pytest.fixture
def file(scene, tmp_path):
    path = tmp_path / "scene.png"
    scene.save(path)
    return path


def test_a_result_is_what_supervision_takes(finder, file):
    results = finder.predict(file)
    assert isinstance(results, list)
    (result,) = results
    assert isinstance(result, sv.Detections)
    np.testing.assert_allclose(result.xyxy[0], BOX, atol=1e-4)
    assert (result.path, result.name, result.width, result.height) == (str(file), str(file), 200, 100)
    assert (result.problem, result.frame, result.seconds, result.counted) == (None, None, None, None)
    assert result.counts() == {"dog": 1, "bird": 1}
    assert result == finder(file)[0]
    assert result.to_json() == next(finder.stream(file)).to_json()


def test_a_part_knows_the_image_too(finder, file):
    result = finder.predict(file)[0]
    sure = result[result.confidence > 0.5]
    assert isinstance(sure, Result)
    assert (len(sure), sure.path) == (1, str(file))
    assert [row["class_name"] for row in sure.to_json()["detections"]] == ["dog"]
    assert result["class_name"].tolist() == ["dog", "bird"]
    for other in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert other == result
        assert other.path == result.path
    with pytest.raises(ConfigError, match="do not know their image"):
        sv.Detections.empty.__func__(Result).plot()


def test_settings_are_keywords_everywhere(finder, file):
    assert len(finder(file, confidence=0.5)[0]) == 1
    assert len(next(finder.stream(file, confidence=0.5)).detections) == 1
    config = PredictConfig(confidence=0.05)
    assert len(next(finder.stream(file, config)).detections) == 3
    assert next(finder.stream(file, config, classes=["bird"])).counts() == {"bird": 1}
    with pytest.raises(ConfigError, match="confidense"):
        finder.stream(file, confidense=0.5)


def test_the_real_detector_has_all_of_it(tmp_path, file):
    detector = Detector(tiny_model(tmp_path), device="cpu")
    (result,) = detector(file, confidence=0)
    assert isinstance(result, Result)
    assert result.plot().size == (200, 100)
    assert len(list(detector.stream([file, file], confidence=0.1))) == 2


def test_pixels_are_read_again_or_the_callers_own(finder, scene, file):
    array = np.asarray(scene)
    content = file.read_bytes()
    for source, name in ((array, "image-1"), (scene, "image-1"), (content, "image-1"), (BytesIO(content), "image-1")):
        (result,) = finder.predict(source)
        assert (result.path, result.name) == (None, name)
        assert np.array_equal(np.asarray(result.image), array)
    (of_file,) = finder.predict(file)
    assert np.array_equal(np.asarray(of_file.image), array)
    file.unlink()
    with pytest.raises(DataError, match="no such image file"):
        of_file.plot()
    (of_iterator,) = finder.predict(image for image in [array])
    with pytest.raises(DataError, match="image-1 is not kept, as it came from an iterator"):
        of_iterator.save()
    assert of_iterator.plot(array).size == (200, 100)


def test_saved(finder, file, tmp_path, monkeypatch):
    (result,) = finder.predict(file)
    monkeypatch.chdir(tmp_path)
    assert result.save().name == "scene-detected.jpg"
    for name in ("a.jpg", "a.PNG", "new/a.webp"):
        with Image.open(result.save(tmp_path / name)) as picture:
            assert picture.size == (200, 100)
    with Image.open(tmp_path / "a.PNG") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(result.plot()))
    assert not np.array_equal(np.asarray(result.plot()), np.asarray(result.image))
    assert json.loads(result.save("a.json").read_text()) == result.to_json()
    with pytest.raises(ConfigError, match=r"a\.txt: a picture is saved with the ending \.jpg"):
        result.save("a.txt")
    assert next(finder.stream(file)).save("streamed.png").is_file()


def test_a_list_is_saved_under_names_of_its_own(finder, file, tmp_path):
    results = finder.predict([file, file, np.asarray(Image.open(file)), tmp_path / "none.png"][:3])
    assert isinstance(results[:2], Results)
    assert [path.name for path in results.save(tmp_path / "out")] == ["scene.jpg", "scene-2.jpg", "image-3.jpg"]
    (tmp_path / "bad.png").write_bytes(b"no image")
    results = finder.predict([file, tmp_path / "bad.png"])
    assert "not an image" in results[1].problem
    assert len(results.save(tmp_path / "out")) == 1
    with pytest.raises(DataError, match="not an image"):
        results[1].plot()


def test_names_of_frames_and_addresses(finder, scene, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scene.save("a.b.gif", save_all=True, append_images=[scene.rotate(90), scene.rotate(180)])
    results = finder.predict("a.b.gif")
    assert [path.name for path in results.save("out")] == ["a.b_000000.jpg", "a.b_000001.jpg", "a.b_000002.jpg"]
    assert results[1].save().name == "a.b_000001-detected.jpg"
    for address, stem in (
        ("https://h/p/cells.jpg?w=1&of=x.y/z", "cells"), ("https://h/", "image"), ("https://h/a%2f..%2fb%00.png", "b_"),
        ("https://h/" + "x" * 900 + ".png", "x" * 96), ("photos/ü 1.jpg", "ü 1"),
    ):  # fmt: skip
        assert picture_stem(address) == stem


@pytest.fixture
def clip(tmp_path):
    """Twelve frames, in which the bright rectangle moves to the right."""
    with VideoWriter(tmp_path / "clip.mp4", 200, 100, 10) as writer:
        for number in range(12):
            pixels = np.zeros((100, 200, 3), np.uint8)
            pixels[10:50, 20 + 5 * number : 80 + 5 * number] = 255
            writer.write(pixels, number / 10)
    return tmp_path / "clip.mp4"


@pytest.fixture
def decoded(monkeypatch):
    """Counts the frames of videos that are decoded."""
    count, shown = Counter(), video._shown
    monkeypatch.setattr(video, "_shown", lambda *given: (count.update("n"), shown(*given))[1])
    return count


def test_frames_are_saved_in_one_pass_through_their_video(finder, clip, decoded, tmp_path):
    results = finder.predict(clip)
    decoded.clear()
    paths = results.save(tmp_path / "out")
    assert [path.name for path in paths] == [f"clip_{number:06d}.jpg" for number in range(12)]
    assert decoded["n"] == 12
    for path, result in list(zip(paths, results, strict=True))[::5]:
        with Image.open(path) as picture:
            assert (
                np.abs(np.asarray(picture, int) - np.asarray(result.plot(), int)).mean() < 6
            )  # of another frame 25 or more
    decoded.clear()
    assert results[-4:]._repr_html_().count("<img") == 4
    assert decoded["n"] == 12


def test_frames_in_any_order_and_of_several_videos(finder, clip, scene, decoded, tmp_path):
    scene.save(tmp_path / "a.gif", save_all=True, append_images=[scene.rotate(90), scene.rotate(180)])
    results = finder.predict([clip, tmp_path / "a.gif"])
    alone = [np.asarray(result.image) for result in results]
    decoded.clear()
    with ImageReader() as reader:
        for place in (3, 3, 7, 2, 13, 12, 14, 11, 0):
            assert np.array_equal(np.asarray(results[place]._picture(reader)), alone[place])
    assert decoded["n"] <= 4 * 12  # each time that it goes back, or returns from another file
    clip.unlink()
    with pytest.raises(DataError, match=r"clip\.mp4: frame 0 cannot be read again"):
        results.save(tmp_path / "out")


def test_crops(finder, file):
    (result,) = finder.predict(file)
    assert [picture.size for picture in result.crops()] == [(60, 40), (200, 100)]
    assert np.asarray(result.crops()[0]).min() == 255
    result.xyxy = np.array([[-5, -5, -1, -1], [199.6, 99.2, 300, 300]], np.float32)
    assert [picture.size for picture in result.crops()] == [(1, 1), (1, 1)]


def test_tables(finder, file, scene):
    pytest.importorskip("pandas")
    results = finder.predict([file, scene])
    table = results.to_pandas()
    assert table.columns.tolist() == ["path", "x1", "y1", "x2", "y2", "confidence", "class_id", "class_name"]
    assert table["path"].tolist() == [str(file)] * 2 + ["image-2"] * 2
    assert table.loc[0, "class_name"] == "dog"
    np.testing.assert_allclose(table.loc[0, ["x1", "y1", "x2", "y2"]].tolist(), BOX, atol=1e-4)
    assert len(results[0].to_pandas()) == 2
    empty = finder.predict(file, confidence=1)[0].to_pandas()
    assert len(empty) == 0
    assert empty.columns.tolist() == table.columns.tolist()


def test_without_pandas_a_sentence(finder, file, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="pip install pandas"):
        finder.predict(file)[0].to_pandas()


def test_notebooks_get_a_picture_and_a_table(finder, scene, tmp_path):
    path = tmp_path / "<b>&.png"
    scene.resize((3000, 1500)).save(path)
    results = finder.predict(path)
    page = results[0]._repr_html_()
    assert "&lt;b&gt;&amp;.png" in page
    assert "<b>" not in page
    assert "3000 x 1500" in page
    assert "dog" in page
    assert "0.900" in page
    with Image.open(BytesIO(results[0]._repr_jpeg_())) as picture:
        assert picture.size == (800, 400)
    assert len(page) < 200_000
    assert results._repr_html_().count("<img") == 1
    many = finder.predict([path] * 8)._repr_html_()
    assert many.count("<img") == 6
    path.unlink()
    assert "no such image file" in results[0]._repr_html_()
    assert results[0]._repr_jpeg_() is None
    assert "nothing found" in finder.predict(scene, confidence=1)[0]._repr_html_()


def test_long_tables_are_cut():
    page = notebook.html_table(("n",), [(number,) for number in range(100)])
    assert page.count("<td") == 20
    assert "and 80 more" in page


def test_shown_where_there_is_a_screen(finder, file, monkeypatch):
    (result,) = finder.predict(file)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setitem(sys.modules, "IPython", None)
    with pytest.raises(ConfigError, match=r"no screen here .* save\(\)"):
        result.show()
    shown = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(notebook.ImageShow, "show", lambda picture, title: shown.append((picture.size, title)) or True)
    result.show()
    assert shown == [((200, 100), str(file))]
    monkeypatch.setattr(notebook.ImageShow, "show", lambda picture, title: False)
    with pytest.raises(ConfigError, match="no program to show pictures"):
        result.show()
    python = types.SimpleNamespace(
        get_ipython=lambda: types.SimpleNamespace(kernel=object()), display=types.SimpleNamespace(display=shown.append)
    )
    monkeypatch.setitem(sys.modules, "IPython", python)
    result.show()
    assert shown[-1].size == (200, 100)


def test_a_name_takes_no_list_of_detections(finder, file, tmp_path, monkeypatch):
    (result,), prediction = finder.predict(file), next(finder.stream(file))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Prediction, "to_json", None)
    shown = []
    monkeypatch.setattr("nextdetr.inference.shown.show_picture", lambda picture, title: shown.append(title))
    for each in (result, prediction):
        each.show()
        assert each.save().name == "scene-detected.jpg"
    assert shown == [str(file)] * 2


def test_no_viewer_is_asked_for_by_an_import(finder, file, monkeypatch):
    """A result is drawn without IPython or matplotlib's windows."""
    real = builtins.__import__

    def refuse(name, *rest):
        assert name.partition(".")[0] not in ("IPython", "tkinter")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert finder.predict(file)[0]._repr_html_()
