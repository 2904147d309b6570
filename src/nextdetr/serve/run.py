"""Run the server on a port until it is asked to stop, and finish the accepted requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from nextdetr.config import ServeConfig, build_config
from nextdetr.errors import ConfigError, missing_extra

try:
    import fastapi  # noqa: F401 - said here, in a sentence, what is missing
    import httptools  # noqa: F401
    import prometheus_client  # noqa: F401
    import python_multipart  # noqa: F401
    import uvicorn
    import websockets  # noqa: F401
except ImportError as error:
    raise missing_extra(error.name or "fastapi", "serve", "the server") from error

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["Running", "serve", "start"]

IDLE_SECONDS = 30  # keep-alive; a proxy's pool must use less
STOP_SECONDS = 5  # in addition to the time of a request, for connections to end
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(
    *models: str | Path,
    ready: Callable[[str, FastAPI], None] | None = None,
    opened: Any = None,
    again: Callable[[int | None], Any] | None = None,
    opens: Any = None,
    **settings: Any,
) -> None:
    """Serve models until the process is asked to stop (Ctrl-C, ``SIGTERM``), and finish the accepted requests.

    Args:
        models: files or shipped names; ``NAME=FILE`` for another name than the file's.
        ready: called with the URL and the application once connections are accepted.
        opened: the only model, if it is already open.
        again: opens that model again, with a number of CPU threads or None; for a reload. By default from its file.
        opens: opens a model; by default from its file.
        settings: the options of ``nextdetr serve`` as keywords (``host``, ``port``, ``batch``, ``queue``, …).

    Raises:
        ConfigError: a setting is wrong, the port is taken, a package is missing, or this thread runs an event loop.
        NextDETRError: a model cannot be opened.
    """
    config = build_config(ServeConfig, settings)
    if _has_loop():
        raise ConfigError(
            "serve waits until it is asked to stop, which a notebook or an asynchronous program cannot: "
            "nextdetr.serve.start(…) serves beside it, until its stop()."
        )
    if opened is not None:
        if config.weights is not None:
            raise ConfigError("weights: this detector has its own already; give others where it is opened, to Detector(…).")
        from nextdetr.serve.models import open_first

        opens = open_first(opened, again)
    with _listening(config) as listener:
        _server(models, config, listener, ready, opens).run(sockets=[listener])


def _has_loop() -> bool:
    """Whether this thread runs an event loop, as a cell of a notebook does."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def start(*models: str | Path, opens: Any = None, **settings: Any) -> Running:
    """Serve models from another thread of this process, for example in a notebook; arguments as for :func:`serve`.

    Example:
        >>> with start("model.onnx", port=0) as server:
        ...     print(server.url)
    """
    config = build_config(ServeConfig, {"port": 0, **settings})
    return Running(models, config, opens)


class Running:
    """A server in a thread of its own; a context manager that stops it at the end.

    Attributes:
        url: address of the server.
        app: its application.
    """

    def __init__(self, models: Sequence[str | Path], config: ServeConfig, opens: Any = None) -> None:
        begun: Future[tuple[str, FastAPI, uvicorn.Server]] = Future()

        def run() -> None:
            try:
                with _listening(config) as listener:
                    server = _server(models, config, listener, lambda url, app: begun.set_result((url, app, server)), opens)
                    server.run(sockets=[listener])
            except BaseException as error:  # noqa: BLE001 - raised in the thread that waits for it
                if not begun.done():
                    begun.set_exception(error)

        self._thread = threading.Thread(target=run, name="nextdetr-serve", daemon=True)
        self._thread.start()
        self.url, self.app, self._server = begun.result()

    def stop(self) -> None:
        """Accept no more requests, finish the accepted ones, and stop."""
        self._server.should_exit = True
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


class _Server(uvicorn.Server):
    """uvicorn's server, which exits successfully when asked to stop, and reports when it starts."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle signals while the server runs, and do not raise them again afterwards as uvicorn does."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {kind: signal.signal(kind, self.handle_exit) for kind in _SIGNALS}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop gracefully on the first signal, immediately on the second."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True


def _server(
    models: Sequence[str | Path],
    config: ServeConfig,
    listener: socket.socket,
    ready: Callable[[str, FastAPI], None] | None,
    opens: Any,
) -> _Server:
    from nextdetr.serve.app import build_app
    from nextdetr.serve.connections import PatientProtocol

    app = build_app(models, config, opens=opens)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    settings = uvicorn.Config(
        app, http=PatientProtocol, ws="websockets-sansio", ws_max_size=config.max_bytes, ws_per_message_deflate=False,
        log_config=None, access_log=False, proxy_headers=False, server_header=False, backlog=512,
        timeout_keep_alive=IDLE_SECONDS, timeout_graceful_shutdown=int(config.timeout) + STOP_SECONDS,
    )  # fmt: skip
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    return _Server(settings, lambda: None if ready is None else ready(url, app))


@contextlib.contextmanager
def _listening(config: ServeConfig) -> Generator[socket.socket, None, None]:
    """Bind the port before any model is opened, so that a used port is reported immediately.

    Raises:
        ConfigError: it is in use or not allowed, or the host is not an address of this computer.
    """
    from nextdetr.serve.security import access_of

    access_of(config)  # report a missing key first
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"--host {config.host}: there is no such address ({error.strerror or error}).") from error
    with contextlib.closing(listener):
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError as error:
            raise ConfigError(
                f"{config.host}:{config.port}: the server cannot listen there ({error.strerror or error}): choose another "
                "--port, or 0 for a free one."
            ) from error
        listener.setblocking(False)
        yield listener
