"""Middleware around every request: access control, metrics, and a response whatever happens."""

from __future__ import annotations

import logging
import time
import traceback
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nextdetr.serve.answers import error_response
from nextdetr.serve.errors import ServeError, as_serve_error
from nextdetr.serve.limits import BODY_READ, refusal
from nextdetr.serve.metrics import Metrics
from nextdetr.serve.security import Access

__all__ = ["Guard"]

logger = logging.getLogger(__name__)

HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-store"}


class Guard:
    """ASGI middleware that checks access, counts requests, and answers unexpected errors.

    Args:
        app: the wrapped application.
        access: access rules.
        metrics: counts requests.
        max_bytes: maximum size of a discarded body.
    """

    def __init__(self, app: ASGIApp, *, access: Access, metrics: Metrics, max_bytes: int) -> None:
        self._app, self._access, self._metrics, self._max_bytes = app, access, metrics, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request or a WebSocket; lifespan events pass through."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, status = time.monotonic(), 0
        if scope["method"] == "HEAD":  # answered as GET: the server that sends the answer leaves its body out
            scope = {**scope, "method": "GET"}

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        async def watched() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                scope[BODY_READ] = True
            return message

        try:
            try:
                self._access.check(scope["path"], Headers(scope=scope))
            except ServeError as error:
                answer = await refusal(Request(scope, watched), error, self._max_bytes)
                await error_response(answer)(scope, receive, counted)
            else:
                await self._app(scope, watched, counted)
        except ClientDisconnect:  # nobody left to answer
            pass
        except Exception as error:
            _log(error)
            if status:  # it failed in the middle of a response, which the server ends by closing the connection
                raise
            await error_response(as_serve_error(error))(scope, receive, counted)
        finally:
            route = _route(scope)
            self._metrics.requests.labels(route, str(status or 499)).inc()  # 499: the client disconnected first
            self._metrics.request_seconds.labels(route).observe(time.monotonic() - started)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A browser cannot send a key with the handshake: the stream asks for it if there is none."""
        try:
            self._access.check_place(Headers(scope=scope))
        except ServeError as error:
            await receive()
            await _refuse(error, send)
            return
        await self._app(scope, receive, send)


async def _refuse(error: ServeError, send: Send) -> None:
    response = error_response(error)
    await send({"type": "websocket.http.response.start", "status": error.status, "headers": response.raw_headers})
    await send({"type": "websocket.http.response.body", "body": response.body})


def _route(scope: Scope) -> str:
    """The declared route, so that made-up URLs do not become labels."""
    route: Any = scope.get("route")
    return getattr(route, "path", None) or "other"


def _log(error: Exception) -> None:
    logger.error("a request failed: %s: %s", type(error).__name__, " ".join(str(error).split()))
    logger.debug("%s", "".join(traceback.format_exception(error)))
