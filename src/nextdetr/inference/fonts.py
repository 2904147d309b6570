"""Text in pictures, in whatever script the class names are.

DejaVu Sans, which comes with matplotlib, has Latin, Greek, Cyrillic, Arabic and Hebrew letters. What it lacks, Chinese,
Japanese and Korean above all, is drawn in the first of the installed fonts that has it (Noto, Source Han, WenQuanYi, and
those that come with Windows and macOS, before all others). Letters are joined and ordered as their script wants by Raqm,
which comes with Pillow.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import ImageDraw, ImageFont

from nextdetr.files import path_text

__all__ = ["TextLine", "font", "lay_out", "legible", "plot_fonts", "plot_text"]

logger = logging.getLogger(__name__)

DEJAVU = Path("fonts", "ttf", "DejaVuSans.ttf")  # in matplotlib's data
#: Beginnings of file names of fonts with many letters, the most legible first; other fonts come after them.
PREFERRED = (
    *("notosanscjk", "sourcehansans", "notosanssc", "notosanstc", "notosansjp", "notosanskr", "wqy-microhei", "wqy-zenhei"),
    *("msyh", "pingfang", "hiragino", "stheiti", "yugoth", "meiryo", "malgun", "applesdgothic", "simhei", "simsun"),
    *(
        "droidsansfallback",
        "notosans-",
        "notosans",
        "nirmala",
        "leelaw",
        "arialuni",
        "arial unicode",
        "freesans",
        "unifont",
    ),
)


@dataclass(frozen=True, slots=True)
class TextLine:
    """A line of text, ready to be drawn.

    Attributes:
        pieces: parts of the text, each with its font, from left to right.
        width: of the line, pixels.
        top: highest edge of the letters, pixels from the baseline, negative.
        bottom: lowest edge, likewise.
    """

    pieces: tuple[tuple[str, ImageFont.FreeTypeFont], ...]
    width: float
    top: float
    bottom: float

    def draw(self, pen: ImageDraw.ImageDraw, x: float, baseline: float, colour: str) -> None:
        """Draw the line from ``x`` on."""
        for text, face in self.pieces:
            pen.text((x, baseline), text, fill=colour, font=face, anchor="ls")
            x += face.getlength(text)


def lay_out(text: str, size: int) -> TextLine:
    """Choose fonts for a text and measure it.

    Args:
        text: breaks of lines and the like become spaces.
        size: of the font, pixels.
    """
    usual = font(size)
    pieces: list[tuple[str, ImageFont.FreeTypeFont]] = []
    for part, path in _runs(" ".join(text.split())):
        pieces.append((part, usual if path is None else _open(path, size)))
    boxes = [face.getbbox("Ag|", anchor="ls") for face in (usual,)] + [
        face.getbbox(part, anchor="ls") for part, face in pieces if face is not usual
    ]
    width = sum(face.getlength(part) for part, face in pieces)
    return TextLine(tuple(pieces), width, min(box[1] for box in boxes), max(box[3] for box in boxes))


def legible(name: str, instead: str) -> str:
    """Return the name if there are fonts for all of its letters, else ``instead``, with a warning the first time."""
    if name.isascii() or all(_face_of(letter) is not None for letter in name):
        return name
    _warn_of_missing_letters(name)
    return instead


def plot_fonts(*texts: str) -> dict[Any, Any]:
    """Return settings for ``matplotlib.rc_context``, so that a plot has the letters of these texts."""
    from matplotlib.font_manager import fontManager
    from matplotlib.ft2font import FT2Font

    families = ["DejaVu Sans"]
    for path in dict.fromkeys(_face_of(letter) for letter in "".join(texts)):
        if path:
            fontManager.addfont(path)
            families.append(FT2Font(path).family_name)
    return {"font.family": families}


def plot_text(text: str) -> str:
    """Return a name or path as matplotlib takes it: without bytes that are no letters, and with dollars as they are."""
    return path_text(text).replace("$", r"\$")


@lru_cache(maxsize=16)
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans."""
    return ImageFont.truetype(str(_usual()), size)


def _runs(text: str) -> list[tuple[str, str | None]]:
    """Cut a text where its font changes; None stands for the usual font."""
    if text.isascii():
        return [(text, None)] if text else []
    runs: list[tuple[str, str | None]] = []
    for letter in text:
        face = _face_of(letter)
        path = face or None  # what no font has, the usual one draws as an empty square
        if runs and (runs[-1][1] == path or _joins(letter)):
            runs[-1] = (runs[-1][0] + letter, runs[-1][1])
        else:
            runs.append((letter, path))
    return runs


def _joins(letter: str) -> bool:
    """Whether a letter belongs to the one before it, as accents and joiners do."""
    return unicodedata.category(letter) in ("Mn", "Me", "Mc", "Cf")


@lru_cache(maxsize=4096)
def _face_of(letter: str) -> str | None:
    """Return the file of the font that draws a letter: "" for the usual one, None if no font has it."""
    if letter.isspace() or unicodedata.category(letter) == "Cf" or ord(letter) in _letters(str(_usual())):
        return ""
    return next((path for path in _installed() if ord(letter) in _letters(path)), None)


@lru_cache(maxsize=1)
def _usual() -> Path:
    """Return the file of DejaVu Sans; matplotlib itself, which takes long to load, is asked only if it hides its data."""
    found = find_spec("matplotlib")
    for folder in () if found is None else found.submodule_search_locations or ():
        path = Path(folder) / "mpl-data" / DEJAVU
        if path.is_file():
            return path
    import matplotlib as mpl

    return Path(mpl.get_data_path()) / DEJAVU


@lru_cache(maxsize=1)
def _installed() -> Sequence[str]:
    """Return the files of the installed fonts, those to be preferred first."""
    from matplotlib.font_manager import findSystemFonts

    def rank(path: str) -> tuple[int, str]:
        name = Path(path).name.lower()
        place = next((number for number, start in enumerate(PREFERRED) if name.startswith(start)), len(PREFERRED))
        return place, name

    return sorted((path for path in findSystemFonts() if "emoji" not in path.lower()), key=rank)


@lru_cache(maxsize=64)
def _letters(path: str) -> frozenset[int]:
    """Return the code points that a font has; none of a file that is no scalable font."""
    from matplotlib.ft2font import FT2Font

    try:
        face = FT2Font(path)
        return frozenset(face.get_charmap()) if face.scalable else frozenset()
    except (RuntimeError, OSError, ValueError, TypeError):
        return frozenset()


@lru_cache(maxsize=64)
def _open(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


_told: list[str] = []  # names that a warning was given for


def _warn_of_missing_letters(name: str) -> None:
    if _told:
        return
    _told.append(name)
    logger.warning(
        "no installed font has all letters of %s: pictures show the numbers of such classes. Install one that has them, "
        "such as the packages fonts-noto-cjk and fonts-noto-core (Debian, Ubuntu) or one of https://fonts.google.com/noto.",
        name,
    )
