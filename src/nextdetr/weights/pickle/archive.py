"""Locations of the parts of a ``torch.save`` file: the directory of its zip archive, read from a memory map.

Only what torch writes is accepted: stored entries (so nothing can unpack to more than the file's size), one disk, no
encryption. All offsets and sizes are checked against the file before use. Format: PKWARE's APPNOTE, 4.3.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from nextdetr.errors import WeightsError

__all__ = ["Region", "map_file", "zip_directory"]

_MAX_ENTRIES = 200_000
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


@dataclass(frozen=True, slots=True)
class Region:
    """A part of the file, in bytes."""

    start: int
    size: int


def map_file(path: Path) -> mmap.mmap:
    """Map a non-empty file; writing to the map changes the copy in memory, never the file."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def zip_directory(source: str, buffer: mmap.mmap) -> dict[str, Region]:
    """Return the location of each entry's content in a zip archive.

    Raises:
        WeightsError: the archive is incomplete, damaged, compressed, or states impossible sizes.
    """
    try:
        start, size, count = _find_directory(source, buffer)
        return _read_directory(source, buffer, start, size, count)
    except (struct.error, UnicodeDecodeError) as error:
        raise _damaged(source, "its directory cannot be read") from error


def _damaged(source: str, cause: str) -> WeightsError:
    return WeightsError(f"{source}: a damaged or incomplete zip archive ({cause}); download or save the file again.")


def _find_directory(source: str, buffer: mmap.mmap) -> tuple[int, int, int]:
    end = buffer.rfind(b"PK\x05\x06", max(0, len(buffer) - _END.size - 0xFFFF))
    if end < 0:
        raise _damaged(source, f"it stops after {len(buffer):,} bytes, before its directory")
    _, disk, _, _, count, size, start, _ = _END.unpack_from(buffer, end)
    if 0xFFFF in (disk, count) or 0xFFFFFFFF in (size, start):
        signature, _, end64, _ = _END64_LOCATOR.unpack_from(buffer, max(0, end - _END64_LOCATOR.size))
        if signature != b"PK\x06\x07" or end64 + _END64.size > end:
            raise _damaged(source, "its directory is not where it should be")
        signature, *_, count, size, start = _END64.unpack_from(buffer, end64)
        if signature != b"PK\x06\x06":
            raise _damaged(source, "its directory is not where it should be")
    if start + size > end or count * _ENTRY.size > size or count > _MAX_ENTRIES:
        raise _damaged(source, f"its directory states {count:,} entries, which it has no room for")
    return start, size, count


def _read_directory(source: str, buffer: mmap.mmap, start: int, size: int, count: int) -> dict[str, Region]:
    regions: dict[str, Region] = {}
    compressed: str | None = None
    position, total = start, 0
    for _ in range(count):
        fields = _ENTRY.unpack_from(buffer, position)
        flags, method, packed, unpacked, offset = fields[3], fields[4], fields[8], fields[9], fields[16]
        name_at, extra_at = position + _ENTRY.size, position + _ENTRY.size + fields[10]
        position = extra_at + fields[11] + fields[12]
        if fields[0] != b"PK\x01\x02" or position > start + size:
            raise _damaged(source, "an entry of its directory is cut off")
        name = buffer[name_at:extra_at].decode("utf-8")
        unpacked, packed, offset = _wide(buffer[extra_at : extra_at + fields[11]], unpacked, packed, offset)
        if method != 0 or flags & 1 or packed != unpacked:
            compressed = compressed or name
            continue
        local = _LOCAL.unpack_from(buffer, offset)
        content = offset + _LOCAL.size + local[9] + local[10]
        total += unpacked
        if local[0] != b"PK\x03\x04" or content + unpacked > start or total > len(buffer) or name in regions:
            raise _damaged(source, f"its entry {name[:80]!r} states {unpacked:,} bytes, which are not there")
        regions[name] = Region(content, unpacked)
    if compressed is not None and not any(name.endswith("/constants.pkl") for name in regions):
        raise WeightsError(
            f"{source}: its entry {compressed[:80]!r} is compressed, as torch never writes it, and may unpack to any size; "
            "the file is refused: unpack it yourself if you trust it, and save it again with torch.save."
        )
    return regions


def _wide(extra: bytes, *values: int) -> tuple[int, ...]:
    """Return the values, with those that do not fit 32 bits from the entry's zip64 field."""
    position = 0
    wide: list[int] = []
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            wide = [value for (value,) in struct.iter_unpack("<Q", extra[position + 4 : position + 4 + length // 8 * 8])]
        position += 4 + length
    remaining = iter(wide)
    return tuple(next(remaining, value) if value == 0xFFFFFFFF else value for value in values)
