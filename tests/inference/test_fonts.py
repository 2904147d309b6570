"""Class names in any script: drawn in a font that has their letters, or called by their number."""

from __future__ import annotations

import io

import matplotlib as mpl
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.figure import Figure
from PIL import Image, features

from nextdetr.inference import fonts
from nextdetr.inference._supervision import sv
from nextdetr.inference.drawing import draw_detections

CHINESE = "汽车"


def made_font(path, letters):
    """Write a font whose letters are full squares."""
    pen = TTGlyphPen(None)
    for place in ((0, 0), (0, 900), (900, 900), (900, 0)):
        pen.moveTo(place) if place == (0, 0) else pen.lineTo(place)
    pen.closePath()
    square, empty = pen.glyph(), TTGlyphPen(None).glyph()
    names = [".notdef", *(f"u{ord(letter):x}" for letter in letters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): f"u{ord(letter):x}" for letter in letters})
    builder.setupGlyf({name: empty if name == ".notdef" else square for name in names})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Return a function that sets which fonts are installed."""
    for cached in (fonts._face_of, fonts._installed, fonts._letters, fonts._open):
        cached.cache_clear()
    fonts._told.clear()

    def install(**given: str) -> None:
        files = [made_font(tmp_path / f"{name}.ttf", letters) for name, letters in given.items()]
        (tmp_path / "broken.ttf").write_bytes(b"no font")
        monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [str(tmp_path / "broken.ttf"), *files])

    yield install
    for cached in (fonts._face_of, fonts._installed, fonts._letters, fonts._open):
        cached.cache_clear()


def drawn(name: str) -> np.ndarray:
    found = sv.Detections(
        xyxy=np.array([[20, 60, 280, 180]], np.float32), class_id=np.array([3]), confidence=np.array([0.9]),
        data={"class_name": np.array([name])},
    )  # fmt: skip
    return np.asarray(draw_detections(Image.new("RGB", (300, 200)), found))


def test_letters_come_from_the_first_font_that_has_them(installed, caplog):
    installed(zz="汽车", NotoSansCJK="汽")
    line = fonts.lay_out(f"x{CHINESE} 1", 20)
    assert [text for text, _ in line.pieces] == ["x", "汽", "车", " 1"]
    assert [face.getname()[0] for _, face in line.pieces] == ["DejaVu Sans", "NotoSansCJK", "zz", "DejaVu Sans"]
    assert line.width == pytest.approx(40 + fonts.font(20).getlength("x") + fonts.font(20).getlength(" 1"), abs=1)
    picture = drawn(CHINESE)
    assert not np.array_equal(picture, drawn("class 3"))
    assert picture[:60, 20:60].any()
    assert not caplog.records


def test_a_name_that_no_font_has_is_called_by_its_number_and_told_once(installed, caplog):
    installed(other="東")
    assert np.array_equal(drawn(CHINESE), drawn("class 3"))
    drawn("汽")
    (record,) = caplog.records
    assert "fonts-noto-cjk" in record.getMessage()
    assert CHINESE in record.getMessage()


@pytest.mark.parametrize("name", ["машина", "Schlüssel", "سيارة", "Ελλάδα", "שלום", "e\u0301tat", "a\u200db"])
def test_what_dejavu_has(installed, caplog, name):
    installed()
    assert not np.array_equal(drawn(name), drawn("class 3"))
    assert not caplog.records


@pytest.mark.skipif(not features.check("raqm"), reason="this Pillow has no Raqm")
def test_arabic_letters_are_joined(installed):
    installed()
    apart = sum(fonts.lay_out(letter, 30).width for letter in "سيارة")
    assert fonts.lay_out("سيارة", 30).width < 0.9 * apart


def test_a_plot_has_the_letters_too(installed, recwarn):
    installed(NotoSansCJK="汽车")
    with mpl.rc_context(fonts.plot_fonts("weights/汽车.safetensors")):
        figure = Figure(figsize=(2, 1))
        figure.suptitle(fonts.plot_text("汽车 $x$ \udcfc"))
        figure.savefig(io.BytesIO(), format="png")
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_a_name_of_several_lines(installed):
    installed()
    assert np.array_equal(drawn("red\ncar"), drawn("red car"))
    drawn("")
