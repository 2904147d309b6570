"""A WebSocket for streams: encoded frames in, JSON out, in order; text messages change the settings.

A frame is read only after the previous one was answered, so a client that sends faster than the model computes is slowed
down by its own connection, and nothing accumulates here.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from typing import Any

from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from nextdetr.json_text import json_text
from nextdetr.serve.answers import predict_json
from nextdetr.serve.batcher import Job
from nextdetr.serve.errors import ServeError, as_serve_error
from nextdetr.serve.requests import Service
from nextdetr.serve.schemas import PredictQuery, explain_parameters
from nextdetr.serve.security import key_of

__all__ = ["MOST_STREAMS", "stream"]

MOST_STREAMS = 16
KEY_SECONDS, IDLE_SECONDS = 10.0, 60.0
_FAILED, _TRY_LATER = 1008, 1013  # close codes: policy violation, try again later


async def stream(socket: WebSocket, service: Service, name: str | None) -> None:
    """Serve one WebSocket until the client disconnects or is idle for a minute."""
    await socket.accept()
    try:
        await _let_in(socket, service)
        service.models.get(name)  # refuse at once
        if service.streams >= MOST_STREAMS:  # of those who may come in: strangers without a key take no place
            await _say(socket, ServeError(503, f"the server has {MOST_STREAMS} streams already: try again later."))
            await socket.close(_TRY_LATER)
            return
        service.streams += 1
        service.metrics.streams.inc()
        try:
            await _answer_frames(socket, service, name)
        finally:
            service.streams -= 1
            service.metrics.streams.dec()
    except ServeError as error:
        with suppress(WebSocketDisconnect, RuntimeError):
            await _say(socket, error)
            await socket.close(_FAILED)
    except (WebSocketDisconnect, RuntimeError):  # the latter: it closed during a send
        pass


async def _answer_frames(socket: WebSocket, service: Service, name: str | None) -> None:
    query, number = PredictQuery.model_validate({}), 0
    while True:
        message = await _next(socket, IDLE_SECONDS)
        try:
            content = message.get("bytes")
            if content is None:
                query = _settings(message.get("text") or "")
                continue
            number += 1
            await socket.send_text(json_text({"frame": number, **await _look(service, name, content, number, query)}))
        except ServeError as error:
            await _say(socket, error, number)
        except Exception as error:  # noqa: BLE001 - one frame must not end the stream
            await _say(socket, as_serve_error(error), number)


async def _let_in(socket: WebSocket, service: Service) -> None:
    """Ask for the key in a first message, as a browser cannot send it with the handshake."""
    if not service.access.keys:
        return
    key = key_of(socket.headers)
    if key is None:
        message = await _next(socket, KEY_SECONDS)
        try:
            value: Any = json.loads(message.get("text") or "{}")
        except (ValueError, RecursionError):
            value = None
        key = value.get("api_key") if isinstance(value, dict) else None
        key = key if isinstance(key, str) else None
    service.access.check_key(key)


async def _next(socket: WebSocket, seconds: float) -> dict[str, Any]:
    try:
        async with asyncio.timeout(seconds):
            message: dict[str, Any] = dict(await socket.receive())
    except TimeoutError:
        raise ServeError(408, f"nothing came for {seconds:.0f} seconds.") from None
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code") or 1000)
    return message


def _settings(text: str) -> PredictQuery:
    try:
        value = json.loads(text)
        if isinstance(value, dict):
            value.pop("api_key", None)  # sent by a client although none is needed here
        if isinstance(value, dict) and isinstance(value.get("classes"), str):
            value["classes"] = [value["classes"]]
        return PredictQuery.model_validate(value)
    except ValidationError as error:
        raise ServeError(422, explain_parameters(error.errors())) from error
    except (ValueError, RecursionError) as error:
        raise ServeError(422, 'a text message is JSON with settings, such as {"confidence": 0.5}.') from error


async def _look(service: Service, name: str | None, content: bytes, number: int, query: PredictQuery) -> dict[str, Any]:
    deadline = time.monotonic() + service.config.timeout
    job = Job(content, f"frame-{number}", service.settings(query), deadline)
    served, answers = await service.answer(name, [job], query.classes)
    return predict_json(served.name, answers)


async def _say(socket: WebSocket, error: ServeError, number: int | None = None) -> None:
    frame = {} if number is None else {"frame": number}
    await socket.send_text(json_text({**frame, **error.to_json()}))
