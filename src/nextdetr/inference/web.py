"""Images by their address, fetched when it is their turn: ``http`` and ``https`` only, redirects included."""

from __future__ import annotations

import time
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from nextdetr.errors import DataError
from nextdetr.pictures import Encoded

__all__ = ["MAX_BYTES", "WebImage", "fetch", "without_password"]

#: Bytes of the largest image file that is taken from an address or standard input.
MAX_BYTES = 256 << 20
SILENCE = 10.0  # seconds without a sign of life, after which an address is given up
PATIENCE = 120.0  # seconds that all of a file may take
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class WebImage:
    """An image on the web.

    Attributes:
        address: ``http://…`` or ``https://…``.
    """

    address: str


def fetch(image: WebImage) -> Encoded:
    """Fetch an image file.

    Raises:
        DataError: it is no address of the web, or nothing that could be an image comes from there in time.
    """
    import requests

    from nextdetr import __version__

    address, name = image.address, without_password(image.address)
    deadline = time.monotonic() + PATIENCE
    try:
        with requests.get(
            address, headers={"User-Agent": f"nextdetr/{__version__}"}, stream=True, timeout=SILENCE
        ) as answer:
            if not answer.ok:
                raise DataError(f"{name}: the server answers {answer.status_code} {answer.reason}.")
            kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            if kind in ("text/html", "application/xhtml+xml"):
                raise DataError(f"{name} is a web page, not an image: name the address of the image itself.")
            if kind == "multipart/x-mixed-replace":
                raise DataError(f"{name} is a camera's stream: name its address that begins with rtsp:// or ends in .mjpg.")
            return Encoded(_content(answer, name, deadline), name)
    except requests.exceptions.InvalidSchema as error:
        raise DataError(f"{name} leads to an address that is neither http:// nor https://.") from error
    except requests.exceptions.Timeout as error:
        raise DataError(f"{name}: no answer within {SILENCE:g} seconds.") from error
    except requests.exceptions.RequestException as error:
        raise DataError(f"{name} cannot be fetched: {_reason(error)}.") from error
    except ValueError as error:  # of an address that urllib3 cannot take apart
        raise DataError(f"{name} is no address: {error}.") from error


def _content(answer: object, name: str, deadline: float) -> bytes:
    parts, size = [], 0
    for part in answer.iter_content(_CHUNK):  # type: ignore[attr-defined]
        size += len(part)
        if size > MAX_BYTES:
            raise DataError(f"{name} is larger than {MAX_BYTES >> 20} MB: download it and name the file.")
        if time.monotonic() > deadline:
            raise DataError(f"{name} takes longer than {PATIENCE:g} seconds: download it and name the file.")
        parts.append(part)
    return b"".join(parts)


def without_password(address: str) -> str:
    """Return an address without the name and password that it may have, for messages and results."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return address
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else address


def _reason(error: Exception) -> str:
    """Return the innermost reason of a failed connection in a few words."""
    text = str(error)
    for sign in (
        "Name or service not known",
        "Temporary failure in name resolution",
        "nodename nor servname",
        "getaddrinfo",
    ):
        if sign in text:
            return "there is no such server, or no network"
    if "refused" in text:
        return "the server refuses the connection"
    if "certificate" in text.lower():
        return "the server's certificate is not trusted"
    return " ".join(text.split()).rstrip(". ")[:200] or type(error).__name__
