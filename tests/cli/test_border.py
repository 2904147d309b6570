"""Every command ends with one sentence and an exit code, or with --json one object."""

from __future__ import annotations

import builtins
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nextdetr.cli.main import run
from nextdetr.cli.output import print_json, say
from nextdetr.data.signals import STOPPING
from nextdetr.errors import DataError, TrainingError
from nextdetr.json_text import json_text


class Panic(BaseException):
    """Like a panic in safetensors' Rust code: not an Exception."""


class MuteError(Exception):
    def __str__(self):
        raise RuntimeError("no text")


CPU_MEMORY = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 9 bytes."
)
ENDS = [
    (DataError("a.png is empty."), "DataError", "a.png is empty.", 2),
    (TrainingError("the loss is NaN."), "TrainingError", "the loss is NaN.", 1),
    (ZeroDivisionError("division by zero"), "ZeroDivisionError", "ZeroDivisionError: division by zero. --verbose", 1),
    (KeyError("rows\n of two lines"), "KeyError", "two lines", 1),
    (Panic("index out of bounds"), "Panic", "index out of bounds", 1),
    (MuteError(), "MuteError", "unexpected MuteError. --verbose", 1),
    (KeyboardInterrupt(), "Interrupted", "interrupted.", 130),
    (MemoryError(), "MemoryError", "out of memory", 1),
    (CPU_MEMORY, "MemoryError", "out of memory", 1),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "MemoryError", "out of memory", 1),
    (RuntimeError("std::bad_alloc"), "MemoryError", "out of memory", 1),
    (OSError(12, "Cannot allocate memory"), "MemoryError", "out of memory", 1),
    (OSError(28, "No space left on device", "a.json"), "OSError", "a.json: No space left on device.", 1),
    (OSError("libGL.so: cannot open"), "OSError", "libGL.so", 1),
    (BrokenPipeError(32, "Broken pipe"), "OSError", "Broken pipe.", 1),  # of a worker: standard output is still read
    (SystemExit(), None, "", 0),
    (SystemExit(7), "SystemExit", "7", 7),
    (SystemExit("told to go"), "SystemExit", "told to go", 1),
]  # fmt: skip


@pytest.fixture
def ending(monkeypatch):
    """Let ``nextdetr weights inspect FILE`` end with an exception."""

    def end(error):
        def raises(*_):
            raise error

        monkeypatch.setattr("nextdetr.weights.inspect.inspect_file", raises)

    return end


@pytest.mark.parametrize(("error", "kind", "message", "code"), ENDS, ids=lambda value: str(type(value).__name__))
def test_an_exception_of_any_kind_is_a_sentence_and_a_code(error, kind, message, code, ending, capsys):
    ending(error)
    assert run(["weights", "inspect", "x.pt"]) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert "Traceback" not in told.err
    assert message in told.err
    assert told.err.count("\n") == (0 if kind is None else 1)
    assert run(["weights", "inspect", "x.pt", "--json"]) == code
    told = capsys.readouterr()
    if kind is not None:
        assert json.loads(told.out)["error"]["type"] == kind
        assert message in json.loads(told.out)["error"]["message"]


def test_verbose_shows_where(ending, capsys):
    ending(ZeroDivisionError("division by zero"))
    assert run(["weights", "inspect", "x.pt", "--verbose", "--json"]) == 1
    told = capsys.readouterr()
    assert "Traceback" in told.err
    assert "in raises" in told.err
    assert json.loads(told.out) == {
        "error": {"type": "ZeroDivisionError", "message": "unexpected ZeroDivisionError: division by zero."}
    }


def test_an_interruption_while_the_libraries_load_is_told(monkeypatch, capsys):
    real = builtins.__import__

    def stop(name, *rest):
        if name == "nextdetr.cli.commands":
            raise KeyboardInterrupt
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", stop)
    assert run(["--version", "--json"]) == 130
    monkeypatch.undo()
    assert json.loads(capsys.readouterr().out)["error"] == {"type": "Interrupted", "message": "interrupted."}


def test_the_guard_stands_before_any_library_is_loaded():
    code = "import sys, nextdetr.cli.main; assert not {'cyclopts', 'pydantic', 'rich', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_and_version_under_json(capsys):
    assert run(["--version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"].startswith("0.")
    assert run(["predict", "--help", "--json"]) == 0
    assert "--confidence" in json.loads(capsys.readouterr().out)["text"]


COMMAND = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, as CI may be, begins with it ignored
for kind in (signal.SIGTERM, getattr(signal, 'SIGHUP', signal.SIGTERM)): signal.signal(kind, signal.SIG_DFL)  # nohup
from nextdetr.cli import main
from nextdetr.cli.output import print_json, say
def work(tokens):
    {work}
main._run = work
main.main({tokens})
"""


def started(work, *tokens, **settings):
    code = COMMAND.format(work=work, tokens=list(tokens))
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings
    )  # fmt: skip


def test_libraries_print_nothing_into_the_result():
    work = "print('from Python'); os.write(1, b'from C\\n'); print_json({'a': float('nan')}); print('after'); return 3"
    process = started(work, "--json")
    out, err = process.communicate()
    assert json.loads(out) == {"a": None}
    assert all(text in err for text in ("from Python", "from C", "after"))
    assert process.returncode == 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
@pytest.mark.parametrize("kind", STOPPING)
@pytest.mark.parametrize("turned", [False, True])
def test_a_request_to_stop_is_an_interruption(kind, turned):
    work = "sys.stderr.write('ready\\n'); sys.stderr.flush(); time.sleep(30); return 0"
    if turned:  # as an extension in C does whose import is interrupted
        work = "sys.stderr.write('ready\\n'); sys.stderr.flush()\n    try: time.sleep(30)\n" \
               "    except BaseException: raise ImportError('half loaded') from None"  # fmt: skip
    process = started(work, "--json")
    assert process.stderr.readline() == "ready\n"
    process.send_signal(kind)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert json.loads(out)["error"]["message"] == "interrupted."
    assert err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of another kind")
@pytest.mark.parametrize("work", ["say('x' * 100000); say('y'); return 0", "say('x'); return 0"])
def test_a_reader_that_has_seen_enough_is_no_error(work):
    process = started(work)
    process.stdout.close()
    assert process.wait(timeout=10) == 1
    assert process.stderr.read() == ""


@pytest.mark.skipif(sys.platform == "win32", reason="no shell of that kind")
@pytest.mark.parametrize("options", ["", "--json"])
@pytest.mark.parametrize("closed", [">&-", "<&- >&-"])
def test_a_stream_that_is_closed_from_the_start_is_no_error(options, closed):
    command = f"{shlex.quote(sys.executable)} -m nextdetr weights list {options} {closed}"
    done = subprocess.run(["sh", "-c", command], check=False, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("tokens", [[], ["--json"]])
def test_a_full_disk_behind_standard_output_is_a_sentence(tokens):
    work = "print_json({'a': 1}) if '--json' in tokens else say('x'); return 0"
    code = COMMAND.format(work=work, tokens=tokens)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], check=False, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "nextdetr: No space left on device.\n"


def stream_of(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")


def printed(stream):
    stream.flush()
    return stream.buffer.getvalue().decode(stream.encoding)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_letters_that_a_terminal_lacks_are_replaced(encoding, ending, monkeypatch):
    out, err = stream_of(encoding), stream_of(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    ending(DataError("汽车.png is empty."))
    assert run(["weights", "inspect", "汽车.png"]) == 2
    say("汽车 Schlüssel")
    assert printed(out) == {"cp1252": "?? Schlüssel\n", "ascii": "?? Schl?ssel\n", "utf-8": "汽车 Schlüssel\n"}[encoding]
    assert printed(err) == f"nextdetr: {'汽车' if encoding == 'utf-8' else '??'}.png is empty.\n"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
@pytest.mark.parametrize("name", ["汽车", "m\udcfcnze.jpg"])
def test_json_is_json_on_any_stream(encoding, name, monkeypatch):
    out = stream_of(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    print_json({"path": name})
    assert json.loads(printed(out)) == {"path": name}


def test_json_text_knows_no_nan_and_takes_numbers_of_numpy():
    value = {"a": [float("nan"), 1.5, (float("inf"),)], "b": np.float32("nan"), "c": np.int64(3), "d": Path("x"), "e": "ä"}
    assert json.loads(json_text(value)) == {"a": [None, 1.5, [None]], "b": None, "c": 3, "d": "x", "e": "ä"}
    assert "ä" in json_text(value)
    assert json_text({"a": 0.1}) == '{"a": 0.1}'


def test_help_is_printed_where_letters_are_missing():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "nextdetr", "predict", "--help"]
    done = subprocess.run(command, check=True, capture_output=True, env=environment)
    assert b"--confidence" in done.stdout
