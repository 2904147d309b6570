"""Limits on connections, where uvicorn has none: they can neither hang nor grow."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nextdetr.json_text import json_text
from nextdetr.serve.errors import ServeError

__all__ = ["PatientProtocol"]

HEAD_SECONDS = 10.0  # for a request's head to arrive
WRITE_SECONDS = 30.0  # for a client to read some of what it was sent
LEAST_READ = 1 << 16  # bytes that it reads meanwhile, or all that are left
MOST_HEAD_BYTES = 1 << 16


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which also closes connections that send no request or do not read the answer."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._head_bytes, self._upgraded = 0, False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for the first request."""
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers."""
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count bytes until the request head is complete."""
        super().data_received(data)
        if self._upgraded or self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
            return
        self._head_bytes += len(data)
        if self._head_bytes > MOST_HEAD_BYTES:
            self._refuse(ServeError(431, "the address and headers of the request are larger than 64 KiB."))
        elif self._head_timer is None:
            self._wait_for_head()

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP in the form of all other errors."""
        self._refuse(ServeError(400, "the request is not valid HTTP."))

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over to the WebSocket protocol."""
        self._stop_waiting()
        self._upgraded = True
        super().handle_websocket_upgrade()

    def pause_writing(self) -> None:
        """Start waiting for the client to read."""
        super().pause_writing()
        if self._write_timer is None:
            self._wait_for_reader()

    def resume_writing(self) -> None:
        """The client reads again."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def _refuse(self, error: ServeError) -> None:
        body = json_text(error.to_json()).encode()
        head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type: application/json\r\n"
        self.transport.write(f"{head}connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()

    def _wait_for_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(WRITE_SECONDS, self._check_reader, left)

    def _check_reader(self, before: int) -> None:
        """Close the connection of a client that has read next to nothing; a large picture takes a slow one its time."""
        if before - self.transport.get_write_buffer_size() >= LEAST_READ:
            self._wait_for_reader()
        else:
            self.transport.abort()

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self.transport.close()
