from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from nextdetr.serve.batcher import Batcher, Closed, Job, cancel
from nextdetr.serve.errors import ServeError
from nextdetr.serve.run import start
from tests.serve.conftest import client, encoded, fake_opens


class Quiet:
    def batch(self, images, seconds): ...

    def image(self, seconds): ...


def job(colour=(1, 2, 3), deadline=30.0):
    settings = {"confidence": 0.3, "classes": None, "max_detections": 300}
    return Job(encoded(colour), "a.png", settings, time.monotonic() + deadline)


@pytest.fixture
def batcher(engine):
    made = []

    def make(**settings):
        made.append(Batcher(engine, Quiet(), **settings))
        return made[-1]

    yield make
    engine.gate.set()
    for one in made:
        one.close()


def test_requests_of_several_clients_share_batches(engine):
    engine.gate.clear()
    with (
        start("fake", opens=fake_opens(engine), batch=4) as running,
        client(running) as ours,
        ThreadPoolExecutor(9) as pool,
    ):
        colours = [(number, 100, 0) for number in range(9)]
        first = pool.submit(ours.post, "/predict", content=encoded(colours[0]))
        assert engine.entered.acquire(timeout=10)  # it keeps the model busy while the others come
        others = [pool.submit(ours.post, "/predict", content=encoded(colour)) for colour in colours[1:]]
        deadline = time.monotonic() + 10
        while 'nextdetr_queue_images{model="fake"} 9.0' not in ours.get("/metrics").text:
            assert time.monotonic() < deadline
        engine.gate.set()
        answers = [future.result() for future in (first, *others)]
    assert [len(batch) for batch in engine.batches] == [1, 4, 4]
    pixels = [answer.json()["images"][0]["pixel"] for answer in answers]
    assert pixels == [list(colour) for colour in colours]  # everybody's own


def test_a_batch_waits_as_long_as_it_may_and_no_longer(engine, batcher):
    waiting = batcher(batch=2, wait=5.0)
    first, second = job((1, 0, 0)), job((2, 0, 0))
    waiting.submit([first])
    assert not engine.entered.acquire(timeout=0.2)
    waiting.submit([second])
    second.future.result(5)
    assert [len(batch) for batch in engine.batches] == [2]
    hasty = batcher(batch=2, wait=0.05)
    alone = job()
    hasty.submit([alone])
    alone.future.result(5)


def test_beyond_the_queue_all_images_of_a_request_are_refused_and_room_comes_back(engine, batcher):
    engine.gate.clear()
    one = batcher(batch=1, queue=3)
    accepted = [job(), job()]
    one.submit(accepted)
    with pytest.raises(ServeError) as refused:
        one.submit([job(), job()])
    assert (refused.value.status, int(refused.value.headers["Retry-After"]) >= 1) == (503, True)
    assert one.pending == 2
    last = job()
    one.submit([last])
    engine.gate.set()
    for done in (*accepted, last):
        done.future.result(5)
    assert one.pending == 0
    with pytest.raises(ServeError) as never:
        one.submit([job()] * 4)
    assert never.value.status == 413


def test_one_image_that_breaks_the_model_spoils_no_others(engine, batcher):
    engine.broken = lambda pixel: pixel == [66, 0, 0]
    engine.gate.clear()
    one = batcher(batch=3)
    jobs = [job((1, 0, 0)), job((2, 0, 0)), job((66, 0, 0)), job((3, 0, 0))]
    one.submit(jobs)
    engine.gate.set()
    with pytest.raises(RuntimeError, match="broke down"):
        jobs[2].future.result(5)
    assert [jobs[number].future.result(5).result["pixel"][0] for number in (0, 1, 3)] == [1, 2, 3]


def test_a_damaged_image_is_told_and_the_others_answered(batcher):
    one = batcher()
    bad, good = job(), job()
    bad.content = bad.content[:60]
    one.submit([bad, good])
    with pytest.raises(ServeError):
        bad.future.result(5)
    assert good.future.result(5).result["width"] == 64


def test_what_waited_too_long_or_whose_client_left_is_not_computed(engine, batcher):
    engine.gate.clear()
    one = batcher(batch=1)
    busy = [job() for _ in range(8)]  # more than are decoded ahead
    late, left = job(deadline=0.1), job((9, 9, 9))
    one.submit([*busy, late, left])
    cancel([left])
    time.sleep(0.2)
    engine.gate.set()
    with pytest.raises(ServeError) as error:
        late.future.result(5)
    assert error.value.status == 503
    for done in busy:
        done.future.result(5)
    one.close()
    assert one.pending == 0
    assert [9, 9, 9] not in [pixel for batch in engine.batches for pixel in batch]


@pytest.mark.parametrize("parallel", [1, 3])
def test_closing_answers_what_was_accepted_and_refuses_the_rest(engine, batcher, parallel):
    engine.gate.clear()
    one = batcher(batch=2, parallel=parallel, wait=0.01)
    jobs = [job() for _ in range(30)]
    one.submit(jobs)
    closing = threading.Thread(target=one.close)
    closing.start()
    time.sleep(0.05)
    with pytest.raises(Closed):
        one.submit([job()])
    engine.gate.set()
    closing.join(10)
    assert not closing.is_alive()
    assert all(done.future.done() and done.future.exception() is None for done in jobs)


def test_as_many_batches_are_computed_at_once_as_are_allowed(engine, batcher):
    engine.gate.clear()
    one = batcher(batch=1, parallel=2)
    jobs = [job() for _ in range(5)]
    one.submit(jobs)
    assert engine.entered.acquire(timeout=5)
    assert engine.entered.acquire(timeout=5)
    assert not engine.entered.acquire(timeout=0.2)
    engine.gate.set()
    for done in jobs:
        done.future.result(5)
