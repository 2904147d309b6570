"""Files of a request: one as the whole body, or several in a multipart form, parsed as they arrive."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import AsyncIterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from nextdetr.serve.errors import ServeError

__all__ = ["Part", "read_parts"]

_RAW = ("application/octet-stream", "application/x-www-form-urlencoded")  # the latter is curl's default
_LONGEST_NAME = 255


@dataclasses.dataclass(slots=True)
class Part:
    """One part of a form, or a whole body.

    Attributes:
        field: name in the form; empty for a whole body.
        filename: the client's name for it; None without one.
        content_type: as stated by the client, in lower case.
        content: the bytes.
    """

    field: str = ""
    filename: str | None = None
    content_type: str = ""
    content: bytearray = dataclasses.field(default_factory=bytearray)

    @property
    def is_file(self) -> bool:
        """Whether it is a file rather than a text field."""
        return self.filename is not None or self.content_type.startswith("image/") or not self.field


async def read_parts(chunks: AsyncIterator[bytes], content_type: str, *, most: int) -> list[Part]:
    """Parse a body.

    Args:
        chunks: the body as it arrives.
        content_type: the header; ``multipart/form-data``, an image's type, or none.
        most: maximum number of parts.

    Raises:
        ServeError: the form is damaged (400), has too many parts (413), or the type is unsupported (415).
    """
    kind, options = parse_options_header(content_type)
    name = kind.decode("latin-1").strip().lower()
    if name == "multipart/form-data":
        boundary = options.get(b"boundary")
        if not boundary:
            raise ServeError(400, "the form has no boundary: let your HTTP library write the Content-Type header.")
        reader = _FormReader(boundary, most)
        async for chunk in chunks:
            reader.feed(chunk)
        return reader.end()
    if content_type.strip() and name not in _RAW and not name.startswith("image/"):
        raise ServeError(
            415, "send an image as the body (Content-Type: image/jpeg), or several as a form (multipart/form-data)."
        )
    part = Part(content_type=name)
    async for chunk in chunks:
        part.content += chunk
    return [part]


class _FormReader:
    """Collects the parts of a form."""

    def __init__(self, boundary: bytes, most: int) -> None:
        self.parts: list[Part] = []
        self._most, self._complete = most, False
        self._headers: dict[str, str] = {}
        self._name, self._value = bytearray(), bytearray()
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin, "on_part_data": self._data, "on_header_field": self._field,
                    "on_header_value": self._content, "on_header_end": self._header, "on_headers_finished": self._named,
                    "on_end": self._end,
                },
            )  # fmt: skip
        except FormParserError as error:
            raise ServeError(400, f"the form cannot be read: {_reason(error)}.") from error

    def feed(self, chunk: bytes) -> None:
        """Parse the next piece of the body."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise ServeError(400, f"the form cannot be read: {_reason(error)}.") from error

    def end(self) -> list[Part]:
        """Return the parts."""
        if not self._complete:
            raise ServeError(400, "the form ends in the middle: its last boundary is missing.")
        return self.parts

    def _begin(self) -> None:
        if len(self.parts) >= self._most:
            raise ServeError(413, f"the request has too many parts: the limit is {self._most}.")
        self.parts.append(Part())
        self._headers = {}

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _content(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = bytes(self._value).decode("latin-1")
        self._name.clear()
        self._value.clear()

    def _named(self) -> None:
        part = self.parts[-1]
        kind, options = parse_options_header(self._headers.get("content-disposition", ""))
        if kind != b"form-data" or b"name" not in options:
            raise ServeError(400, "a part of the form has no name: each needs Content-Disposition: form-data; name=….")
        part.field = _text(options[b"name"])
        if b"filename" in options:
            part.filename = _text(options[b"filename"])
        part.content_type = self._headers.get("content-type", "").partition(";")[0].strip().lower()
        if self._headers.get("content-transfer-encoding", "binary").lower() not in ("binary", "8bit", "7bit"):
            raise ServeError(415, "encoded parts are not taken: send images as they are, without base64.")

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].content += data[start:end]

    def _end(self) -> None:
        self._complete = True


def _text(value: bytes) -> str:
    text = value.decode("utf-8", errors="replace")
    return re.sub(r"[\x00-\x1f\x7f]", "", text)[:_LONGEST_NAME]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or "it is damaged"
