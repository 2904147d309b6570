"""How results are shown: pictures and tables as HTML in a notebook, pictures in a window elsewhere."""

from __future__ import annotations

import base64
import html
import os
import sys
from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import Any

from PIL import Image, ImageShow

from nextdetr.errors import ConfigError
from nextdetr.files import path_text

__all__ = ["html_picture", "html_table", "html_text", "jpeg_bytes", "show_picture"]

SHOWN_SIDE = 800  # pixels of the longest side in a notebook, which keeps all that it shows
MOST_ROWS = 20
_CELL = 'style="text-align:right;padding:2px 10px"'


def show_picture(picture: Image.Image, title: str) -> None:
    """Show a picture: in the notebook that runs this, or else in the desktop's viewer.

    Raises:
        ConfigError: there is neither a notebook nor a desktop.
    """
    python = sys.modules.get("IPython")  # a notebook has it already
    shell = None if python is None else python.get_ipython()
    if python is not None and getattr(shell, "kernel", None) is not None:
        python.display.display(_shrunk(picture, SHOWN_SIDE))
        return
    has_desktop = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not has_desktop:
        raise ConfigError("there is no screen here to show a picture on: write it to a file with save() instead.")
    if not ImageShow.show(picture, title):
        raise ConfigError("no program to show pictures is installed: write it to a file with save(), or install xdg-utils.")


def jpeg_bytes(picture: Image.Image, side: int = SHOWN_SIDE) -> bytes:
    """Return a picture as a JPEG file, its longest side at most ``side`` pixels."""
    file = BytesIO()
    _shrunk(picture, side).save(file, "JPEG", quality=85)
    return file.getvalue()


def html_picture(picture: Image.Image, side: int = SHOWN_SIDE) -> str:
    """Return an ``<img>`` with the picture inside."""
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(jpeg_bytes(picture, side)).decode()}" alt="">'


def html_table(names: Sequence[str], rows: Iterable[Sequence[Any]], most: int = MOST_ROWS) -> str:
    """Return a ``<table>``; rows beyond ``most`` are counted. Text is escaped, and fractions have three digits."""
    listed = list(rows)
    head = "".join(f"<th {_CELL}>{html_text(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td {_CELL}>{html_text(value)}</td>" for value in row) + "</tr>" for row in listed[:most]
    )
    more = f"<p>… and {len(listed) - most:,} more</p>" if len(listed) > most else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def html_text(value: Any) -> str:
    """Return a value as text of HTML, whatever letters a file's name or a class has."""
    if value is None:
        return "-"
    return html.escape(f"{value:.3f}" if isinstance(value, float) else path_text(str(value)))


def _shrunk(picture: Image.Image, side: int) -> Image.Image:
    if max(picture.size) <= side:
        return picture
    smaller = picture.copy()
    smaller.thumbnail((side, side))
    return smaller
