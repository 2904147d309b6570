"""What a command ended with, as one sentence and an exit code.

Nothing is imported here that the command has not imported by then: an interruption while Python loads the libraries has to
get through, too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from nextdetr.errors import NextDETRError, out_of_memory
from nextdetr.extras import explained

__all__ = ["Failure", "OutputClosed", "describe"]

OUT_OF_MEMORY = "out of memory: a smaller --image-size or --batch-size needs less, and so do fewer --workers."


class OutputClosed(Exception):  # noqa: N818 - the reader has seen enough, which is no error
    """Nobody reads the standard output any more (``nextdetr … | head``)."""


@dataclass(frozen=True, slots=True)
class Failure:
    """How a command failed.

    Attributes:
        kind: name of the error, as the JSON result gives it.
        message: the sentence; empty where there is nothing to say.
        code: exit code.
    """

    kind: str
    message: str
    code: int


def describe(error: BaseException, *, verbose: bool = False, command: str = "") -> Failure:
    """Return the failure that an exception means, whatever it is.

    Args:
        error: what the command ended with.
        verbose: whether the traceback is shown anyway, so that the sentence need not say how to get it.
        command: its name, where it is known.
    """
    error = explained(error, f"nextdetr {command}".strip()) or error
    if isinstance(error, NextDETRError):
        return Failure(type(error).__name__, _one_line(error), error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return Failure("Interrupted", "interrupted.", 130)
    if isinstance(error, OutputClosed):
        return Failure("OutputClosed", "", 1)
    if isinstance(error, SystemExit):
        return _exit(error)
    usage = _usage(error)
    if usage is not None:
        return Failure("ConfigError", usage, 2)
    if out_of_memory(error):
        return Failure("MemoryError", OUT_OF_MEMORY, 1)
    if isinstance(error, OSError) and error.strerror:
        where = f"{_shown(error.filename)}: " if error.filename else ""
        return Failure("OSError", f"{where}{error.strerror}.", 1)
    hint = "" if verbose else " --verbose shows where."
    reason = _one_line(error).rstrip(". ")
    return Failure(
        type(error).__name__, f"unexpected {type(error).__name__}{': ' if reason else ''}{reason}.{hint}", 1
    )  # fmt: skip


def _exit(error: SystemExit) -> Failure:
    if error.code is None or isinstance(error.code, int):
        code = error.code or 0
        return Failure("SystemExit", f"ended with exit code {code}." if code else "", code)
    return Failure("SystemExit", str(error.code), 1)


def _usage(error: BaseException) -> str | None:
    """Return what is wrong with the command line; None where the error is another one."""
    if "cyclopts" not in sys.modules or "pydantic" not in sys.modules:
        return None
    from cyclopts import CycloptsError
    from pydantic import ValidationError

    from nextdetr.config import explain

    for found in (error, error.__cause__ if isinstance(error, CycloptsError) else None):
        if isinstance(found, ValidationError):
            return explain(found)
    if not isinstance(error, CycloptsError):
        return None
    command = " ".join(("nextdetr", *(error.command_chain or ())))
    return f"{_missing_name(error) or _unused(error) or _one_line(error)} See {command} --help."


def _missing_name(error: Exception) -> str:
    """Return a sentence for an argument that is given by its place, which the library would call by an option's name."""
    from cyclopts import MissingArgumentError

    if not isinstance(error, MissingArgumentError) or error.argument is None or not error.argument.field_info.is_positional:
        return ""
    if error.keyword is not None or any(token.keyword is not None for token in error.argument.tokens):
        return ""
    name = error.argument.name.lstrip("-").upper()
    return f"{name} is missing{': name it right after the command' if name == 'MODEL' else ''}."


def _unused(error: Exception) -> str:
    """Return a sentence for a word that is neither an option nor a value, as in ``nextdetr train photos``."""
    from cyclopts.exceptions import UnusedCliTokensError

    if not isinstance(error, UnusedCliTokensError) or not error.unused_tokens:
        return ""
    word = error.unused_tokens[0].strip()
    if word.lower() in ("true", "false"):
        return f"{word!r} is not expected here: a switch has no value, and is turned off with --no- before its name."
    takes_data = (error.command_chain or ("",))[0] in ("train", "val", "report", "compare", "calibrate")
    hint = f"did you mean --data {word}?" if takes_data else "it is neither an option nor the value of one."
    return f"{word!r} is not expected here: {hint}"


def _one_line(error: BaseException) -> str:
    try:
        return " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - an exception that cannot even say what it is
        return ""


def _shown(name: object) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)
