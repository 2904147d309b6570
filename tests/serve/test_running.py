from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import httpx
import psutil
import pytest

from nextdetr import Detector
from nextdetr.config import ServeConfig, build_config
from nextdetr.errors import ConfigError, ModelFileError
from nextdetr.inference.exported import open_export
from nextdetr.serve import connections
from nextdetr.serve.models import open_first
from nextdetr.serve.run import start
from tests.export.handmade import handmade, terms
from tests.serve.conftest import INFO, client, encoded, fake_opens

GOOD = encoded()
HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"


def opened(running):
    url = httpx.URL(running.url)
    return socket.create_connection((url.host, url.port), timeout=10)


def test_a_stop_by_the_system_answers_what_was_accepted_and_ends_with_success(model):
    command = [
        sys.executable,
        "-m",
        "nextdetr",
        "serve",
        str(model),
        "--port",
        "0",
        "--json",
        "--wait",
        "1000",
        "--batch",
        "64",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        ready = json.loads(process.stdout.readline())
        assert ready["models"] == ["toy"]
        with ThreadPoolExecutor(4) as pool, httpx.Client(base_url=ready["url"], timeout=30, trust_env=False) as ours:
            waiting = [pool.submit(ours.post, "/predict", content=GOOD) for _ in range(4)]
            while 'nextdetr_queue_images{model="toy"} 4.0' not in ours.get("/metrics").text:
                pass
            process.send_signal(signal.SIGTERM)
            assert [future.result().status_code for future in waiting] == [200] * 4
        assert process.wait(10) == 0
        assert process.stdout.read() == ""
    finally:
        process.kill()


def test_an_open_detector_serves_itself_until_the_process_is_asked_to_stop(model):
    answers = []

    def ask(url):
        answers.append(httpx.post(f"{url}/models/toy/predict", content=GOOD, trust_env=False).json()["model"])
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    Detector(model).serve(port=0, ready=lambda url, app: threading.Thread(target=ask, args=(url,)).start())
    assert answers == ["toy"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_open_detector_is_read_again_for_a_reload(tmp_path):
    path, found = tmp_path / "toy.onnx", []
    handmade(path)

    def ask(url):
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as ours:
            try:
                for number in range(2):
                    found.append(len(ours.post("/predict?confidence=0.1", content=GOOD).json()["images"][0]["detections"]))
                    if number == 0:
                        handmade(path, scores=(0.9, 0.01, 0.01, 0.01))
                        found.append(ours.post("/models/toy/reload").json()["generation"])
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

    ready = lambda url, app: threading.Thread(target=ask, args=(url,)).start()  # noqa: E731
    Detector(path).serve(port=0, allow_reload=True, ready=ready)
    assert found == [3, 2, 1]


def test_a_notebook_is_pointed_to_the_server_in_a_thread(model):
    async def cell():
        Detector(model).serve(port=0)

    with pytest.raises(ConfigError, match=r"nextdetr\.serve\.start\(…\) serves beside it"):
        asyncio.run(cell())


def test_an_open_detector_is_opened_again_for_a_number_of_threads(model):
    opened, asked = open_export(model), []

    def again(threads):
        asked.append(threads)
        return open_export(model, threads=threads)

    opens = open_first(opened, again)
    engines = [opens("toy", build_config(ServeConfig, {}))[0] for _ in range(2)]
    assert [engine.steps.predictor.backend is opened.model for engine in engines] == [True, False]
    open_first(opened, again)("toy", build_config(ServeConfig, {"threads": 2}))
    assert asked == [None, 2]


def test_a_reload_under_load_loses_no_request_and_brings_the_new_model(tmp_path):
    path = tmp_path / "toy.onnx"
    handmade(path)
    with start(path, allow_reload=True, queue=200) as running, client(running) as ours:
        ending, statuses, generations = threading.Event(), [], set()

        def ask():
            with client(running) as mine:
                while not ending.is_set():
                    answer = mine.post("/predict?confidence=0.1", content=GOOD)
                    statuses.append(answer.status_code)
                    generations.add(len(answer.json()["images"][0]["detections"]))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(4):
            handmade(path, scores=(0.9, 0.8, 0.5, 0.2) if number % 2 else (0.9, 0.01, 0.01, 0.01))
            assert ours.post("/models/toy/reload").json()["generation"] == number + 2
            ours.get("/health")
        ending.set()
        for thread in threads:
            thread.join()
    assert len(statuses) > 20
    assert set(statuses) == {200}
    assert len(generations) == 2  # both files answered


def test_a_file_that_cannot_be_opened_leaves_the_old_model(tmp_path):
    path = tmp_path / "toy.onnx"
    handmade(path)
    with start(path, allow_reload=True) as running, client(running) as ours:
        path.write_bytes(path.read_bytes()[:200])
        answer = ours.post("/models/toy/reload")
        assert answer.status_code == 422
        assert answer.json()["error"]["message"].startswith("toy stays as it is: ")
        assert ours.post("/predict", content=GOOD).status_code == 200
        assert ours.get("/model").json()["generation"] == 1
        handmade(path, terms())
        assert ours.post("/models/toy/reload").status_code == 200


def test_reload_opens_the_file_of_the_command_line_whatever_is_sent(engine):
    asked = []

    def opens(source, config):
        asked.append(source)
        if len(asked) > 2:
            raise ModelFileError("gone.")
        return engine, INFO

    with start("one=a.onnx", opens=opens, allow_reload=True) as running, client(running) as ours:
        ours.post("/models/one/reload?path=/etc/passwd", json={"model": "/etc/passwd"})
        assert ours.post("/models/one/reload").status_code == 422
    assert asked == ["a.onnx"] * 3


def test_beyond_the_queue_clients_are_refused_at_once_and_told_when_to_come_back(engine):
    engine.gate.clear()
    with start("fake", opens=fake_opens(engine), queue=2, batch=1) as running, client(running) as ours:
        with ThreadPoolExecutor(2) as pool:
            accepted = [pool.submit(ours.post, "/predict", content=GOOD) for _ in range(2)]
            while 'nextdetr_queue_images{model="fake"} 2.0' not in ours.get("/metrics").text:
                pass
            started = time.monotonic()
            answer = ours.post("/predict", content=GOOD)
            assert time.monotonic() - started < 2
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["type"] == "Busy"
            assert ours.get("/health").status_code == 200
            engine.gate.set()
            assert [future.result().status_code for future in accepted] == [200, 200]
        assert ours.post("/predict", content=GOOD).status_code == 200
        assert 'nextdetr_refused_total{model="fake",reason="queue"} 1.0' in ours.get("/metrics").text


def test_a_request_is_refused_when_its_time_is_over(engine):
    engine.gate.clear()
    with start("fake", opens=fake_opens(engine), timeout=0.3, batch=1) as running, client(running) as ours:
        answer = ours.post("/predict", content=GOOD)
        assert (answer.status_code, "time is over" in answer.json()["error"]["message"]) == (503, True)
        engine.gate.set()
        assert ours.post("/predict", content=GOOD).status_code == 200


def test_a_client_that_sends_half_a_body_hangs_or_leaves_costs_the_others_nothing(engine):
    with start("fake", opens=fake_opens(engine), timeout=1.0, queue=1) as running, client(running) as ours:
        half, gone = opened(running), opened(running)
        half.sendall(HEAD + b"x" * 500)
        gone.sendall(HEAD + b"x" * 500)
        gone.close()
        assert [ours.post("/predict", content=GOOD).status_code for _ in range(5)] == [200] * 5
        assert half.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert ours.post("/predict", content=GOOD).status_code == 200


def test_the_images_of_a_client_that_left_are_not_computed(engine):
    engine.gate.clear()
    with (
        start("fake", opens=fake_opens(engine), batch=1, queue=100) as running,
        client(running) as ours,
        ThreadPoolExecutor(20) as pool,
    ):
        busy = [pool.submit(ours.post, "/predict", content=GOOD) for _ in range(8)]  # more than are decoded ahead
        while 'nextdetr_queue_images{model="fake"} 8.0' not in ours.get("/metrics").text:
            pass
        leaves = opened(running)
        content = encoded((9, 9, 9))
        leaves.sendall(HEAD.replace(b"1000", str(len(content)).encode()) + content)
        while 'nextdetr_queue_images{model="fake"} 9.0' not in ours.get("/metrics").text:
            pass
        leaves.close()
        while 'status="499"' not in ours.get("/metrics").text:
            pass
        engine.gate.set()
        assert {future.result().status_code for future in busy} == {200}
    assert [9, 9, 9] not in [pixel for batch in engine.batches for pixel in batch]


def test_silent_connections_are_closed(monkeypatch, engine):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    with start("fake", opens=fake_opens(engine)) as running:
        silent, slow = opened(running), opened(running)
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
        assert silent.recv(10) == slow.recv(10) == b""


def test_a_client_that_reads_slowly_is_waited_for_until_it_stops():
    protocol = connections.PatientProtocol.__new__(connections.PatientProtocol)
    protocol.transport, protocol.loop, protocol.flow, protocol._write_timer = Mock(), Mock(), Mock(), None
    left = protocol.transport.get_write_buffer_size
    left.return_value = 10_000_000
    protocol.pause_writing()
    for size in (9_000_000, 500_000, 499_000):
        seconds, check, before = protocol.loop.call_later.call_args.args
        assert seconds == connections.WRITE_SECONDS
        left.return_value = size
        check(before)
        assert protocol.transport.abort.called == (size == 499_000)


def test_what_only_asks_for_the_head_gets_it(server):
    for address in ("/health", "/ready", "/", "/models"):
        head, whole = server.head(address), server.get(address)
        assert (head.status_code, head.content, head.headers["content-type"]) == (200, b"", whole.headers["content-type"])
        assert int(head.headers["content-length"]) == len(whole.content) > 0


def test_a_runtime_that_fails_is_an_error_in_a_sentence_and_not_the_end(engine):
    engine.broken = lambda pixel: pixel[0] == 66
    with start("fake", opens=fake_opens(engine)) as running, client(running) as ours:
        answer = ours.post("/predict", content=encoded((66, 0, 0)))
        assert answer.status_code == 500
        assert answer.json()["error"]["message"] == "the server failed on this request; its log says why."
        assert ours.post("/predict", content=GOOD).status_code == 200


def test_memory_for_bodies_is_limited_over_all_requests(engine):
    with start("fake", opens=fake_opens(engine)) as running, client(running) as ours:
        budget = running.app.state.service._budget
        budget._limit = 1500
        holds = opened(running)
        holds.sendall(HEAD + b"x" * 900)
        while budget.used != 900:
            time.sleep(0.01)
        answer = ours.post("/predict", content=bytes(700))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        holds.close()
        while budget.used:
            time.sleep(0.01)


def test_memory_does_not_grow_with_requests(engine):
    with start("fake", opens=fake_opens(engine)) as running, client(running) as ours:
        content, process = encoded(size=(900, 900), form="BMP"), psutil.Process()

        def ask(count):
            for number in range(count):
                ours.post("/predict", content=content if number % 3 else content[:1000])
            return process.memory_info().rss

        before = ask(150)
        # It goes up and down by 30 MB, this client's share included; bodies or images that stayed would be 240 MB.
        assert ask(150) < before + 80e6


@pytest.mark.parametrize("runtime", ["onnx", "xml"])
def test_many_clients_at_once_each_get_their_own_answer(tmp_path, runtime):
    path = tmp_path / f"toy.{runtime}"
    handmade(path)
    with start(path, parallel=3, batch=2) as running, client(running) as ours, ThreadPoolExecutor(8) as pool:
        contents = [encoded((number * 10, 255 - number * 10, 90)) for number in range(25)]
        alone = [ours.post("/predict?confidence=0", content=content).json()["images"] for content in contents]
        together = list(
            pool.map(lambda content: ours.post("/predict?confidence=0", content=content).json()["images"], contents)
        )
    assert together == alone
    assert len({json.dumps(images) for images in alone}) == 25
