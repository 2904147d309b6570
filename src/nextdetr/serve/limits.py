"""Read a request's body as it arrives, within limits on size and time.

A request refused before its body was read is still read to its end and discarded, within the same limits, since a client
that is sending sees no response until it is done; one that waits for ``100 Continue`` is answered immediately.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

from starlette.requests import ClientDisconnect, Request

from nextdetr.serve.errors import ServeError, as_serve_error

__all__ = ["BODY_READ", "Budget", "body_chunks", "refusal"]

DRAIN_SECONDS = 5.0
BODY_READ = "nextdetr.body_read"  # set in the scope of a request whose body was read completely


class Budget:
    """Memory budget of all bodies together.

    Args:
        limit: maximum bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._used = limit, 0
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """Bytes in use."""
        return self._used

    @contextmanager
    def share(self) -> Iterator[Share]:
        """Yield a request's share, which is released at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self._add(-share.used)

    def _add(self, count: int) -> None:
        with self._lock:
            if count > 0 and self._used + count > self._limit:
                raise ServeError(
                    503, "the server is busy: too many large requests are on their way. Try again in 1 s.",
                    headers={"Retry-After": "1"},
                )  # fmt: skip
            self._used += count


class Share:
    """A request's share of the budget.

    Attributes:
        used: bytes taken so far.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget, self.used = budget, 0

    def take(self, count: int) -> None:
        """Reserve more bytes.

        Raises:
            ServeError: none are left (503).
        """
        self._budget._add(count)
        self.used += count


async def body_chunks(request: Request, *, most: int, deadline: float, share: Share) -> AsyncIterator[bytes]:
    """Yield a body piece by piece.

    Args:
        request: request whose body has not been read.
        most: maximum size in bytes.
        deadline: value of ``time.monotonic`` by which it must have arrived.
        share: share of the memory for bodies.

    Raises:
        ServeError: it is too large (413), too slow (408), or compressed (415).
        ClientDisconnect: the client disconnected.
    """
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding not in ("", "identity"):
        raise ServeError(415, "compressed requests are not taken: send images as they are, without Content-Encoding.")
    stated = request.headers.get("content-length", "")
    too_large = ServeError(413, f"the request is too large: the limit is {most:,} bytes.")
    if stated.isdecimal() and int(stated) > most:
        raise too_large
    stream, received = request.stream(), 0
    while True:
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise ServeError(408, "the request took too long to arrive.", headers={"Connection": "close"}) from None
        received += len(chunk)
        if received > most:
            raise too_large
        share.take(len(chunk))
        yield chunk


async def refusal(request: Request, error: Exception, most: int) -> ServeError:
    """Return the response to a refused request, after reading and discarding its body.

    Args:
        request: the refused request.
        error: the reason.
        most: bytes to discard; a longer body, or one that takes more than a few seconds, ends the connection.
    """
    answer = as_serve_error(error)
    if answer.status == 408 or not await _drained(request, most):  # do not wait for a slow client again
        answer.headers["Connection"] = "close"
    return answer


async def _drained(request: Request, most: int) -> bool:
    """Read the rest of a body; return whether it ended."""
    if request.scope.get(BODY_READ):
        return True
    if request.headers.get("expect", "").lower() == "100-continue":
        return False
    received = 0
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(DRAIN_SECONDS):
            while received <= most:
                message = await request.receive()
                received += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return True
    return False
