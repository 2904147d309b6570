"""Whole files or none: everything that the program writes goes through here.

A write goes to a temporary file beside the target, is flushed to the disk, and takes the target's name in one step, so that
a kill or a full disk leaves the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["append_line", "atomic_write", "new_directory", "write_bytes_atomic", "write_text_atomic"]


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on any error it is removed.

    The temporary name keeps the suffix of ``path``, as writers choose their format by it.

    Raises:
        OSError: the disk is full or the folder cannot be written; ``path`` is then as it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem[:80]}.", suffix=target.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
        _flush(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: str | Path, content: bytes) -> None:
    """Write ``content``, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def append_line(path: str | Path, line: str) -> None:
    """Append one line to a log and flush it, so that a kill loses at most the line under way."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()


def new_directory(wanted: str | Path) -> Path:
    """Create and return ``wanted``, or ``wanted-2``, ``wanted-3``, … when it exists already."""
    wanted = Path(wanted)
    candidate, number = wanted, 1
    while True:
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            number += 1
            candidate = wanted.with_name(f"{wanted.name}-{number}")
        else:
            return candidate


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows has no handle on a folder to flush
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
