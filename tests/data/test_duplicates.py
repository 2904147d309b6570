"""Copies are found after any kind of change, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from nextdetr.data.aligned import align
from nextdetr.data.candidates import TURNS, Candidate, find_candidates, make_thumbnails
from nextdetr.data.duplicates import Groups, find_duplicates
from tests.pictures import SIZE, scene

COUNT = 12


def cropped(image: Image.Image) -> Image.Image:
    """Four fifths of the area, from the lower right."""
    return image.crop((round(0.1 * SIZE[0]), round(0.1056 * SIZE[1]), round(0.9944 * SIZE[0]), SIZE[1]))


CHANGES = {
    "same size": (lambda image: image, ""),
    "cropped": (cropped, "cropped"),
    "upper part": (lambda image: image.crop((0, 0, SIZE[0], round(0.8 * SIZE[1]))), "cropped"),
    "mirrored": (ImageOps.mirror, "mirrored"),
    "mirrored crop": (lambda image: ImageOps.mirror(cropped(image)), "mirrored, cropped"),
    "small": (lambda image: image.resize((120, 90)), ""),
    "bright": (lambda image: ImageEnhance.Brightness(image).enhance(1.5), ""),
    "dark": (lambda image: ImageEnhance.Brightness(image).enhance(0.5), ""),
    "grey": (lambda image: image.convert("L"), ""),
    "upside down": (ImageOps.flip, "upside down"),
    "turned": (lambda image: image.transpose(Image.Transpose.ROTATE_90), "turned"),
    "turned by 180": (lambda image: image.transpose(Image.Transpose.ROTATE_180), "turned by 180°"),
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("scenes")
    paths = [folder / f"{seed:02}.jpg" for seed in range(COUNT)]
    for seed, path in enumerate(paths):
        scene(seed).save(path, quality=95)
    return paths


@pytest.mark.parametrize("name", CHANGES)
def test_copies_are_found_and_nothing_else(scenes, tmp_path, name):
    change, said = CHANGES[name]
    copies = [tmp_path / f"{number}.jpg" for number in range(COUNT)]
    for path, copy in zip(scenes, copies, strict=True):
        change(Image.open(path)).save(copy, quality=60)
    pairs = find_duplicates([*scenes, *copies])
    assert {tuple(sorted((pair.first, pair.second))) for pair in pairs} == {(n, COUNT + n) for n in range(COUNT)}
    assert {pair.change for pair in pairs} == {said}
    assert all(pair.agreement > 0.92 and not pair.exact for pair in pairs)
    if "cropped" in said:
        assert all(pair.first < pair.second for pair in pairs)  # the whole picture comes first


def test_pictures_that_are_turned_by_their_exif_are_taken_as_shown(scenes, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter further clockwise
    Image.open(scenes[0]).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif)
    (pair,) = find_duplicates([scenes[0], tmp_path / "turned.jpg"])
    assert pair.change == ""


def test_the_same_bytes_are_one_picture(scenes, tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(scenes[3].read_bytes())
    (tmp_path / "broken.jpg").write_bytes(scenes[3].read_bytes()[:100])
    paths = [tmp_path / "a.jpg", *scenes, tmp_path / "b.jpg", tmp_path / "broken.jpg", tmp_path / "missing.jpg"]
    assert [(pair.first, pair.second, pair.exact) for pair in find_duplicates(paths)] == [(0, 4, True), (0, 13, True)]


def test_pictures_without_detail_are_not_copies_of_each_other(tmp_path):
    paths = []
    for level in (0, 100, 101, 255):
        paths.append(tmp_path / f"{level}.png")
        Image.new("RGB", SIZE, (level, level, level)).save(paths[-1])
    assert find_duplicates(paths) == []


def test_something_else_in_front_of_the_same_wall_is_another_picture(tmp_path):
    paths = []
    for number in range(3):
        picture = scene(50)
        picture.paste(scene(60 + number).resize((130, 110)), (20 + 60 * number, 30 + 40 * number))
        paths.append(tmp_path / f"{number}.png")
        picture.save(paths[-1])
    assert find_duplicates(paths) == []


def laid(first: np.ndarray, second: np.ndarray):
    return align(np.stack((first, second)).astype(np.uint8), Candidate(0, 1, 0, (0.0, 0.0, 1.0, 1.0), 1.0))


def test_what_differs_in_one_place_or_a_little_everywhere_is_another_picture():
    picture, other = (np.asarray(scene(seed).convert("L").resize((64, 64))).astype(np.float64) for seed in (80, 81))
    assert laid(picture, picture).agreement == pytest.approx(1)
    assert laid(picture, 0.9 * picture + 0.1 * other) is not None
    assert laid(picture, 0.66 * picture + 0.34 * other) is None  # 0.88
    covered = picture.copy()
    covered[8:32, 16:38] = covered[8:32, 16:38].mean()  # an eighth: on the whole, they agree still
    assert laid(picture, covered) is None
    covered = picture.copy()
    covered[8:14, 16:24] = covered[8:14, 16:24].mean()  # something small
    assert laid(picture, covered) is not None


def test_what_is_burnt_out_does_not_count():
    picture = np.asarray(scene(82).convert("L").resize((64, 64))).astype(np.float64)
    bright = (2.1 * picture).clip(0, 255)
    assert (bright == 255).mean() > 0.5
    assert laid(picture, bright) is not None


def test_many_equal_frames_are_one_group_and_few_comparisons(tmp_path):
    paths, wall = [], scene(70)
    for number in range(40):
        pixels = np.asarray(wall) + np.random.default_rng(number).normal(0, 3, (SIZE[1], SIZE[0], 3))
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1])
    thumbnails, readable = make_thumbnails(paths)
    assert readable.all()
    assert len(find_candidates(thumbnails)) <= 40 * 6 * 2
    pairs = find_duplicates(paths)
    groups = Groups(40)
    assert all(groups.join(pair.first, pair.second) for pair in pairs)  # no pair says what others have said
    assert groups.members() == [list(range(40))]


def test_an_alignment_says_which_part_is_seen(scenes, tmp_path):
    cropped(Image.open(scenes[0])).save(tmp_path / "part.png")
    thumbnails, _ = make_thumbnails([scenes[0], tmp_path / "part.png"])
    found = align(thumbnails, Candidate(0, 1, 0, (0.106, 0.106, 0.894, 0.894), 1.0))
    assert found is not None
    assert found.part == pytest.approx((0.1, 0.1056, 0.9944, 1.0), abs=0.005)
    assert align(thumbnails, Candidate(0, 1, 1, (0.106, 0.106, 0.894, 0.894), 1.0)) is None  # it is not mirrored


def test_turns_are_those_of_pillow():
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4)
    turned = {turn.name: turn.apply(picture) for turn in TURNS}
    image = Image.fromarray(picture)
    assert np.array_equal(turned["mirrored"], np.asarray(ImageOps.mirror(image)))
    assert np.array_equal(turned["upside down"], np.asarray(ImageOps.flip(image)))
    quarters = [turn.apply(picture) for turn in TURNS if turn.name == "turned"]
    for quarter in (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270):
        assert any(np.array_equal(found, np.asarray(image.transpose(quarter))) for found in quarters)


@pytest.mark.shared_data
def test_bccd_has_few_copies_and_planted_ones_are_found(shared_data, tmp_path):
    images = sorted((shared_data / "bccd" / "JPEGImages").iterdir())[:60]
    copies = [tmp_path / path.name for path in images]
    for path, copy in zip(images, copies, strict=True):
        ImageOps.mirror(cropped(Image.open(path).resize(SIZE))).save(copy, quality=50)
    groups = Groups(120)
    for pair in find_duplicates([*images, *copies]):
        groups.join(pair.first, pair.second)
    assert sum(groups.root(number) == groups.root(60 + number) for number in range(60)) >= 58
    assert sum(groups.root(number) != number for number in range(60)) <= 2
