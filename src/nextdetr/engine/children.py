"""The worker processes of a run on several devices: how they start, report and end.

Each is a new interpreter that reads the settings as JSON from standard input and calls the same function. It reports
``ready`` before it waits for the others, and ``done`` or its error at the end. It exits when its standard input closes,
that is, when the first process releases it or dies.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, cast

from nextdetr import errors
from nextdetr.config import CommandConfig
from nextdetr.data.signals import ignore_held_signals, signals_held
from nextdetr.errors import ConfigError, FailedElsewhere, NextDETRError, TrainingError, out_of_memory

__all__ = ["Children", "Place", "environment_kept", "join", "own_place", "ready", "started", "started_elsewhere"]

START = "from nextdetr.engine.children import join; join()"
PATIENCE = 600.0  # seconds for the first process to notice that another one failed
NOTICE = 10.0  # seconds to wait for the report that explains a broken connection


@dataclass(frozen=True, slots=True)
class Place:
    """Position of a process in the run: its rank, and the port of the first process on this machine."""

    rank: int
    port: int


_own: list[Any] = []  # in a worker: its place, and the stream for its reports


def started_elsewhere() -> bool:
    """Whether torchrun, srun or similar started the processes, and say that they did."""
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    several = int(os.environ.get("SLURM_NTASKS") or 1) > 1
    return "LOCAL_RANK" in os.environ or (several and bool(SLURMEnvironment.detect()))


def own_place() -> Place | None:
    """Return the place of a worker process; None in the first process."""
    return _own[0] if _own else None


def ready() -> None:
    """Report to the first process that this one is about to wait for the others."""
    _report({"ready": True})


def _report(what: dict[str, Any]) -> None:
    stream = cast(IO[str], _own[1])
    stream.write(json.dumps(what) + "\n")
    stream.flush()


def join() -> None:
    """Run a worker process from start to end."""
    ignore_held_signals()
    task = json.loads(sys.stdin.readline())
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of libraries must not look like a report
    _own[:] = [Place(task["rank"], task["port"]), reports]
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    logging.basicConfig(format=f"nextdetr (process {task['rank']}): %(message)s", handlers=[handler])
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    try:
        module, name = task["run"].split(":")
        config = getattr(importlib.import_module("nextdetr.config"), task["kind"])
        getattr(importlib.import_module(module), name)(config.model_validate(task["settings"]), quiet=True)
        _leave_group()
        _report({"done": True})
        time.sleep(10**6)  # until the first process has read all reports
    except NextDETRError as error:
        _report({"type": type(error).__name__, "message": str(error)})
    except BaseException as error:  # noqa: BLE001 - told to the first process
        kind = "MemoryError" if out_of_memory(error) else type(error).__name__
        _report({"type": kind, "message": " ".join(str(error).split())})
    _end(1)


def _end_with_the_first() -> None:
    # Not sys.stdin: this thread would hold its lock during forks, and forked workers close it first.
    while os.read(0, 1):
        pass
    _end(0)


def _end(code: int) -> None:
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


def _leave_group() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class _Child:
    """A worker process, as seen by the first process."""

    def __init__(self, task: dict[str, Any], environment: dict[str, str]) -> None:
        self.rank = int(task["rank"])
        self.ready, self.ended, self.let_go = threading.Event(), threading.Event(), False
        self.report: dict[str, Any] = {}
        with signals_held():
            self.process = subprocess.Popen(
                [sys.executable, "-c", START], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                encoding="utf-8",
            )  # fmt: skip
        with contextlib.suppress(OSError):  # it has already ended; its report says why
            self._input.write(json.dumps(task, default=str) + "\n")
            self._input.flush()
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def _input(self) -> IO[str]:
        assert self.process.stdin is not None
        return self.process.stdin

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.report = json.loads(line)
            self.ready.set()
        self.process.wait()
        self.process.stdout.close()
        self.ended.set()
        self.ready.set()
        if self.let_go:
            return
        time.sleep(PATIENCE)
        if not self.let_go:  # the first process is stuck in an operation that this one has left
            with contextlib.suppress(OSError):
                os.write(2, f"nextdetr: {self.failure()}\n".encode())
            os._exit(1)

    def failure(self) -> NextDETRError:
        """Return the error it ended with, for the user."""
        message, kind = str(self.report.get("message", "")), str(self.report.get("type", ""))
        known = getattr(errors, kind, None)
        if isinstance(known, type) and issubclass(known, NextDETRError):
            return known(message)
        if kind:
            return TrainingError(f"process {self.rank} of the run failed ({kind}: {message}).")
        code = self.process.returncode
        if code is not None and code < 0:
            return TrainingError(
                f"process {self.rank} of the run was killed (signal {-code}), most often because memory ran out: use a "
                "smaller --batch-size, fewer --workers, or less --cache-gigabytes."
            )
        return TrainingError(f"process {self.rank} of the run ended with exit code {code}.")

    def end(self) -> None:
        """Release the process, and make sure that it ends."""
        self.let_go = True
        with contextlib.suppress(OSError):
            self._input.close()
        if not self.ended.wait(NOTICE):
            self.process.kill()
            self.ended.wait()


class Children:
    """The worker processes of a run, as seen by the first process."""

    def __init__(self, members: Sequence[_Child]) -> None:
        self._members = members

    def wait_until_ready(self) -> None:
        """Wait until all of them are ready.

        Raises:
            NextDETRError: one has failed.
        """
        for child in self._members:
            child.ready.wait()
        for child in self._members:
            if "ready" not in child.report:
                raise child.failure()

    def failure(self) -> NextDETRError | None:
        """Return the error of a failed worker, if any; called when this process has lost its connection."""
        deadline = time.monotonic() + NOTICE
        while time.monotonic() < deadline:
            ended = [child.failure() for child in self._members if child.ended.is_set()]
            own = [failure for failure in ended if not isinstance(failure, FailedElsewhere)]
            if own:
                return own[0]
            time.sleep(0.05)
        return None


@contextlib.contextmanager
def started(given: CommandConfig, run: Callable[..., Any], count: int, port: int) -> Iterator[Children]:
    """Start ``count`` - 1 processes that call ``run(given)``, and end them on exit.

    Raises:
        NextDETRError: one failed before the run began.
    """
    if not sys.executable:
        raise ConfigError("--devices: the path of the Python interpreter is unknown, so no further process can be started.")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    task = {
        "run": f"{run.__module__}:{run.__name__}", "kind": type(given).__name__, "port": port,
        "settings": {name: getattr(given, name) for name in given.model_fields_set},
    }  # fmt: skip
    members: list[_Child] = []
    try:
        members.extend(_Child({**task, "rank": rank}, environment) for rank in range(1, count))
        children = Children(members)
        children.wait_until_ready()
        yield children
    finally:
        for child in members:
            child.let_go = True
        for child in members:
            child.end()


@contextlib.contextmanager
def environment_kept(names: Sequence[str]) -> Iterator[None]:
    """Restore environment variables."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
