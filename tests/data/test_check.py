from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextdetr.data import check
from nextdetr.data.check import finish, inspect_images, summarize_problems
from nextdetr.data.raw import BoxTable, RawImage
from nextdetr.data.records import Problem
from nextdetr.errors import DataError
from nextdetr.preprocess import load_image
from tests.data.files import kinds, make_image, write_text


def raw_split(images, boxes, *, fractions=False, problems=()):
    table = BoxTable()
    for number, (image, box) in enumerate(boxes):
        table.add(image, box, 0, ("boxes.txt", f"line {number}"))
    return table.split((["cat"], [1]), images, list(problems), source="somewhere", fractions=fractions)


def checked(images, boxes, **options):
    fractions = options.pop("fractions", False)
    return finish(raw_split(images, boxes, fractions=fractions), name="toy", split="train", **options)


@pytest.fixture
def picture(tmp_path):
    return RawImage(make_image(tmp_path / "a.jpg"), "a", size=(60, 40))


def test_sound_boxes_stay_as_they_are(picture):
    data = checked([picture], [(0, (0, 0, 60, 40)), (0, (1.5, 2.25, 3, 4))])
    record = data.records[0]
    np.testing.assert_array_equal(record.boxes, [[0, 0, 60, 40], [1.5, 2.25, 3, 4]])
    np.testing.assert_array_equal(record.areas, [2400, 1.5 * 1.75])
    assert (record.boxes.dtype, record.areas.dtype) == (np.float32, np.float32)
    assert (record.labels.dtype, record.crowd.dtype) == (np.int64, np.bool_)
    assert (record.width, record.height) == (60, 40)
    assert data.problems == []


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ((10, 10, 10, 20), "box without area"),
        ((10, 10, 20, 10), "box without area"),
        ((20, 10, 10, 20), "box without area"),
        ((10, 10, 10 + 1e-9, 20), "box without area"),
        ((60, 10, 70, 20), "box outside image"),
        ((-20, 10, -10, 20), "box outside image"),
        ((10, 40.5, 20, 60), "box outside image"),
        ((math.nan, 10, 20, 30), "box not finite"),
        ((10, 10, math.inf, 30), "box not finite"),
        ((-math.inf, -math.inf, math.inf, math.inf), "box not finite"),
    ],
)
def test_bad_box_is_dropped_and_named(picture, box, kind):
    data = checked([picture], [(0, (1, 1, 9, 9)), (0, box), (0, (2, 2, 8, 8))])
    np.testing.assert_array_equal(data.records[0].boxes, [[1, 1, 9, 9], [2, 2, 8, 8]])
    assert kinds(data) == [kind]
    assert (data.problems[0].file, data.problems[0].where) == ("boxes.txt", "line 1")
    assert "dropped" in data.problems[0].message


@pytest.mark.parametrize("box", [(-5, 10, 20, 50), (-5, 10, 20, 1e300)])
def test_box_that_sticks_out_is_clipped_and_named(picture, box):
    data = checked([picture], [(0, box)])
    np.testing.assert_array_equal(data.records[0].boxes, [[0, 10, 20, 40]])
    np.testing.assert_array_equal(data.records[0].areas, [600])
    assert kinds(data) == ["box partly outside image"]
    assert "clipped" in data.problems[0].message
    assert "60x40" in data.problems[0].message


def test_up_to_a_pixel_is_rounding(picture):
    data = checked([picture], [(0, (-1, -0.3, 61, 40.9)), (0, (0, 0, 61.1, 40))])
    np.testing.assert_array_equal(data.records[0].boxes, [[0, 0, 60, 40]] * 2)
    assert [problem.where for problem in data.problems] == ["line 1"]


def test_boxes_go_to_their_images_in_the_order_of_the_file(tmp_path):
    images = [RawImage(make_image(tmp_path / f"{name}.jpg"), name) for name in "abc"]
    data = checked(images, [(2, (0, 0, 1, 1)), (0, (0, 0, 2, 2)), (2, (0, 0, 3, 3)), (0, (0, 0, 4, 4))])
    assert [record.image_id for record in data.records] == ["a", "b", "c"]
    assert [record.boxes[:, 2].tolist() for record in data.records] == [[2, 4], [], [1, 3]]
    assert data.records[1].boxes.shape == (0, 4)


def test_fractions_are_of_the_displayed_size(tmp_path):
    image = RawImage(make_image(tmp_path / "a.jpg", (60, 40), orientation=6), "a")
    data = checked([image], [(0, (0.1, 0.1, 0.5, 0.5))], fractions=True)
    assert (data.records[0].width, data.records[0].height) == (40, 60)
    np.testing.assert_allclose(data.records[0].boxes, [[4, 6, 20, 30]], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("grey.jpg", "L"), ("cmyk.jpg", "CMYK"), ("palette.png", "P"), ("alpha.png", "RGBA"), ("deep.png", "I;16"),
        ("bits.png", "1"), ("still.gif", "P"), ("x.bmp", "RGB"), ("x.webp", "RGB"), ("x.tif", "RGB"),
        ("größe 漢字.jpg", "RGB"),
    ],
)  # fmt: skip
def test_every_mode_is_accepted_as_load_image_does(tmp_path, name, mode):
    path = make_image(tmp_path / name, mode=mode)
    assert inspect_images([path]) == [check.ImageReport(60, 40)]
    assert load_image(path).size == (60, 40)


@pytest.mark.parametrize("ending", ["jpg", "tif", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_as_displayed(tmp_path, orientation, ending):
    path = make_image(tmp_path / f"a.{ending}", orientation=orientation)
    (report,) = inspect_images([path])
    assert (report.width, report.height) == load_image(path).size == ((40, 60) if orientation >= 5 else (60, 40))


def truncated(path: Path, share=0.6) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp"])
@pytest.mark.parametrize("many", [False, True])
def test_truncated_image(tmp_path, name, many, monkeypatch):
    monkeypatch.setattr(check, "_DECODE_ALL", 0 if many else 5000)
    paths = [make_image(tmp_path / f"good_{name}", (200, 150)), truncated(make_image(tmp_path / name, (200, 150)))]
    good, bad = inspect_images(paths)
    assert (good.width, good.height, good.kind) == (200, 150, "")
    assert bad.kind in {"damaged image", "not an image"}
    assert bad.width == 0
    if not name.endswith("webp"):
        assert bad.kind == "damaged image"
        assert inspect_images(paths, decode=False)[1].width == 200


def test_progressive_jpeg_cut_short(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8)).save(path, progressive=True)
    assert inspect_images([path])[0].kind == ""
    assert inspect_images([truncated(path)])[0].kind == "damaged image"


def test_many_sound_images_are_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "_DECODE_ALL", 1)
    decoded = []
    monkeypatch.setattr(check, "_decode", decoded.append)
    paths = [make_image(tmp_path / name) for name in ("a.jpg", "a.png", "a.webp", "a.bmp")]
    inspect_images(paths)
    assert decoded == paths[-1:]
    inspect_images(paths[:1])
    assert decoded == [paths[3], paths[0]]


def test_unusable_images_are_dropped_with_their_boxes(tmp_path):
    images = [
        RawImage(make_image(tmp_path / "good.jpg"), 1, "list.json", "image 1"),
        RawImage(tmp_path / "missing.jpg", 2, "list.json", "image 2"),
        RawImage(write_text(tmp_path / "text.jpg", "no picture"), 3, "list.json", "image 3"),
        RawImage(write_text(tmp_path / "empty.jpg", ""), 4),
        RawImage(truncated(make_image(tmp_path / "cut.jpg")), 5),
        RawImage(tmp_path / f"{'x' * 300}.jpg", 6),
        RawImage(tmp_path, 7),
    ]
    data = checked(images, [(1, (0, 0, 9, 9)), (1, (0, 0, 0, 9)), (0, (0, 0, 5, 5))])
    assert [record.image_id for record in data.records] == [1]
    assert data.records[0].boxes.tolist() == [[0, 0, 5, 5]]
    expected = ["missing image", "not an image", "not an image", "damaged image", "missing image", "not an image"]
    assert kinds(data) == expected
    first = data.problems[0]
    assert first.file == str(tmp_path / "missing.jpg")
    assert "list.json, image 2" in first.message
    assert "2 boxes" in first.message
    assert all(str(tmp_path) not in problem.message for problem in data.problems)


def test_declared_size_differs(tmp_path):
    images = [
        RawImage(make_image(tmp_path / "a.jpg"), 1, "list.json", "image 1", (61, 40)),
        RawImage(make_image(tmp_path / "b.jpg"), 2, "list.json", "image 2", (40, 60)),
        RawImage(make_image(tmp_path / "c.jpg", orientation=6), 3, "list.json", "image 3", (60, 40)),
        RawImage(make_image(tmp_path / "d.jpg", orientation=6), 4, "list.json", "image 4", (40, 60)),
    ]
    data = checked(images, [(0, (0, 0, 30, 20))])
    assert data.records[0].boxes.tolist() == [[0, 0, 30, 20]]
    assert [(r.width, r.height) for r in data.records] == [(60, 40), (60, 40), (40, 60), (40, 60)]
    assert kinds(data) == ["image of another size", "image of another size", "EXIF orientation ignored by annotations"]
    assert (data.problems[0].file, data.problems[0].where) == ("list.json", "image 1")
    assert "a.jpg is 60x40, not 61x40" in data.problems[0].message


def test_error_mode_names_file_place_and_total(picture):
    with pytest.raises(DataError) as caught:
        checked([picture], [(0, (0, 0, 0, number)) for number in range(1, 9)], on_bad_data="error")
    message = str(caught.value)
    assert "somewhere, split train: 8 problems: boxes.txt: line 0: the box (0, 0, 0, 1) has no area; dropped" in message
    assert "line 4" in message
    assert "line 5" not in message
    assert "and 3 more" in message
    assert "\n" not in message
    assert len(checked([picture], [(0, (0, 0, 9, 9))], on_bad_data="error").records) == 1


def test_nothing_usable_is_an_error(tmp_path):
    with pytest.raises(
        DataError, match=r"somewhere: no image of the split train can be used: .*gone.jpg: there is no such"
    ):
        checked([RawImage(tmp_path / "gone.jpg", 1)], [])
    with pytest.raises(DataError, match="the split train is empty"):
        checked([], [])


def test_summary():
    problems = [Problem("a.txt", f"line {n}", "has no area", "box without area") for n in range(30)]
    problems += [Problem("b.jpg", "", "there is no such file", "missing image")]
    lines = summarize_problems(problems, limit=3).split("\n")
    assert lines == [
        "31 problems in the data: box without area (30), missing image (1)",
        "  a.txt: line 0: has no area",
        "  a.txt: line 1: has no area",
        "  b.jpg: there is no such file",
        "  … and 28 more",
    ]
    assert summarize_problems([]) == ""
    assert summarize_problems(problems[:1]) == "1 problem in the data: box without area (1)\n  a.txt: line 0: has no area"


def test_two_spellings_of_one_image_are_one(tmp_path):
    """Else each would lack the boxes of the other."""
    make_image(tmp_path / "a.jpg")
    images = [
        RawImage(tmp_path / name, name, "list.csv", f"line {n}") for n, name in enumerate(("A.jpg", "a.JPG"), start=1)
    ]
    data = checked(images, [(0, (1, 2, 3, 4)), (1, (5, 6, 7, 8))])
    assert [(record.image_id, record.boxes.tolist()) for record in data.records] == [("A.jpg", [[1, 2, 3, 4]])]
    assert "it is named before, in list.csv, line 1" in data.problems[0].message
    assert kinds(data) == ["image listed twice"]
