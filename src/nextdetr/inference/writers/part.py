"""A file that is written over a longer time: a part until it is whole, and one process's until then."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from nextdetr.errors import ConfigError, WriteError
from nextdetr.files import make_directory, path_text

__all__ = ["PartFile", "part_of"]

TAKEN = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}  # the errors of a lock that another process holds


def part_of(path: Path) -> Path:
    """Return the name of a file that is not finished: ``<stem>.part<suffix>``."""
    return path.with_name(f"{path.stem}.part{path.suffix}")


class PartFile:
    """A file called ``<stem>.part<suffix>`` until it is committed; for what writes bytes, it is a file itself.

    The first error of the disk is kept and raised again by all that follows, since some writers pass over it.

    Args:
        path: its final name; the folder is made where it is missing.

    Raises:
        ConfigError: another process is writing it.
        WriteError: it cannot be opened, as its methods raise where it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.part = path, part_of(path)
        self._problem: WriteError | None = None
        make_directory(path.parent)
        try:
            self._file = _open_alone(self.part)
        except OSError as error:
            raise self._failed(error) from error
        if self._file is None:
            raise ConfigError(
                f"{path_text(path)}: another process is writing it; wait until it has ended, or choose another --output."
            )

    @property
    def closed(self) -> bool:
        """Whether it was committed or aborted."""
        return self._file is None or self._file.closed

    def write(self, data: Any) -> int:
        """Write bytes."""
        self.check()
        assert self._file is not None
        rest = memoryview(data)
        length = len(rest)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._failed(error) from error
        return length

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move the place of the next byte."""
        assert self._file is not None
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the place of the next byte."""
        assert self._file is not None
        return self._file.tell()

    def check(self) -> None:
        """Raise what has gone wrong so far."""
        if self._problem is not None:
            raise self._problem

    def finish(self) -> None:
        """Write through to the disk; the part keeps its name."""
        self.check()
        assert self._file is not None
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from error

    def commit(self) -> None:
        """Write through to the disk and take the final name."""
        self.finish()
        assert self._file is not None
        try:
            if os.name == "nt":  # Windows renames no open file
                self._file.close()
            self.part.replace(self.path)
        except OSError as error:
            raise self._failed(error) from error
        self._file.close()

    def abort(self, *, keep: bool = True) -> None:
        """Leave the part, or remove it; never raises."""
        with suppress(OSError):
            if not keep and not self.closed:
                if os.name == "nt":
                    self.close()
                self.part.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Release the file; the next to open the part may write it."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def _failed(self, error: OSError) -> WriteError:
        reason = error.strerror or str(error)
        problem = WriteError(
            f"{path_text(self.path)}: cannot be written ({reason}); what there is may be in {self.part.name}."
        )
        self._problem = self._problem or problem
        return self._problem


def _open_alone(path: Path) -> IO[bytes] | None:
    """Open a file to write it from its start, and keep it from other processes; None if one of them keeps it.

    The lock is the system's own, on the file itself, and ends with the process.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        file: IO[bytes] = os.fdopen(handle, "r+b", buffering=0)
        try:
            if not _lock(handle):
                file.close()
                return None
            # The process that had it may have given it its final name meanwhile.
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                file.truncate(0)
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(handle: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(handle, 1 << 40, os.SEEK_SET)  # a byte beyond all that is written, so that others can read along
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in TAKEN  # a file system without locks is no reason to fail
    return True
