"""``nextdetr.sha256``: the files that an export wrote into its folder, by which the next one knows them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from nextdetr.errors import WriteError
from nextdetr.files import write_text_atomic

__all__ = ["SUMS", "replace_sums"]

#: In the format of ``sha256sum``, so that ``sha256sum -c nextdetr.sha256`` checks a copy of the folder.
SUMS = "nextdetr.sha256"

_FIRST = "# Files of nextdetr export --format web"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def replace_sums(folder: Path, written: Iterable[str]) -> None:
    """List the files of this export, and remove those that an earlier one wrote and this one did not.

    A file is removed only if the earlier list has it with the checksum that it still has: a file of the user's, or one that
    was changed since, stays.

    Args:
        folder: the folder.
        written: the files of this export, all of them, by their paths in the folder.

    Raises:
        WriteError: an earlier file cannot be removed, or the list cannot be written.
    """
    names = sorted(written)
    kept = {name.casefold() for name in names}  # some file systems do not distinguish case
    for name, checksum in _earlier(folder).items():
        path = folder / name
        is_inside = path.resolve().is_relative_to(folder.resolve())
        if name.casefold() in kept or not is_inside or not path.is_file() or _sum_of(path) != checksum:
            continue
        try:
            path.unlink()
        except OSError as error:
            raise WriteError(
                f"{path}: cannot be removed ({error.strerror or error}); it is of an earlier export."
            ) from error
    lines = [_FIRST, *(f"{_sum_of(folder / name)}  {name}" for name in names)]
    write_text_atomic(folder / SUMS, "\n".join(lines) + "\n")


def _earlier(folder: Path) -> dict[str, str]:
    """Return the checksums of the earlier export's list, by path; empty without a list of an export."""
    try:
        first, *lines = (folder / SUMS).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):
        return {}
    matches = [_LINE.fullmatch(line) for line in lines if first == _FIRST]
    return {match[2]: match[1] for match in matches if match is not None}


def _sum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
