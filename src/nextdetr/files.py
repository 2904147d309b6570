"""Atomic writes: everything that the program writes goes through here.

A write goes to a temporary file beside the target, is flushed to disk, and is renamed to the target in one step, so that a
kill or a full disk leaves the old file or the new one, never a partial one. A killed process leaves its temporary file
behind; the next one that writes to the folder removes it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import logging
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from nextdetr.errors import ConfigError, NextDETRError, WriteError, out_of_memory

__all__ = [
    "atomic_write",
    "check_writable",
    "directory_if_used",
    "exclusive",
    "file_if_done",
    "is_local",
    "latest_directory",
    "make_directory",
    "missing_folders",
    "new_directory",
    "new_directory_if_used",
    "optional_file",
    "path_text",
    "remove_empty",
    "remove_leftovers",
    "temporary_name",
    "with_own_name",
    "write_bytes_atomic",
    "write_text_atomic",
]

_log = logging.getLogger(__name__)

# .<start of the name>.<machine>-<process>-<random>.partial<suffix>
_TEMPORARY = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.partial(\.[^.]*)?")
_FOREIGN_AGE = 3600.0  # seconds without a change after which another machine's temporary file counts as abandoned
_NO_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM}
_swept: set[Path] = set()


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on any error it is removed.

    The temporary name keeps the suffix of ``path``, as writers choose their format by it. Missing folders are created.

    Raises:
        WriteError: the disk is full, a limit is reached, the folder is not writable, or ``path`` is a folder; it is
            unchanged.
    """
    target = Path(path)
    if not _has_name(target):
        raise WriteError(f"{target}: is a folder; name a file.")
    make_directory(target.parent)
    remove_leftovers(target.parent)
    temporary = target.with_name(temporary_name(target))
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
        yield temporary
        _flush(temporary)
        temporary.replace(target)
    except Exception as error:
        cause = _cause(error, temporary)
        if cause is None:
            raise
        raise WriteError(f"{target}: cannot be written ({cause}); an earlier file of that name is untouched.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    _flush_folder(target.parent)


@contextlib.contextmanager
def optional_file() -> Iterator[None]:
    """Guard for optional output, such as a plot: a failure is a warning, not an error."""
    try:
        yield
    except WriteError as error:
        _log.warning("%s The run continues without it.", error)


def write_text_atomic(path: str | Path, text: str) -> None:
    r"""Write ``text`` as UTF-8 atomically; see :func:`atomic_write`.

    Bytes of names that are not UTF-8, which Python represents as surrogates, are escaped (``\udcfc``, valid in JSON).
    """
    write_bytes_atomic(path, text.encode(errors="backslashreplace"))


def write_bytes_atomic(path: str | Path, content: bytes) -> None:
    """Write ``content`` atomically; see :func:`atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def check_writable(path: str | Path) -> None:
    """Check that a file can be written, before its content is computed; errors are those of :func:`atomic_write`."""
    with contextlib.suppress(LookupError), directory_if_used(Path(path).parent), atomic_write(path):
        raise LookupError  # it works: nothing is replaced, and new folders are removed


def make_directory(path: str | Path) -> Path:
    """Create a folder and missing parents, and return it.

    Raises:
        WriteError: it cannot be created; the message says why.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{path}: the folder cannot be made ({_obstacle(path) or error.strerror or error}).") from error
    return path


def new_directory(wanted: str | Path) -> Path:
    """Create and return ``wanted``, or ``wanted-2``, ``wanted-3``, … if it already exists.

    Raises:
        WriteError: it cannot be created.
    """
    wanted = Path(wanted)
    make_directory(wanted.parent)
    for candidate in _numbered(wanted):
        try:
            candidate.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise WriteError(f"{candidate}: the folder cannot be made ({error.strerror or error}).") from error
        return candidate
    raise AssertionError


def latest_directory(wanted: str | Path) -> Path | None:
    """Return the last folder that :func:`new_directory` made for ``wanted``; None if there is none."""
    latest = None
    for candidate in _numbered(Path(wanted)):
        if not candidate.exists():
            return latest
        latest = candidate
    raise AssertionError


def _numbered(wanted: Path) -> Iterator[Path]:
    yield wanted
    own = with_own_name(wanted)
    yield from (own.with_name(f"{own.name}-{number}") for number in itertools.count(2))


def with_own_name(path: Path) -> Path:
    """Return a path with a name of its own: "." and ".." have none, and stand for a folder that has."""
    return path if _has_name(path) else path.resolve()


def _has_name(path: Path) -> bool:
    return path.name not in ("", "..")


def missing_folders(path: str | Path) -> list[Path]:
    """Return a folder and its parents, as far as they do not exist yet, innermost first."""
    path = Path(path)
    return [part for part in (path, *path.parents) if not part.exists()]


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, innermost first, up to the first one with content."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


@contextlib.contextmanager
def directory_if_used(path: str | Path) -> Iterator[Path]:
    """Yield a folder, created with its missing parents; these are removed if the block fails and leaves them empty."""
    made = missing_folders(path)
    try:
        yield make_directory(path)
    except BaseException:
        remove_empty(made)
        raise


@contextlib.contextmanager
def new_directory_if_used(wanted: str | Path) -> Iterator[Path]:
    """Yield a :func:`new_directory`, which is removed, like missing parents, if the block fails and leaves it empty."""
    with directory_if_used(Path(wanted).parent):
        folder = new_directory(wanted)
        try:
            yield folder
        except BaseException:
            remove_empty([folder])
            raise


@contextlib.contextmanager
def file_if_done(path: str | Path) -> Iterator[Path]:
    """Yield the path of a new file that the block needs for its result; it is removed if the block fails."""
    path = Path(path)
    try:
        yield path
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def exclusive(target: str | Path, *, wait: float = 0.0) -> Iterator[None]:
    """Lock a folder, or a file, for this process while it is written over a longer time.

    The lock is the system's own and ends with its process, however that ends. The empty lock file remains: ``.lock`` in a
    folder, ``.<name>.lock`` beside a file.

    Args:
        target: an existing folder, or a file to be written.
        wait: seconds to wait for another process.

    Raises:
        ConfigError: another process holds it, or another thread of this one.
        WriteError: the lock file cannot be written.
    """
    from filelock import FileLock, Timeout

    target = Path(target)
    file = target / ".lock" if target.is_dir() else target.with_name(f".{target.name}.lock")
    make_directory(file.parent)
    lock = FileLock(file, timeout=wait, thread_local=False)  # another thread may release it
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(
            f"{target}: another process is writing there; wait until it has ended, or choose another --output."
        ) from error
    except OSError as error:
        raise WriteError(f"{file}: cannot be written ({error.strerror or error}).") from error
    try:
        yield
    finally:
        lock.release()


def path_text(path: str | Path) -> str:
    r"""Return a path as text that any UTF-8 file, table or terminal accepts.

    Bytes that are not UTF-8, as in names from old archives, become ``\xfc``: Python represents them as surrogates, which no
    encoder accepts. Other names are unchanged.
    """
    return re.sub("[\ud800-\udfff]", _escaped, str(path))


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files and folders of processes that were killed while writing; once per folder.

    Those of living processes are kept, and so are those of other machines, on shared disks: folders always, files unless
    unchanged for an hour.
    """
    folder = Path(folder).absolute()
    if folder in _swept:
        return
    _swept.add(folder)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if match is None:
                continue
            with contextlib.suppress(OSError):
                if match[1] == _machine():
                    dead = not _alive(int(match[2]))
                elif entry.is_dir(follow_symlinks=False):
                    dead = False  # its time says nothing of the files in it
                else:
                    dead = time.time() - entry.stat(follow_symlinks=False).st_mtime > _FOREIGN_AGE
                if dead and entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                elif dead:
                    Path(entry.path).unlink(missing_ok=True)


def temporary_name(target: Path) -> str:
    """Return a name for a file or folder that becomes ``target`` when it is complete."""
    # Names have at most 255 bytes.
    start = os.fsencode(target.stem)[:80].decode(errors="ignore")
    suffix = target.suffix if len(os.fsencode(target.suffix)) <= 64 else ""
    return f".{start}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.partial{suffix}"


@functools.cache
def _machine() -> str:
    """Eight digits for the machine, or the container, in which a process number is valid."""
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - it is no path
    return hashlib.blake2b(f"{platform.node()} {space}".encode(errors="surrogateescape"), digest_size=4).hexdigest()


def _alive(process: int) -> bool:
    if os.name == "nt":
        import ctypes

        kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
        handle = kernel.OpenProcess(0x1000, False, process)  # PROCESS_QUERY_LIMITED_INFORMATION
        if not handle:
            return bool(kernel.GetLastError() == 5)  # it is alive and belongs to another user
        code = ctypes.c_ulong()
        known = kernel.GetExitCodeProcess(handle, ctypes.byref(code))
        kernel.CloseHandle(handle)
        return not known or code.value == 259  # STILL_ACTIVE
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _cause(error: Exception, temporary: Path) -> str | None:
    """Return why a write failed, in a few words; None for an error unrelated to writing.

    torch and OpenVINO do not report the system's error ("unexpected pos 576 vs 534"), so it is determined again.
    """
    if isinstance(error, NextDETRError) or out_of_memory(error):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    if not isinstance(error, OSError | RuntimeError) and type(error).__name__ != "SafetensorError":
        return None
    try:
        with temporary.open("ab") as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as again:
        return os.strerror(again.errno) if again.errno else str(again)
    return " ".join(str(error).split()) or type(error).__name__


def _obstacle(path: Path) -> str | None:
    """Return what is in the way of a new folder."""
    for part in (*reversed(path.parents), path):
        if part.is_symlink() and not part.exists():
            return f"{part} is a link to {os.readlink(part)}, which does not exist"  # noqa: PTH115
        if part.exists() and not part.is_dir():
            return f"{part} is a file"
    return None


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)  # Windows only flushes files opened for writing
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_folder(path: Path) -> None:
    """Flush the new name; the rename is already done, so a file system that cannot flush it is no reason to fail."""
    if os.name == "nt":  # Windows has no folder handles
        return
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise WriteError(f"{path}: cannot be flushed to the disk ({error.strerror or error}).") from error


def is_local(source: str | Path) -> bool:
    """Whether a path given by a user exists on this disk."""
    try:
        return Path(source).exists()
    except (OSError, ValueError):  # an impossible file name
        return False
