"""Batching across requests: a bounded queue, decoding threads, computing threads.

An image moves from the queue, as its encoded file, to the decoders, and from there, as the model's input, to the next
batch. Inputs are large, so only about two batches of them exist at a time; everything else waits encoded. A batch takes
what is ready when the previous one ends.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from nextdetr.errors import out_of_memory
from nextdetr.serve.errors import ServeError

__all__ = ["Answer", "Batcher", "Closed", "Engine", "Job", "Observer", "cancel"]

logger = logging.getLogger(__name__)


class Closed(Exception):  # noqa: N818 - callers retry with the batcher that replaced it
    """This batcher accepts no more jobs."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Detections in one image.

    Attributes:
        result: ``width``, ``height`` and ``detections``, as in the JSON result.
        picture: the image with its detections drawn; None if not requested.
        seconds: spent in ``queue``, ``preprocess``, ``model`` (its share of the batch) and ``postprocess``.
    """

    result: dict[str, Any]
    picture: bytes | None
    seconds: dict[str, float]


@dataclass(eq=False, slots=True)
class Job:
    """One image to process.

    Attributes:
        content: its encoded file.
        name: for messages.
        settings: ``confidence``, ``classes`` and ``max_detections``.
        deadline: value of ``time.monotonic`` by which it must be answered.
        draw: format of the annotated image, ``JPEG`` or ``PNG``, if requested.
        future: receives the answer, or a ``ServeError``.
    """

    content: bytes
    name: str
    settings: dict[str, Any]
    deadline: float
    draw: str | None = None
    future: Future[Answer] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    image: Image.Image | None = None
    size: tuple[int, int] = (0, 0)
    seconds: dict[str, float] = field(default_factory=dict)


class Engine(Protocol):
    """Interface of a detector for a batcher; each method may be called by several threads at once."""

    def prepare(self, job: Job) -> Any:
        """Decode the job's image, set its ``size`` and, if it is to be drawn, its ``image``; return the input."""

    def compute(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run the model on a batch and return one output per image."""

    def finish(self, job: Job, output: Any) -> tuple[dict[str, Any], bytes | None]:
        """Return the job's result and its annotated image."""


class Observer(Protocol):
    """Receives events from the batcher's threads."""

    def batch(self, images: int, seconds: float) -> None:
        """A batch was computed."""

    def image(self, seconds: dict[str, float]) -> None:
        """An image was answered."""


class Batcher:
    """Processes jobs.

    Args:
        engine: the detector.
        observer: receives events about batches and images.
        batch: maximum images per batch.
        wait: seconds to wait for more images if a batch is not full.
        queue: maximum images accepted but not answered.
        parallel: batches computed at once.
        decoders: decoding threads; by default one per CPU core, at most four.
    """

    def __init__(
        self,
        engine: Engine,
        observer: Observer,
        *,
        batch: int = 8,
        wait: float = 0.0,
        queue: int = 64,
        parallel: int = 1,
        decoders: int | None = None,
    ) -> None:
        self._engine, self._observer = engine, observer
        self._batch, self._wait, self._limit = batch, wait, queue
        decoders = decoders or min(4, os.cpu_count() or 1)
        self._ahead = batch * (parallel + 1) + decoders
        self._lock = threading.Lock()
        self._to_decode, self._to_compute = threading.Condition(self._lock), threading.Condition(self._lock)
        self._waiting: deque[Job] = deque()
        self._ready: deque[tuple[Job, Any]] = deque()
        self._decoding = self._pending = 0
        self._closed = False
        self._pace = 0.0  # recent seconds per image
        self._compute = threading.BoundedSemaphore(parallel)
        # One more thread than batches: it finishes the results of a batch while the next one is computed.
        targets = [self._decode_forever] * decoders + [self._run_forever] * (parallel + 1)
        self._threads = [
            threading.Thread(target=target, name=f"nextdetr-serve-{number}", daemon=True)
            for number, target in enumerate(targets)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pending(self) -> int:
        """Images accepted but not answered yet."""
        return self._pending

    def check_room(self, images: int = 1) -> None:
        """Refuse immediately what ``submit`` would refuse.

        Raises:
            ServeError: the queue is full (503).
        """
        if self._pending + images > self._limit:
            raise self._full()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Accept all of these jobs, or none.

        Raises:
            ServeError: the queue is too full (503), or too short for them (413).
            Closed: another batcher has replaced this one.
        """
        with self._lock:
            if self._closed:
                raise Closed
            if len(jobs) > self._limit:
                raise ServeError(413, f"a request has at most {self._limit} images, as the queue has: send fewer at once.")
            if self._pending + len(jobs) > self._limit:
                raise self._full()
            self._pending += len(jobs)
            self._waiting.extend(jobs)
            self._to_decode.notify(len(jobs))

    def close(self, *, wait: bool = True) -> None:
        """Accept nothing more, finish what was accepted, and stop the threads."""
        with self._lock:
            self._closed = True
            self._to_decode.notify_all()
            self._to_compute.notify_all()
        if wait:
            for thread in self._threads:
                thread.join()

    def _full(self) -> ServeError:
        seconds = max(1, round(self._pending * self._pace))
        return ServeError(
            503, f"the server is busy: {self._pending} images wait already. Try again in {seconds} s.",
            headers={"Retry-After": str(seconds)},
        )  # fmt: skip

    # -- decoding

    def _decode_forever(self) -> None:
        while (job := self._next_job()) is not None:
            started = time.monotonic()
            try:
                if not self._is_wanted(job, started):
                    continue
                value = self._engine.prepare(job)
                job.content = b""
                job.seconds["preprocess"] = time.monotonic() - started
                with self._lock:
                    self._ready.append((job, value))
            except Exception as error:  # noqa: BLE001 - a thread that ends would take the server with it
                self._fail(job, error)
            finally:
                with self._lock:
                    self._decoding -= 1
                    self._to_compute.notify()
            del job

    def _next_job(self) -> Job | None:
        with self._lock:
            while not self._waiting or self._decoding + len(self._ready) >= self._ahead:
                if self._closed and not self._waiting:
                    return None
                self._to_decode.wait()
            self._decoding += 1
            job = self._waiting.popleft()
            if self._closed:
                self._to_decode.notify_all()  # it may have been the last one
            return job

    def _is_wanted(self, job: Job, now: float) -> bool:
        """Whether anyone still waits for a job; jobs past their deadline are failed."""
        if now > job.deadline:
            self._fail(job, ServeError(503, "the server is busy: the request's time was over before its turn came.",
                                       headers={"Retry-After": "1"}))  # fmt: skip
            return False
        if job.future.cancelled():  # the client disconnected
            self._done()
            return False
        return True

    # -- computing

    def _run_forever(self) -> None:
        while True:
            with self._compute:
                jobs = self._next_batch()
                if jobs is None:
                    return
                outputs = self._run(jobs)
            for (job, _), output in zip(jobs, outputs, strict=True):
                if isinstance(output, Exception):
                    self._fail(job, output)
                else:
                    self._finish(job, output)
            del jobs, outputs

    def _next_batch(self) -> list[tuple[Job, Any]] | None:
        with self._lock:
            while not self._ready:
                if self._closed and not self._waiting and not self._decoding:
                    self._to_compute.notify_all()
                    return None
                self._to_compute.wait()
            until = time.monotonic() + self._wait
            while self._wait and len(self._ready) < self._batch and not self._closed:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._to_compute.wait(left)
            chosen = [self._ready.popleft() for _ in range(min(self._batch, len(self._ready)))]
            self._to_decode.notify(len(chosen))
            if self._closed:
                self._to_compute.notify_all()
            return chosen

    def _run(self, jobs: list[tuple[Job, Any]]) -> Sequence[Any]:
        """Return an output for each job, or its error."""
        started = time.monotonic()
        for job, _ in jobs:
            job.seconds["queue"] = max(0.0, started - job.arrived - job.seconds["preprocess"])
        try:
            outputs: Sequence[Any] = self._engine.compute([value for _, value in jobs])
        except Exception as error:  # noqa: BLE001 - the runtimes' own exceptions have no base of their own
            return [error] if len(jobs) == 1 else [self._run([job])[0] for job in jobs]  # only one may be to blame
        taken = time.monotonic() - started
        for job, _ in jobs:
            job.seconds["model"] = taken / len(jobs)
        self._pace += 0.1 * (taken / len(jobs) - self._pace) if self._pace else taken / len(jobs)
        self._observer.batch(len(jobs), taken)
        return outputs

    def _finish(self, job: Job, output: Any) -> None:
        started = time.monotonic()
        try:
            result, picture = self._engine.finish(job, output)
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(job, error)
            return
        job.seconds["postprocess"] = time.monotonic() - started
        self._observer.image(job.seconds)
        self._done()
        _settle(job.future, Answer(result, picture, job.seconds))

    def _fail(self, job: Job, error: Exception) -> None:
        if not isinstance(error, ServeError):
            logger.warning("an image could not be processed: %s: %s", type(error).__name__, " ".join(str(error).split()))
        if out_of_memory(error):
            error = ServeError(503, f"{job.name}: the server's memory is used up: try again.", headers={"Retry-After": "5"})
        self._done()
        _settle(job.future, error)

    def _done(self) -> None:
        with self._lock:
            self._pending -= 1


def _settle(future: Future[Answer], value: Answer | Exception) -> None:
    if not future.set_running_or_notify_cancel():  # the client disconnected
        return
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)


def cancel(jobs: Iterable[Job]) -> None:
    """Drop jobs that have not started."""
    for job in jobs:
        job.future.cancel()
