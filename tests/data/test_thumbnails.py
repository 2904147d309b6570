"""Thumbnails: a fraction of a JPEG is decoded, other formats are read as everywhere, and EXIF may turn them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from nextdetr.data.thumbnails import read_thumbnail
from nextdetr.errors import DataError


@pytest.fixture
def halves(tmp_path):
    """A picture with a bright upper half, as PNG, as JPEG, and as a JPEG that EXIF turns upside down."""
    picture = Image.new("RGB", (512, 256), "black")
    picture.paste("white", (0, 0, 512, 128))
    turned = Image.Exif()
    turned[0x0112] = 3
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "a.jpg", quality=95)
    picture.save(tmp_path / "turned.jpg", quality=95, exif=turned)
    return tmp_path


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_thumbnail_is_the_picture_as_a_square(halves, name):
    small = read_thumbnail(halves / name, 8, decoded=16)
    assert small.shape == (8, 8)
    assert small.dtype == np.uint8
    assert small[:4].min() > 250
    assert small[4:].max() < 5


def test_exif_turns_it_unless_it_is_read_as_stored(halves):
    assert read_thumbnail(halves / "turned.jpg", 8, decoded=16)[4:].min() > 250
    assert read_thumbnail(halves / "turned.jpg", 8, decoded=16, upright=False)[:4].min() > 250


def test_a_file_that_is_no_picture_is_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a\.jpg"):
        read_thumbnail(tmp_path / "a.jpg", 8, decoded=16)
