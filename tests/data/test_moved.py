"""Images are never taken for others of the same base name, and masks give their boxes."""

from __future__ import annotations

import time
import unicodedata
from pathlib import Path

import pytest

from nextdetr.data.coco_masks import box_of_mask
from nextdetr.data.listing import FileFinder, NameIndex
from nextdetr.data.moved import find_moved

from .files import write_text


def moved(root: Path, files, names, about=""):
    for file in files:
        write_text(root / file, "")
    found = find_moved(names, [root], about)
    return [found.paths[n].relative_to(root).as_posix() if n in found.paths else None for n in range(len(names))], found


@pytest.mark.parametrize(
    ("names", "found", "guessed"),
    [
        (["/x/train/a.jpg", "C:\\x\\b.jpg", "../../y/c.jpg"], ["train/a.jpg", "1/b.jpg", None], 0),
        (["images/v1/1/b.jpg", "2/b.jpg", "b.jpg"], ["1/b.jpg", None, None], -1),
        (["/x/val/a.jpg", "/x/train/images/1/a.jpg"], ["train/a.jpg", None], 1),
        (["9/b.jpg"], [None], -1),
        (["http://x.org/photos/B.JPG"], ["1/b.jpg"], 0),
        (["/x/2/c.jpg", "/x/d.jpg"], ["2/c.jpg", None], 0),
        ([unicodedata.normalize("NFD", "ü.jpg")], ["ü.jpg"], -1),
    ],
)
def test_where_a_written_path_is_found(tmp_path, names, found, guessed):
    files = ("train/a.jpg", "1/b.jpg", "2/c.jpg", "3/c.jpg", "ü.jpg")
    paths, result = moved(tmp_path, files, names)
    if names[0] == "/x/val/a.jpg":  # the other split's image is nobody's
        assert paths == [None, "train/a.jpg"]
        return
    assert (paths, result.guessed) == (found, guessed)
    assert len(result.tell(names, "list.txt")) == (guessed >= 0)


def test_split_of_the_list_counts_where_names_say_none(tmp_path):
    assert moved(tmp_path, ["train/a.jpg"], ["/x/a.jpg"], "instances_val2017")[0] == [None]
    assert moved(tmp_path, ["train/a.jpg"], ["/x/a.jpg"], "train")[0] == ["train/a.jpg"]
    assert moved(tmp_path, ["train/a.jpg"], ["/x/a.jpg"], "result")[0] == ["train/a.jpg"]


def test_of_several_names_one_has_the_image(tmp_path):
    assert moved(tmp_path, ["1/a.jpg"], ["/x/2/a.jpg", "/x/1/a.jpg"])[0] == [None, "1/a.jpg"]
    assert moved(tmp_path, ["1/a.jpg"], ["/x/2/a.jpg", "/x/3/a.jpg"])[0] == [None, None]


def test_many_images_of_one_name_are_found_in_no_time():
    names = [f"{n}/0001.jpg" for n in range(20_000)]
    start = time.process_time()
    index = NameIndex(names)
    assert [index.find(f"/x/{n}/0001") for n in (0, 777, 19_999)] == [[0], [777], [19_999]]
    assert all(index.find(f"photos/{n}/0001.jpg") == [n] for n in range(0, 20_000, 20))
    assert index.find("20000/0001.jpg") == []
    assert time.process_time() - start < 3  # 0.3 s; compared with each other one by one they would take 10 s


def test_finder_takes_no_guess(tmp_path):
    for name in ("A.jpg", "a.JPG"):
        write_text(tmp_path / name, "")
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this disk takes these names for the same")
    assert FileFinder().find(tmp_path / "a.jpg") == tmp_path / "a.jpg"
    assert FileFinder().find(tmp_path / "A.jpg") == tmp_path / "A.jpg"


def test_name_index_prefers_what_agrees_most():
    index = NameIndex(["a.jpg", "1/a.jpg", "2/a.jpg", "2/b.png"])
    asked = ("a.jpg", "x/2/a.jpg", "C:\\x\\2\\A.JPG", "b", "3/b.jpg", "1/b", "c")
    assert [index.find(name) for name in asked] == [[0], [2], [2], [3], [], [], []]
    assert index.find("x/a") == []


def test_same_letters_in_other_case_mean_another_file():
    index = NameIndex(["1/A.jpg", "1/a.jpg", "2/b.jpg"])
    assert [index.find(name) for name in ("1/A.jpg", "A.jpg", "a.jpg", "1/a", "a.JPG", "B.jpg")] == [
        [0], [0], [1], [1], [0, 1], [2],
    ]  # fmt: skip


# COCO's own string of the mask of a box of 3 x 2 at (2, 1) in an image of 6 x 5, by pycocotools 2.0
@pytest.mark.parametrize(
    ("segmentation", "box"),
    [
        ([[1, 2, 9, 2, 5, 8]], [1, 2, 8, 6]),
        ([[1, 2, 9, 2, 5, 8], [20, 1, 21, 1, 21, 2]], [1, 1, 20, 7]),
        ([1, 2, 9, 2, 5, 8], [1, 2, 8, 6]),
        ({"size": [5, 6], "counts": [11, 2, 3, 2, 3, 2, 7]}, [2, 1, 3, 2]),
        ({"size": [5, 6], "counts": ";230004"}, [2, 1, 3, 2]),
        ({"size": [5, 6], "counts": [0, 30]}, [0, 0, 6, 5]),
        ({"size": [5, 6], "counts": [3, 4]}, [0, 0, 2, 5]),
        ({"size": [5, 6], "counts": [30]}, None),
        ({"size": [5, 6], "counts": [-1, 3]}, None),
        ({"size": [0, 6], "counts": [1, 3]}, None),
        ({"size": [5, 6], "counts": "\x00"}, None),
        ({"size": "x", "counts": "1"}, None),
        ({"size": [5, 6], "counts": "o" * 1_000_000}, None),
        ([], None), ([[]], None), ([[1, 2, 3]], None), ([["a", "b", "c", "d"]], None), ([[1, float("nan")] * 3], None),
        ("text", None), (None, None),
    ],
)  # fmt: skip
def test_box_of_mask(segmentation, box):
    assert box_of_mask(segmentation) == box
