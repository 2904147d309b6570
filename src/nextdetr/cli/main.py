"""The ``nextdetr`` command."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter, ValidationError
from pydantic import ValidationError as SettingsError

from nextdetr import __version__
from nextdetr.cli import analyze, benchmark, embed, export, info, predict, pretrain, probe, quickstart, train, val, weights
from nextdetr.cli.common import print_json
from nextdetr.config import explain
from nextdetr.errors import NextDETRError

__all__ = ["app", "main"]

HELP = """Train a real-time detector on your own photographs, score it, and draw what it finds.

New here? Start with `nextdetr quickstart`, which needs no data, then `nextdetr train --data FOLDER`.
"""

app = App(
    name="nextdetr",
    help=HELP,
    version=__version__,
    version_flags=["--version"],
    help_format="markdown",
    default_parameter=Parameter(consume_multiple=True),  # --save images json yolo
)
app.command(quickstart.quickstart, name="quickstart")
app.command(pretrain.pretrain, name="pretrain")
app.command(train.train, name="train")
app.command(val.val, name="val")
app.command(predict.predict, name="predict")
app.command(export.export, name="export")
app.command(benchmark.benchmark, name="benchmark")
app.command(info.info, name="info")
app.command(embed.embed, name="embed")
app.command(probe.probe, name="probe")
app.command(weights.app)
app.command(analyze.app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage or input, 3 a gate not met, 130 interrupted."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(tokens))


class _Warnings(logging.Handler):
    """Warnings of the library, such as an image that could not be read, in the style of the command's own lines."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"nextdetr: {record.getMessage()}\n")


def run(tokens: list[str]) -> int:
    """Run the command line and return its exit code."""
    logger, warnings = logging.getLogger("nextdetr"), _Warnings(logging.WARNING)
    logger.addHandler(warnings)
    try:
        return _run(tokens)
    finally:
        logger.removeHandler(warnings)


def _run(tokens: list[str]) -> int:
    try:
        result = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _fail(tokens, "ConfigError", _usage_message(error), 2)
    except NextDETRError as error:
        return _fail(tokens, type(error).__name__, str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(tokens, "Interrupted", "interrupted.", 130)
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except MemoryError:
        return _fail(tokens, "MemoryError", "out of memory; lower --batch-size or --image-size.", 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(tokens, "OSError", f"{where}{error.strerror or error}.", 1)
    return result if isinstance(result, int) else 0  # a command whose check was not met says so by its number


def _usage_message(error: CycloptsError) -> str:
    cause = error.__cause__
    if isinstance(error, ValidationError) and isinstance(cause, SettingsError):
        return explain(cause)
    return f"{' '.join(str(error).split())} See nextdetr --help."


def _fail(tokens: list[str], kind: str, message: str, code: int) -> int:
    if "--verbose" in tokens:
        traceback.print_exc()
    if "--json" in tokens:
        print_json({"error": {"type": kind, "message": message}})
    else:
        sys.stderr.write(f"nextdetr: {message}\n")
    return code
