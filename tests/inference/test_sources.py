from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextdetr.errors import DataError
from nextdetr.inference.sources import find_images, read_ahead, reading_threads


def make(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)
    return path


def names(sources: object) -> list[str]:
    return [Path(item.path).name for item in find_images(sources)]


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("b.jpg", "a.PNG", "ü 血.webp", "sub/c.jpg", ".hidden.jpg"):
        make(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("")
    (tmp_path / "photos" / "d.jpg").mkdir()
    return tmp_path / "photos"


def test_a_file(folder):
    (item,) = find_images(str(folder / "b.jpg"))
    assert item.path == str(folder / "b.jpg")
    assert not item.in_memory


def test_a_folder_is_sorted_and_not_recursive(folder):
    assert names(folder) == ["a.PNG", "b.jpg", "ü 血.webp"]


def test_a_folder_with_its_subfolders(tmp_path, monkeypatch):
    for name in ("b.jpg", "2/c.jpg", "2/a.png", "10/a.png", ".hidden/d.jpg", "2/.e.jpg", "runs/f.jpg", "2/runs/g.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        make(tmp_path / name)
    (tmp_path / "2" / "raw.nef").write_bytes(b"x")
    (tmp_path / "10" / "up").symlink_to(tmp_path)  # a circle
    skipped = Counter()
    monkeypatch.chdir(tmp_path)
    found = [
        Path(item.path).relative_to(tmp_path).as_posix() for item in find_images(tmp_path, skipped=skipped, recursive=True)
    ]
    assert found == ["b.jpg", "10/a.png", "2/a.png", "2/c.jpg", "2/runs/g.jpg"]  # runs here is what commands write
    assert skipped == {"raw": 1}
    skipped.clear()
    assert [Path(item.path).name for item in find_images(tmp_path, skipped=skipped)] == ["b.jpg"]
    assert skipped["subfolders"] == 4
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    with pytest.raises(DataError, match="and neither do its subfolders"):
        find_images([tmp_path / "empty"], recursive=True)


def test_patterns(folder):
    assert names(str(folder / "*.jpg")) == ["b.jpg"]
    assert names(f"{folder}/**/*.jpg") == ["b.jpg", "c.jpg"]
    assert names(str(folder / "*")) == ["a.PNG", "b.jpg", "ü 血.webp"]
    assert names(folder / "?.jpg") == ["b.jpg"]


def test_a_name_with_brackets_is_a_name(folder):
    make(folder / "shot[1].jpg")
    assert names(str(folder / "shot[1].jpg")) == ["shot[1].jpg"]


def test_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert names("~/photos/b.jpg") == ["b.jpg"]


def test_a_name_with_a_tilde_and_no_user_is_a_name(folder, monkeypatch):
    monkeypatch.chdir(folder)
    make(folder / "~x.jpg")
    assert names("~x.jpg") == ["~x.jpg"]


def test_images_in_memory_and_mixtures(folder):
    array, image = np.zeros((4, 4, 3), np.uint8), Image.new("RGB", (4, 4))
    opened = Image.open(folder / "b.jpg")
    items = list(find_images([array, folder, image, opened]))
    assert [Path(item.path).name for item in items] == ["image-1", "a.PNG", "b.jpg", "ü 血.webp", "image-5", "b.jpg"]
    assert items[0].image is array
    assert items[0].in_memory
    assert names(array) == ["image-1"]
    assert names(image) == ["image-1"]


def test_an_endless_iterable_is_drawn_from_as_needed():
    def camera():
        while True:
            yield np.zeros((4, 4, 3), np.uint8)

    items = iter(find_images(camera()))
    assert [next(items).path for _ in range(3)] == ["image-1", "image-2", "image-3"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.jpg", r"nowhere\.jpg: there is no such"),
        ("none-*.jpg", r"no image matches .*none-\*\.jpg"),
        ("empty", "empty holds no image"),
        ("nested", r"subfolders do: .*nested/\*\*/\*"),
        (["photos", "nowhere.jpg"], r"nowhere\.jpg"),
        ("ftp://example.org/a.jpg", "http:// and https:// addresses only"),
        ("~no-such-user.jpg", r"~no-such-user\.jpg: there is no such"),
        pytest.param("iVBORw0KGgo" * 1000, r"^(iVBORw0KGgo){20}.*…: there is no such", id="base64"),
        ([], "empty"),
        (None, "NoneType"),
        ([3], "int"),
    ],
)
def test_nothing_found(folder, source, message, monkeypatch):
    monkeypatch.chdir(folder.parent)
    Path("empty").mkdir()
    make(Path("nested/sub/a.jpg"))
    with pytest.raises(DataError, match=message):
        find_images(source)


@pytest.mark.parametrize("threads", [0, 3])
def test_read_ahead_keeps_the_order_and_its_bounds(threads):
    lock, started, most = threading.Lock(), 0, 0
    taken = 0

    def read(item: int) -> int:
        nonlocal started, most
        with lock:
            started += 1
            most = max(most, started - taken)
        return item * item

    results = []
    for value in read_ahead(range(50), read, ahead=4, threads=threads):
        with lock:
            taken += 1
        results.append(value)
    assert results == [item * item for item in range(50)]
    assert most <= 5


def test_an_urgent_result_comes_before_the_next_item_is_asked_for():
    asked = []

    def items():
        for number in range(6):
            asked.append(number)
            yield number

    results = read_ahead(items(), str, ahead=4, threads=2, urgent=lambda number: number >= 2)
    assert [(value, len(asked)) for value in results] == [("0", 3), ("1", 3), ("2", 3), ("3", 4), ("4", 5), ("5", 6)]


def test_read_ahead_passes_errors_on():
    def read(item: int) -> int:
        if item == 2:
            raise DataError("bad")
        return item

    for threads in (0, 2):
        results = read_ahead(range(5), read, ahead=2, threads=threads)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(DataError, match="bad"):
            next(results)


def test_no_reading_threads_on_the_cpu():
    assert reading_threads("cpu") == 0
    assert reading_threads("cuda:0") >= 1
