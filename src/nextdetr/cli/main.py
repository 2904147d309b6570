"""The ``nextdetr`` command: whatever happens inside, an exit code, one sentence, and with ``--json`` one object leave it.

Only the standard library is imported outside the guard, so that Ctrl-C while the libraries load is reported as well.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from types import FrameType

from nextdetr.cli.failures import OutputClosed, describe
from nextdetr.cli.output import drop_output, fill_streams, only_the_result, print_json, replace_letters, say
from nextdetr.data.signals import STOPPING
from nextdetr.errors import NextDETRError

__all__ = ["main", "run"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage or input, 3 a gate not met, 130 interrupted."""
    fill_streams()
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    _end_like_an_interruption()
    sys.exit(run(tokens))


def run(tokens: list[str]) -> int:
    """Run the command line and return its exit code."""
    replace_letters()
    logger, warnings = logging.getLogger("nextdetr"), _Warnings(logging.WARNING)
    logger.addHandler(warnings)
    try:
        if "--json" not in tokens:
            return _guarded(tokens)
        with only_the_result():
            return _guarded(tokens)
    except KeyboardInterrupt:  # a second one, while the first is being told
        return 130
    finally:
        logger.removeHandler(warnings)


class _Warnings(logging.Handler):
    """Warnings of the library, such as an image that could not be read, in the style of the command's own lines."""

    def emit(self, record: logging.LogRecord) -> None:
        _tell(f"nextdetr: {record.getMessage()}\n")


_asked_to_stop = threading.Event()  # a library may turn the interruption of its import into an error of its own


def _end_like_an_interruption() -> None:
    """Let a request to terminate (``timeout``, Slurm, systemd), or a terminal that closes, end a command as Ctrl-C does.

    What a command writes when it is interrupted is written then, too.

    A process forked from this one, such as a worker that loads images, is ended by it as ever.
    """
    own = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == own:
            _asked_to_stop.set()
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    if threading.current_thread() is threading.main_thread():
        for kind in STOPPING:
            if signal.getsignal(kind) is not signal.SIG_IGN:  # ignored: nohup, or a shell's background job
                signal.signal(kind, handle)


def _guarded(tokens: list[str]) -> int:
    try:
        code = _run(tokens)
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - the border: nothing gets past it as a traceback
        return _fail(tokens, error)
    return code


def _run(tokens: list[str]) -> int:
    if all(token in ("--json", "--verbose") for token in tokens):
        from nextdetr.cli.welcome import welcome

        print_json({"text": welcome()}) if "--json" in tokens else say(welcome())
        return 0
    from nextdetr.cli.commands import app
    from nextdetr.cli.help import HELP_ALL, showing_all

    console, shown = None, io.StringIO()
    if "--json" in tokens:
        from rich.console import Console

        console = Console(file=shown, width=120)  # of help and version
    showing_all.set(HELP_ALL in tokens)
    if not any(token in app.help_flags for token in tokens):
        from nextdetr.cli.tokens import prepare

        tokens = prepare(tokens)
    result = app(
        tokens,
        console=console,
        exit_on_error=False,
        print_error=False,
        result_action="return_value",
    )
    if shown.getvalue():
        print_json({"text": shown.getvalue()})
    return result if isinstance(result, int) else 0  # a command whose check was not met says so by its number


def _fail(tokens: list[str], error: BaseException) -> int:
    """Say what a command ended with, and return its exit code."""
    if _asked_to_stop.is_set() and not isinstance(error, NextDETRError):
        error = KeyboardInterrupt()
    elif _is_of_a_closed_pipe(error):
        error = OutputClosed()
    verbose = "--verbose" in tokens
    failure = describe(error, verbose=verbose, command=next((token for token in tokens if token[:1] != "-"), ""))
    if isinstance(error, OutputClosed):
        drop_output()
        return failure.code
    try:
        if verbose:
            _tell("".join(traceback.format_exception(error)))
        if failure.message and "--json" in tokens:
            print_json({"error": {"type": failure.kind, "message": failure.message}})
        elif failure.message:
            _tell(f"nextdetr: {failure.message}\n")
        sys.stdout.flush()
    except (OSError, ValueError, OutputClosed):  # standard output is full or closed; the exit code still says it
        if "--json" in tokens:
            _tell(f"nextdetr: {failure.message}\n")
        drop_output()
    return failure.code


def _is_of_a_closed_pipe(error: BaseException) -> bool:
    """Whether nobody reads standard output any more, and not some other pipe; rich turns that into an exit."""
    if isinstance(error, SystemExit):
        return isinstance(error.__context__, BrokenPipeError)
    if not isinstance(error, BrokenPipeError):
        return False
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        return True
    return False


def _tell(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # nobody listens
        pass
