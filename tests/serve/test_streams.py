from __future__ import annotations

import json

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from nextdetr.serve import streams
from nextdetr.serve.run import start
from tests.serve.conftest import client, encoded, fake_opens


def joined(running, address="/stream", **settings):
    return connect(running.url.replace("http", "ws") + address, proxy=None, **settings)


def ask(socket, message):
    socket.send(message)
    return json.loads(socket.recv(timeout=10))


@pytest.fixture
def running(engine):
    with start("fake", opens=fake_opens(engine), max_bytes=200_000) as running:
        yield running


def test_frames_are_answered_in_order_and_settings_change_on_the_way(running):
    with joined(running, "/models/fake/stream") as socket:
        first = ask(socket, encoded((1, 0, 0)))
        assert (first["frame"], first["model"], first["images"][0]["name"]) == (1, "fake", "frame-1")
        assert len(first["images"][0]["detections"]) == 3
        socket.send(json.dumps({"confidence": 0.8, "classes": "cat"}))
        assert len(ask(socket, encoded((2, 0, 0)))["images"][0]["detections"]) == 1
        for number in range(5):
            socket.send(encoded((10 + number, 0, 0)))
        answers = [json.loads(socket.recv(timeout=10)) for _ in range(5)]
        assert [answer["images"][0]["pixel"][0] for answer in answers] == [10, 11, 12, 13, 14]


def test_a_bad_frame_or_setting_is_told_and_the_stream_goes_on(running):
    with joined(running) as socket:
        for message in (
            b"no picture",
            encoded()[:50],
            "no json",
            '{"confidence": 7}',
            '{"threshold": 0.5}',
            "[]",
            "[" * 50_000,
        ):
            error = ask(socket, message)["error"]
            assert error["message"].endswith(".")
        assert "images" in ask(socket, encoded())


def test_the_queue_counts_for_streams_too(engine):
    with start("fake", opens=fake_opens(engine), queue=1) as running, joined(running) as socket, joined(running) as other:
        engine.gate.clear()
        socket.send(encoded())
        assert engine.entered.acquire(timeout=5)
        assert ask(other, encoded())["error"]["type"] == "Busy"
        engine.gate.set()
        assert "images" in json.loads(socket.recv(timeout=10))


def test_too_large_a_frame_ends_the_stream_and_nothing_else(running):
    with joined(running) as socket:
        socket.send(bytes(300_000))
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=10)
        assert closed.value.rcvd.code == 1009
    with joined(running) as socket:
        assert "images" in ask(socket, encoded())


def test_there_is_no_stream_of_an_unknown_model(running):
    with joined(running, "/models/lion/stream") as socket:
        assert json.loads(socket.recv(timeout=10))["error"]["type"] == "NotFound"
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=10)


def test_a_key_is_asked_for_in_the_head_or_in_the_first_message(engine):
    with start("fake", opens=fake_opens(engine), api_key="the key of the line") as running:
        with joined(running, additional_headers={"X-API-Key": "the key of the line"}) as socket:
            assert "images" in ask(socket, encoded())
        with joined(running) as socket:
            socket.send(json.dumps({"api_key": "the key of the line"}))
            assert "images" in ask(socket, encoded())
        for wrong in (json.dumps({"api_key": "guess"}), json.dumps({"api_key": 5}), "[]", encoded()):
            with joined(running) as socket:
                assert ask(socket, wrong)["error"]["type"] == "KeyError"
                with pytest.raises(ConnectionClosed):
                    socket.recv(timeout=10)
        assert not engine.batches[2:]


def test_streams_are_counted_limited_and_forgotten(running, monkeypatch):
    monkeypatch.setattr(streams, "MOST_STREAMS", 2)
    with client(running) as ours:
        with joined(running) as one, joined(running) as two:
            ask(one, encoded())
            ask(two, encoded())
            assert "nextdetr_streams 2.0" in ours.get("/metrics").text
            with joined(running) as three:
                assert json.loads(three.recv(timeout=10))["error"]["type"] == "Busy"
        while "nextdetr_streams 0.0" not in ours.get("/metrics").text:
            pass


def test_a_silent_stream_is_closed(running, monkeypatch):
    monkeypatch.setattr(streams, "IDLE_SECONDS", 0.2)
    with joined(running) as socket:
        assert json.loads(socket.recv(timeout=10))["error"]["type"] == "Timeout"


def test_strangers_take_no_place_from_those_with_a_key(engine, monkeypatch):
    monkeypatch.setattr(streams, "MOST_STREAMS", 1)
    key = {"X-API-Key": "the key of the line"}
    with (
        start("fake", opens=fake_opens(engine), api_key="the key of the line") as running,
        joined(running), joined(running), joined(running, additional_headers=key) as socket,
    ):  # fmt: skip
        assert "images" in ask(socket, encoded())
        with joined(running, additional_headers=key) as other:
            assert json.loads(other.recv(timeout=10))["error"]["type"] == "Busy"
