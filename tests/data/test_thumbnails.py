"""Thumbnails: a fraction of a JPEG is decoded, EXIF may turn them, and 16-bit grey is seen whatever bits it uses."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from nextdetr.data.thumbnails import read_thumbnail
from nextdetr.errors import DataError
from nextdetr.preprocess import Reading


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


@pytest.mark.parametrize(("largest", "bits", "seen"), [(1000, 16, 249), (1000, 12, 62), (40000, 16, 156), (3, 16, 3)])
def test_grey_of_few_of_16_bits_is_not_black(tmp_path, largest, bits, seen):
    values = np.zeros((32, 32), dtype=np.uint16)
    values[:16] = largest
    Image.fromarray(values).save(tmp_path / "a.png")
    small = read_thumbnail(tmp_path / "a.png", 8, decoded=16, reading=Reading(bits=bits))
    assert small[:4].tolist() == [[seen] * 8] * 4
    assert not small[4:].any()


def test_grey_of_a_pgm_that_states_its_largest_value_is_not_black(tmp_path):
    """Pillow scales it to 16 bits, which says nothing about the bits that the file uses."""
    rows = np.zeros((32, 32), dtype=">u2")
    rows[:16] = 1000
    (tmp_path / "a.pgm").write_bytes(b"P5\n32 32\n4095\n" + rows.tobytes())
    small = read_thumbnail(tmp_path / "a.pgm", 8, decoded=16)
    assert small[:4].tolist() == [[249] * 8] * 4
    assert not small[4:].any()
