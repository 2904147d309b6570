"""The doctor's page: one offline HTML file with thumbnails for the findings."""

from __future__ import annotations

import base64
import io
import math
from functools import cache
from html import escape
from pathlib import Path

from PIL import Image, ImageDraw

from nextdetr.analysis.doctor.findings import DoctorResult, Finding, Mark, Picture, headline
from nextdetr.data.records import read_as
from nextdetr.data.thumbnails import in_its_range
from nextdetr.errors import DataError
from nextdetr.files import path_text, write_text_atomic
from nextdetr.inference.fonts import lay_out
from nextdetr.preprocess import load_image

__all__ = ["write_page"]

_SIDE = 240  # pixels of a thumbnail's longer side
_AROUND = 4  # size of the shown part, in sides of the doubtful boxes
_SHOWN = 24  # maximum thumbnails per finding
_QUALITY = 80
_TEXT = 11  # pixels, of labels

_STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --soft: #f6f8fa; --error: #cf222e; --warning: #9a6700; --note: #0969da; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3d444d; --soft: #151b23; --error: #ff7b72; --warning: #e3b341; --note: #79c0ff; }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 0; }
table { border-collapse: collapse; } td, th { padding: .2rem 1rem .2rem 0; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
section { border: 1px solid var(--line); border-left-width: 5px; border-radius: 6px; padding: 1rem; margin: 1rem 0; }
section.error { border-left-color: var(--error); } section.warning { border-left-color: var(--warning); }
section.note { border-left-color: var(--note); }
.severity { font-size: .8rem; text-transform: uppercase; letter-spacing: .05em; }
.error .severity { color: var(--error); } .warning .severity { color: var(--warning); }
.note .severity { color: var(--note); }
.pictures { display: flex; flex-wrap: wrap; gap: .8rem; margin-top: .8rem; }
figure { margin: 0; width: 240px; } figure img { max-width: 100%; border-radius: 4px; display: block; }
figcaption { font-size: .8rem; overflow-wrap: anywhere; }
p { margin: .4rem 0; overflow-wrap: anywhere; }
details { margin-top: .6rem; } details ul { font-size: .85rem; overflow-wrap: anywhere; }
.recipe { background: var(--soft); border-radius: 6px; padding: 1rem 1rem 1rem 2rem; }
"""


def write_page(result: DoctorResult, target: Path) -> None:
    """Write the result as a page.

    Raises:
        WriteError: it cannot be written.
    """
    name = escape(path_text(result.data))
    rows = "".join(
        f"<tr><td>{escape(split)}</td><td class=number>{count['images']:,}</td>"
        f"<td class=number>{count['boxes']:,}</td></tr>"
        for split, count in result.splits.items()
    )
    recipe = "".join(f"<li>{escape(line)}</li>" for line in result.recipe)
    verdict = f"{result.verdict[0].upper()}{result.verdict[1:]}."
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Doctor: {name}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{name}</h1>
<p>{escape(path_text(read_as(result.recognised)))}</p>
<p><strong>{escape(headline(result))}. {verdict}</strong></p>
<table><thead><tr><th>split</th><th>images</th><th>boxes</th></tr></thead><tbody>{rows}</tbody></table>
{"".join(_section(finding) for finding in result.findings)}
{f"<h2>What train would choose</h2><ul class=recipe>{recipe}</ul>" if recipe else ""}
</body>
</html>
"""
    write_text_atomic(target, text)


def _section(finding: Finding) -> str:
    figures = "".join(_figure(picture) for picture in finding.pictures[:_SHOWN])
    more = len(finding.pictures) - _SHOWN
    rest = f"<p>and {more:,} more</p>" if more > 0 else ""
    names = "".join(f"<li>{escape(path_text(image))}</li>" for image in finding.images)
    images = len(finding.images)
    listed = f"<details><summary>{images:,} file{'' if images == 1 else 's'}</summary><ul>{names}</ul></details>"
    return (
        f'<section class="{finding.severity}"><span class=severity>{finding.severity}</span>'
        f"<h2>{escape(finding.kind)}</h2><p>{escape(path_text(finding.message))}</p>"
        f"<div class=pictures>{figures}</div>{rest}{listed if images else ''}</section>\n"
    )


def _figure(picture: Picture) -> str:
    shown = _thumbnail(picture.path, picture.marks)
    caption = escape(path_text(picture.caption))
    drawn = f'<img src="data:image/jpeg;base64,{shown}" alt="{caption}">' if shown else "<em>cannot be read</em>"
    return f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>"


def _window(size: tuple[int, int], marks: tuple[Mark, ...]) -> tuple[int, int, int, int]:
    """Return the part of an image to show: all of it, or the surroundings of the doubtful boxes."""
    boxes = [mark.box for mark in marks if mark.doubtful]
    if not boxes:
        return (0, 0, *size)
    low = [min(box[axis] for box in boxes) for axis in (0, 1)]
    high = [max(box[axis] for box in boxes) for axis in (2, 3)]
    side = max(_AROUND * max(end - start for start, end in zip(low, high, strict=True)), max(size) / 6)
    window = []
    for start, end, length in zip(low, high, size, strict=True):
        extent = min(float(length), side)
        first = min(max(0.0, (start + end - extent) / 2), length - extent)
        window.append((math.floor(first), math.ceil(first + extent)))
    (left, right), (top, bottom) = window
    return left, top, right, bottom


@cache
def _thumbnail(path: Path, marks: tuple[Mark, ...]) -> str:
    """Return an image with its marks as a base64 JPEG; "" if it cannot be read."""
    try:
        image = load_image(path, in_its_range(path))
    except DataError:
        return ""
    left, top, right, bottom = _window(image.size, marks)
    image = image.crop((left, top, right, bottom))
    scale = _SIDE / max(image.size)
    size = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
    small = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    pen = ImageDraw.Draw(small)
    for mark in marks:
        x1, y1, x2, y2 = (scale * (value - start) for value, start in zip(mark.box, (left, top) * 2, strict=True))
        colour = "#ff2d2d" if mark.doubtful else "#2dd4ff" if mark.text else "#9aa4ad"
        pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=2 if mark.text or mark.doubtful else 1)
        if mark.text:
            line = lay_out(mark.text, _TEXT)  # in letters of any script
            width, height = line.width, line.bottom - line.top
            x = max(0.0, min(x1, small.width - width - 2))
            y = y2 + 2 if not mark.doubtful and y2 + height + 4 < small.height else max(0.0, y1 - height - 2)
            pen.rectangle((x, y, x + width + 2, y + height + 2), fill=colour)
            line.draw(pen, x + 1, y + 1 - line.top, "black")
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=_QUALITY)
    return base64.b64encode(stream.getvalue()).decode("ascii")
