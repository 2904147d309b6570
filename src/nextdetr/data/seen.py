"""Images that a detector was trained on: its file holds a short digest of each, neither images nor names.

So two detectors of different trainings can be compared on images that are new to both. Detectors that started from another
one also have its digests.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nextdetr.data.records import ImageRecord

__all__ = [
    "MOST", "TOO_MANY", "TRAINED_ON", "file_digests", "is_seen", "seen_by", "trained_on", "trained_on_metadata",
    "why_unknown",
]  # fmt: skip

#: Key of a detector's metadata: digests of its training images, joined, in base64; or ``TOO_MANY``.
TRAINED_ON = "trained_on"
MOST = 131_072  # images whose digests are stored, 1 MiB of text; of more, none
TOO_MANY = "too many"
TAIL = 4096  # bytes at the end of an image file that are hashed
_LENGTH = 6  # bytes of a digest that are stored, 8 characters: chance takes one image in a billion for one of 100,000
_PLAIN = frozenset((".bmp", ".dib", ".pbm", ".pgm", ".pnm", ".ppm", ".tga", ".tif", ".tiff"))


def file_digests(records: Sequence[ImageRecord]) -> list[bytes]:
    """Return a digest of each image file, by content: its size and its last 4,096 bytes.

    A file that was moved or copied has the same digest, and gigabytes need not be read. In all compressed formats, the last
    bytes of two different images of equal size differ.
    """
    return _map(records, _digest)


def trained_on_metadata(records: Sequence[ImageRecord], before: Iterable[bytes] = ()) -> dict[str, str]:
    """Return the metadata entry of a detector that was trained on these images.

    Args:
        records: the images.
        before: what :func:`trained_on` returned for the detector that it started from.
    """
    found = set(_digests(records)).union(before)
    return {TRAINED_ON: base64.b64encode(b"".join(sorted(found))).decode() if len(found) <= MOST else TOO_MANY}


def trained_on(metadata: Mapping[str, str]) -> frozenset[bytes] | None:
    """Return the digests in a detector's metadata, for :func:`is_seen`; None if there are none, or they are damaged."""
    try:
        content = base64.b64decode(metadata[TRAINED_ON], validate=True)
    except (KeyError, ValueError):
        return None
    if len(content) % _LENGTH:
        return None
    return frozenset(content[start : start + _LENGTH] for start in range(0, len(content), _LENGTH))


def why_unknown(metadata: Mapping[str, str]) -> str:
    """Return why :func:`trained_on` returns None for a detector's metadata, as a clause."""
    if metadata.get(TRAINED_ON) == TOO_MANY:
        return f"its file lists no training images, as there are more than {MOST:,}"
    return "its file does not list its training images"


def is_seen(records: Sequence[ImageRecord], known: frozenset[bytes]) -> list[bool]:
    """Return for each image whether it is among those of :func:`trained_on`."""
    return [one for (one,) in seen_by(records, [known])]


def seen_by(records: Sequence[ImageRecord], detectors: Sequence[frozenset[bytes]]) -> list[list[bool]]:
    """Return for each image whether it is among those of each detector, [images][detectors]; each file is read once."""
    return [[digest in known for known in detectors] for digest in _digests(records)]


def _digests(records: Sequence[ImageRecord]) -> list[bytes]:
    """Return what is stored of each image; files that are not compressed, and may end alike, are read as a whole."""
    return [digest[:_LENGTH] for digest in _map(records, lambda path: _digest(path, whole=path.suffix.lower() in _PLAIN))]


def _map(records: Sequence[ImageRecord], digest: Callable[[Path], bytes]) -> list[bytes]:
    with ThreadPoolExecutor(max_workers=min(8, (os.cpu_count() or 1) + 1)) as pool:
        return list(pool.map(digest, (record.path for record in records)))


def _digest(path: Path, *, whole: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0 if whole else max(0, size - TAIL))
            return hashlib.blake2b(b"%d:" % size + file.read(), digest_size=16).digest()
    except OSError:  # deleted since the check; training will report it
        return bytes(16)
