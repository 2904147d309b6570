"""Errors for users.

Every message is the whole sentence printed by the command line: what is wrong, where (file, line, row or image id), and
what to do about it.
"""

from __future__ import annotations

import errno
import unicodedata

from nextdetr.installation import install_command

__all__ = [
    "ConfigError",
    "DataError",
    "ExportError",
    "FailedElsewhere",
    "Interrupted",
    "MeasurementError",
    "ModelFileError",
    "NextDETRError",
    "TrainingError",
    "WeightsError",
    "WriteError",
    "missing_extra",
    "out_of_memory",
]

# Messages of RuntimeErrors in torch, ONNX Runtime and OpenVINO.
_NO_MEMORY = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "failed to allocate memory",
    "bad_alloc", "status_alloc_failed", "can't start new thread",
)  # fmt: skip


_NOT_SHOWN = ("Cc", "Zl", "Zp")  # control characters; line and paragraph separators


class NextDETRError(Exception):
    """Base of all errors that the user can act on; ``exit_code`` is the exit code of the command line.

    As text it is one line: names from files can hold line breaks, and control characters that a terminal would obey.
    """

    exit_code: int = 2

    def __str__(self) -> str:
        line = " ".join(super().__str__().split("\n"))
        return "".join(repr(sign)[1:-1] if unicodedata.category(sign) in _NOT_SHOWN else sign for sign in line)


class ConfigError(NextDETRError):
    """A setting is unknown, of the wrong type, or contradicts another one."""


class ModelFileError(NextDETRError):
    """A model YAML cannot be built; the message names file, row and cause."""


class DataError(NextDETRError):
    """A data set or an image cannot be used; the message names file and line or id."""


class WeightsError(NextDETRError):
    """A weights file is damaged, hostile, or does not fit the model."""


class ExportError(NextDETRError):
    """A model cannot be exported, or the export differs from its source."""


class TrainingError(NextDETRError):
    """Training cannot continue (for example, a non-finite loss); the input was usable, but the run failed."""

    exit_code = 1


class FailedElsewhere(TrainingError):  # noqa: N818 - the error is another process's
    """This process of a run ends because another one failed; that one says why."""


class MeasurementError(NextDETRError):
    """A measurement ended without a result, as its process was killed: mostly, as the memory was used up."""

    exit_code = 1


class WriteError(NextDETRError):
    """A file or a folder cannot be written: the disk is full, a limit is reached, or writing is not allowed there."""

    exit_code = 1


def missing_extra(package: str, extra: str, purpose: str, *, instead: str = "") -> ConfigError:
    """Return the error to raise when an optional package is not installed.

    Args:
        package: name of the package as pip knows it.
        extra: the NextDETR extra that includes it; empty for dependencies of NextDETR itself.
        purpose: what the user wanted, as a noun phrase ("the quickstart's photographs").
        instead: an alternative to installing it ("or …").
    """
    rest = f", {instead}" if instead else ""
    return ConfigError(f"{purpose} needs the package {package}, which is not installed: {install_command(extra)}{rest}.")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: in Python, the system, or a library, including GPU memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


class Interrupted(NextDETRError):  # noqa: N818 - being asked to stop is no error
    """The user, or the system, asked the run to stop; everything needed to resume was written."""

    exit_code = 130
