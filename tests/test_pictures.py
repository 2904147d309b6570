from __future__ import annotations

import re
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from nextdetr.errors import DataError
from nextdetr.inference.sources import SourceItem
from nextdetr.installation import install_command
from nextdetr.pictures import Encoded, count_frames, is_picture, kind_of, open_picture
from nextdetr.preprocess import Reading, as_image, load_image
from nextdetr.serve.decode import decode
from nextdetr.serve.errors import ServeError


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "name", ["a.png", "a.jpg", "a.gif", "a.bmp", "a.tif", "a.webp", "a.ppm", "a.tga", "a.jp2", "a.mpo"]
)
def test_a_file_is_opened_as_pillow_opens_it(name, photo, tmp_path):
    extra = {"save_all": True, "append_images": [photo.rotate(180)]} if name == "a.mpo" else {}
    photo.save(tmp_path / name, **extra)
    with open_picture(tmp_path / name) as ours, Image.open(tmp_path / name) as theirs:
        assert (ours.format, ours.mode, ours.size, ours.info) == (theirs.format, theirs.mode, theirs.size, theirs.info)
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert ours.fp is None  # closed, so that Windows can delete it


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_fewer_bits_are_scaled_to_all_of_white(kind, tmp_path):
    values = np.array([[0, 1365, 4095, 5000]], dtype=kind)
    Image.fromarray(values).save(tmp_path / "deep.tif")
    for source in (tmp_path / "deep.tif", Image.fromarray(values), *([values] if kind == np.uint16 else [])):
        found = as_image(source, Reading(bits=12))
        assert [found.getpixel((x, 0)) for x in range(4)] == [(0,) * 3, (85,) * 3, (255,) * 3, (255,) * 3]
        assert as_image(source).getpixel((2, 0)) == (16,) * 3


def deep_png(colour, *values):
    """A PNG of one pixel with 16 bits a channel, of the colour type that the format counts so."""
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(f">{len(values)}H", *values)))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


def test_colours_of_16_bits_are_refused_where_bits_are_given(tmp_path):
    (tmp_path / "deep.png").write_bytes(deep_png(2, 4095, 0, 4095))
    assert load_image(tmp_path / "deep.png").getpixel((0, 0)) == (15, 0, 15)
    with pytest.raises(DataError, match=r"deep\.png has colours of 16 bits.*8 bits a colour"):
        load_image(tmp_path / "deep.png", Reading(bits=12))


@pytest.mark.parametrize(("colour", "values", "what"), [
    (2, (4095, 0, 4095), "colours"), (6, (4095, 0, 4095, 65535), "colours"), (4, (4095, 65535), "grey and transparency"),
])  # fmt: skip
def test_they_are_refused_wherever_the_file_comes_from(colour, values, what, tmp_path):
    content = deep_png(colour, *values)
    (tmp_path / "deep.png").write_bytes(content)
    for source in (tmp_path / "deep.png", content, Encoded(content, "sent.png"), Image.open(BytesIO(content))):
        with pytest.raises(DataError, match=f"has {what} of 16 bits"):
            as_image(source, Reading(bits=12))
    with pytest.raises(ServeError, match=f"sent.png: it has {what} of 16 bits"):
        decode(content, "sent.png", Reading(bits=12))
    assert max(as_image(content).getpixel((0, 0))) < 20  # upper 8 of 16 bits
    grey = deep_png(0, 4095)
    assert as_image(grey, Reading(bits=12)).getpixel((0, 0)) == (255, 255, 255)


def test_what_is_no_picture_for_a_detector_is_named(tmp_path):
    Image.fromarray(np.full((2, 2), 3000, np.float32)).save(tmp_path / "depth.tif")
    for source in (tmp_path / "depth.tif", Encoded((tmp_path / "depth.tif").read_bytes(), "depth.tif")):
        with pytest.raises(DataError, match=r"depth\.tif: a floating-point image holds values from 3000"):
            as_image(source)
    opened = SourceItem("image-7", Image.fromarray(np.full((2, 2), 3000, np.float32))).open()
    assert str(opened.problem).startswith("image-7: a floating-point image")


def test_frames_are_counted(photo, tmp_path):
    photo.save(tmp_path / "a.png")
    more = [photo.rotate(90 * turn) for turn in (1, 2)]
    for name in ("a.gif", "a.tif", "a.webp", "b.png"):
        photo.save(tmp_path / name, save_all=True, append_images=more)
        assert count_frames(tmp_path / name) == 3
    photo.save(tmp_path / "a.mpo", save_all=True, append_images=more)  # views, no frames
    (tmp_path / "empty.gif").write_bytes(b"")
    assert [count_frames(tmp_path / name) for name in ("a.png", "a.mpo", "empty.gif", "none.gif")] == [1, 1, 1, 1]


def test_a_raw_file_is_not_taken_for_its_preview(photo, tmp_path):
    photo.save(tmp_path / "a.tif")
    (tmp_path / "a.tif").rename(tmp_path / "a.NEF")  # which is a TIFF whose first picture is small
    assert kind_of(tmp_path / "a.NEF") == "raw"
    assert not is_picture(tmp_path / "a.NEF")
    with pytest.raises(DataError, match=r"a\.NEF is a camera's raw file: develop it"):
        load_image(tmp_path / "a.NEF")


def test_heic_names_its_package(photo, tmp_path, monkeypatch):
    monkeypatch.setattr("nextdetr.pictures.find_spec", lambda _: None)
    (tmp_path / "a.heic").write_bytes(b"....ftypheic")
    assert kind_of(tmp_path / "a.heic") == "heic"
    assert not is_picture(tmp_path / "a.heic")
    with pytest.raises(DataError, match=re.escape(install_command("heif"))):
        load_image(tmp_path / "a.heic")


def test_heic_is_read_where_its_package_is(photo, tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(photo.resize((64, 64))).save(tmp_path / "a.heic")
    assert kind_of(tmp_path / "a.heic") is None
    assert is_picture(tmp_path / "a.heic")
    assert load_image(tmp_path / "a.heic").size == (64, 64)


def test_the_usual_formats_open_before_all_others_are_registered(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.tga")  # not among the usual ones
    code = (
        "import sys; from pathlib import Path; from nextdetr.pictures import open_picture\n"
        "open_picture(Path(sys.argv[1])); assert 'PIL.TgaImagePlugin' not in sys.modules\n"
        "print(open_picture(Path(sys.argv[2])).format)"
    )
    names = [str(tmp_path / "a.png"), str(tmp_path / "a.tga")]
    found = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=False)
    assert (found.stdout.strip(), found.returncode) == ("TGA", 0), found.stderr
