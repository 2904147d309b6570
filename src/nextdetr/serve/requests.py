"""Handling of requests: from the request to its jobs, and to the response."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from nextdetr.config_serve import ServeConfig
from nextdetr.serve.answers import json_response, predict_json, wanted_type
from nextdetr.serve.batcher import Answer, Job, cancel
from nextdetr.serve.corrections import Corrections, read_boxes
from nextdetr.serve.errors import ServeError
from nextdetr.serve.forms import Part, read_parts
from nextdetr.serve.limits import Budget, body_chunks, refusal
from nextdetr.serve.metrics import Metrics
from nextdetr.serve.models import Models, Served
from nextdetr.serve.schemas import PredictQuery
from nextdetr.serve.security import Access

__all__ = ["Service"]

_BODIES = 8  # number of largest bodies that fit into memory at once
_LEAST_BODIES = 2**28


class Service:
    """Shared state of the server's routes.

    Args:
        config: the server's settings.
        models: the served models.
        access: access rules.
        metrics: metrics to update.
        corrections: folder of corrected images; None if they are not accepted.

    Attributes:
        streams: number of open WebSockets.
        stopping: whether the server is shutting down.
    """

    def __init__(
        self, config: ServeConfig, models: Models, access: Access, metrics: Metrics, corrections: Corrections | None
    ) -> None:
        self.config, self.models, self.access, self.metrics = config, models, access, metrics
        self.corrections = corrections
        self.streams = 0
        self.stopping = False
        self._budget = Budget(max(_BODIES * config.max_bytes, _LEAST_BODIES))

    def settings(self, query: PredictQuery) -> dict[str, object]:
        """Return the settings of a job, with the server's defaults; classes are resolved later."""
        config = self.config
        return {
            "confidence": config.confidence if query.confidence is None else query.confidence,
            "max_detections": config.max_detections if query.max_detections is None else query.max_detections,
            "merge_iou": config.merge_iou if query.merge_iou is None else query.merge_iou,
        }

    async def predict(self, request: Request, name: str | None, query: PredictQuery) -> Response:
        """Handle a prediction.

        Raises:
            ServeError: the request cannot be answered.
        """
        deadline = time.monotonic() + self.config.timeout
        with self._budget.share() as share:
            try:
                kind = wanted_type(request.headers.get("accept", ""))
                served = self.models.get(name)
                served.engine.class_indices(query.classes)
                served.engine.check_confidence(self.settings(query)["confidence"])
                self.models.check_room(served)
                chunks = body_chunks(request, most=self.config.max_bytes, deadline=deadline, share=share)
                most = self.config.max_images
                parts = await read_parts(chunks, request.headers.get("content-type", ""), most=most)
            except ClientDisconnect:
                raise
            except Exception as error:  # answered after the body was read
                raise await refusal(request, error, self.config.max_bytes) from error
            draw = {"image/jpeg": "JPEG", "image/png": "PNG"}.get(kind)
            jobs = [
                Job(bytes(part.content), image_name, self.settings(query), deadline, draw)
                for part, image_name in _images(parts)
            ]
            if draw is not None and len(jobs) > 1:
                raise ServeError(406, "several images are answered as JSON only: send one, or Accept: application/json.")
            for part in parts:
                part.content = bytearray()
            served, answers = await self.answer(name, jobs, query.classes, request)
        if answers[0].picture is not None:
            picture = answers[0].picture
            return Response(picture, media_type="image/png" if picture[:4] == b"\x89PNG" else "image/jpeg")
        return json_response(predict_json(served.name, answers))

    async def answer(
        self, name: str | None, jobs: Sequence[Job], classes: Sequence[str] | None, request: Request | None = None
    ) -> tuple[Served, list[Answer]]:
        """Submit jobs to a model and wait for all results; they are dropped if the client disconnects.

        Raises:
            ServeError: the queue is full, an image cannot be read, or the time is over.
        """
        served = self.models.submit(name, jobs, classes)
        waiting = asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs))
        gone = None if request is None else asyncio.ensure_future(_until_gone(request))
        try:
            # The queue rejects late jobs; this is for an image that takes too long by itself.
            left = max(0.0, jobs[0].deadline - time.monotonic()) + 0.25
            tasks: list[asyncio.Future[Any]] = [waiting] if gone is None else [waiting, gone]
            done, _ = await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if waiting in done:
                return served, list(waiting.result())
            if done:
                raise ClientDisconnect
            self.models.count_refusal(served, "time")
            raise ServeError(503, "the request's time is over: try again.", headers={"Retry-After": "1"})
        finally:
            if not waiting.done():
                waiting.cancel()
            cancel(jobs)
            if gone is not None:
                gone.cancel()
                with suppress(asyncio.CancelledError):
                    await gone

    async def correct(self, request: Request, name: str | None) -> Response:
        """Handle a corrected image.

        Raises:
            ServeError: it is not allowed, or not usable.
        """
        deadline = time.monotonic() + self.config.timeout
        with self._budget.share() as share:
            try:
                if self.corrections is None:
                    raise ServeError(403, "corrections are not taken here: start the server with --corrections FOLDER.")
                served = self.models.get(name)
                chunks = body_chunks(request, most=self.config.max_bytes, deadline=deadline, share=share)
                parts = await read_parts(chunks, request.headers.get("content-type", ""), most=2)
            except ClientDisconnect:
                raise
            except Exception as error:  # answered after the body was read
                raise await refusal(request, error, self.config.max_bytes) from error
            fields = {part.field: part for part in parts}
            if len(parts) != 2 or set(fields) != {"image", "annotations"}:
                raise ServeError(422, "a correction is a form of two parts, image and annotations.")
            image = fields["image"]
            boxes = read_boxes(bytes(fields["annotations"].content))
            saved = await asyncio.to_thread(
                self.corrections.save, bytes(image.content), image.filename or "image", boxes, served.info["classes"],
                served.name,
            )  # fmt: skip
        return json_response({"model": served.name, **saved}, 201)


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _images(parts: Sequence[Part]) -> list[tuple[Part, str]]:
    """Return the files of a request with a name for each.

    Raises:
        ServeError: there is none, or a part is not a file (422).
    """
    wrong = next((part for part in parts if not part.is_file), None)
    if wrong is not None:
        raise ServeError(
            422, f"the part {wrong.field} of the form is not a file: send images there, and settings in the address."
        )
    if not parts or not any(part.content for part in parts):
        raise ServeError(422, "the request has no image: send one as the body, or several as the files of a form.")
    single = len(parts) == 1
    return [(part, part.filename or ("image" if single else f"image-{i}")) for i, part in enumerate(parts, 1)]
