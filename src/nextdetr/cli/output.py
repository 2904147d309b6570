"""Standard output: the result, and nothing but the result; never an error because of a letter or a reader that has gone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from nextdetr.cli.failures import OutputClosed
from nextdetr.json_text import json_text

__all__ = ["drop_output", "fill_streams", "only_the_result", "print_json", "replace_letters", "say"]

_result: list[TextIO] = []  # where the JSON result goes, while ``only_the_result`` keeps the way to it clear


def say(text: str = "") -> None:
    """Print a line of the result on standard output."""
    _write(sys.stdout, text + "\n")


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on standard output; see :func:`nextdetr.json_text.json_text`."""
    stream = _result[-1] if _result else sys.stdout
    _write(stream, json_text(value, encoding=getattr(stream, "encoding", None) or "utf-8") + "\n")
    _flush(stream)


def fill_streams() -> None:
    """Let a standard stream that is closed from the start (``>&-``) lead nowhere; Python has None in its place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def replace_letters() -> None:
    """Let both streams print a question mark for a letter that a terminal or pipe does not have, and not fail."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):  # no stream of text of Python's own; closed
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


@contextmanager
def only_the_result() -> Iterator[None]:
    """Send whatever else is printed on standard output, by libraries too, to standard error; for ``--json``."""
    out = sys.stdout
    copy = _redirected(out)
    result = out if copy is None else os.fdopen(copy, "w", encoding=out.encoding, errors="replace")
    _result.append(result)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        _result.pop()
        sys.stdout = out
        if copy is not None:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
            os.dup2(copy, 1)
            with suppress(OSError, ValueError):
                result.close()


def _redirected(out: TextIO) -> int | None:
    """Let file descriptor 1 lead to standard error; return a copy of it as it was, or None if it is not ``out``'s."""
    try:
        if out.fileno() != 1:
            return None
        out.flush()
        copy = os.dup(1)
    except (OSError, ValueError, AttributeError):
        return None
    try:
        os.dup2(2, 1)
    except OSError:  # standard error is closed
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
    return copy


def drop_output() -> None:
    """Send what is left in the buffer of standard output nowhere: Python would fail to write it once more at its exit."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
    except BrokenPipeError as error:
        raise OutputClosed from error


def _flush(stream: TextIO) -> None:
    try:
        stream.flush()
    except BrokenPipeError as error:
        raise OutputClosed from error
