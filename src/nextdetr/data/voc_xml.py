"""Read the XML files of Pascal VOC, with line numbers for messages; a DOCTYPE is refused, since none is needed.

With entities, which a DOCTYPE declares, a small file can fill the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from nextdetr.data.records import Problem

__all__ = ["CORNERS", "Element", "RefusedError", "VocFile", "VocObject", "parse_voc", "parse_xml"]

CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(slots=True)
class Element:
    """An element: its line, text and children."""

    tag: str
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def all(self, tag: str) -> Iterator[Element]:
        """Return the direct children with this name."""
        return (child for child in self.children if child.tag == tag)

    def first(self, tag: str) -> Element | None:
        """Return the first such child, or None."""
        return next(self.all(tag), None)

    def text_of(self, tag: str) -> str:
        """Return the stripped text of the first such child; "" if there is none."""
        child = self.first(tag)
        return "" if child is None else child.text.strip()


@dataclass(frozen=True, slots=True)
class VocObject:
    """One object: its position, class, and corners as written; None without a bndbox."""

    where: str
    name: str
    corners: dict[str, str] | None


@dataclass(frozen=True, slots=True)
class VocFile:
    """Content of an annotation file.

    Attributes:
        objects: the objects.
        image_name: path of the image as written, with ``/``; often one of another computer.
        size: declared (width, height) in pixels; None without.
        problem: why the file cannot be used.
    """

    objects: list[VocObject]
    image_name: str = ""
    size: tuple[float, float] | None = None
    problem: Problem | None = None


class RefusedError(Exception):
    """The XML has something that no annotation needs."""


def parse_xml(content: bytes) -> Element:
    """Build the tree with line numbers, which ElementTree does not keep.

    Raises:
        expat.ExpatError: a syntax error.
        RefusedError: there is a DOCTYPE.
    """
    parser = expat.ParserCreate()
    parser.buffer_text = True
    top = Element("", 0)
    stack = [top]

    def start(tag: str, _attributes: dict[str, str]) -> None:
        element = Element(tag, parser.CurrentLineNumber)
        stack[-1].children.append(element)
        stack.append(element)

    def end(_tag: str) -> None:
        stack.pop()

    def text(data: str) -> None:
        stack[-1].text += data

    def doctype(*_arguments: object) -> None:
        raise RefusedError(parser.CurrentLineNumber)

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.StartDoctypeDeclHandler = doctype
    parser.Parse(content, True)
    return top.children[0]


def parse_voc(path: Path) -> VocFile:
    """Read one XML file; an error of the whole file is returned as its ``problem``."""

    def bad(where: str, message: str) -> VocFile:
        return VocFile(
            [], problem=Problem(str(path), where, f"{message}; the image is dropped", "unreadable annotation file")
        )

    try:
        root = parse_xml(path.read_bytes())
    except OSError as error:
        return bad("", f"it cannot be read: {error.strerror}")
    except expat.ExpatError as error:
        return bad(f"line {error.lineno}", f"not valid XML ({expat.ErrorString(error.code)})")
    except RefusedError as refusal:
        return bad(f"line {refusal}", "it declares a DOCTYPE, which annotations do not need and which is not safe to read")
    except (ValueError, LookupError) as error:  # an unknown encoding
        return bad("line 1", f"not valid XML ({error})")
    if root.tag != "annotation":
        return bad(f"line {root.line}", f"not a VOC annotation: its first element is {root.tag}")
    objects = []
    for number, element in enumerate(root.all("object"), start=1):
        box = element.first("bndbox")
        line = element.line if box is None else box.line
        corners = None if box is None else {tag: box.text_of(tag) for tag in CORNERS}
        objects.append(VocObject(f"line {line} (object {number})", element.text_of("name"), corners))
    image_name = root.text_of("filename").replace("\\", "/")
    return VocFile(objects, image_name, _size(root))


def _size(root: Element) -> tuple[float, float] | None:
    size = root.first("size")
    if size is None:
        return None
    try:
        width, height = float(size.text_of("width")), float(size.text_of("height"))
    except ValueError:
        return None
    return (width, height) if width > 0 and height > 0 else None  # some tools write 0 for "unknown"
