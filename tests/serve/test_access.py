from __future__ import annotations

import json

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from nextdetr.cli.main import run
from nextdetr.config import ServeConfig, build_config
from nextdetr.errors import ConfigError
from nextdetr.serve.run import start
from nextdetr.serve.security import access_of
from tests.serve.conftest import FakeEngine, client, encoded, fake_opens

KEY = "a key of some length"
GOOD = encoded()


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"# for the line\n{KEY}\n\nanother key\n")
    settings = {"api_key_file": file, "cors_origins": "https://shop.example", "corrections": file.parent / "corrected"}
    with start("fake", opens=fake_opens(FakeEngine()), **settings) as running, client(running) as ours:
        yield ours


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    with (
        start("fake", opens=fake_opens(FakeEngine()), corrections=folder, allow_reload=True) as running,
        client(running) as ours,
    ):
        yield ours


def correction():
    return {"files": {"image": ("a.png", GOOD)}, "data": {"annotations": '{"detections": []}'}}


@pytest.mark.parametrize("headers", [{"Authorization": f"Bearer {KEY}"}, {"X-API-Key": "another key"}])
def test_a_key_of_the_file_opens_everything(keyed, headers):
    assert keyed.post("/predict", content=GOOD, headers=headers).status_code == 200
    assert keyed.get("/metrics", headers=headers).status_code == 200
    assert keyed.post("/corrections", **correction(), headers=headers).status_code == 201
    assert keyed.get("/models", headers={**headers, "Host": "cells.example"}).status_code == 200  # others reach it, too


@pytest.mark.parametrize("headers", [
    {}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}, {"Authorization": KEY}, {"X-API-Key": ""},
    {"X-API-Key": KEY + "x"}, {"X-API-Key": "# for the line"}, {"Authorization": "Bearer é".encode()},
])  # fmt: skip
@pytest.mark.parametrize(("method", "address"), [
    ("POST", "/predict"), ("POST", "/corrections"), ("POST", "/models/fake/reload"), ("GET", "/models"),
    ("GET", "/metrics"),
])  # fmt: skip
def test_without_a_right_key_nothing_is_done(keyed, headers, method, address):
    answer = keyed.request(method, address, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["error"]["type"] == "KeyError"
    assert KEY not in answer.text


def test_the_page_and_the_probes_need_no_key(keyed):
    for address in ("/", "/page/app.js", "/health", "/ready", "/openapi.json"):
        assert keyed.get(address).status_code == 200


@pytest.mark.parametrize(
    "host", ["cells.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "[::2]", "", "0.0.0.0"]
)
def test_a_name_that_was_pointed_here_is_refused(local, host):
    answer = local.post("/predict", content=GOOD, headers={"Host": host})
    assert answer.status_code in (400, 421)
    assert local.post("/models/fake/reload", headers={"Host": host}).status_code in (400, 421)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1:1234", "[::1]:80", "127.9.9.9"])
def test_names_of_this_computer_are_its_own(local, host):
    assert local.get("/model", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost", "https://["])
def test_other_pages_may_neither_write_nor_ask(local, origin):
    headers = {"Origin": origin}
    for answer in (
        local.post("/corrections", **correction(), headers=headers),
        local.post("/models/fake/reload", headers=headers),
        local.post("/predict", content=GOOD, headers=headers),
        local.get("/model", headers=headers),
    ):
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    address = f"ws://127.0.0.1:{local.base_url.port}/stream"
    with pytest.raises(InvalidStatus) as refused:
        connect(address, origin=origin)
    assert refused.value.response.status_code == 403


def test_its_own_page_may(local):
    headers = {"Origin": str(local.base_url).rstrip("/")}
    assert local.post("/corrections", **correction(), headers=headers).status_code == 201
    assert local.post("/models/fake/reload", headers=headers).json()["generation"] >= 2


def test_a_stated_web_site_may_call_with_the_key(keyed):
    origin = {"Origin": "https://shop.example"}
    asked = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    before = keyed.options("/predict", headers=asked)
    assert before.status_code == 200
    assert before.headers["access-control-allow-origin"] == "https://shop.example"
    answer = keyed.post("/predict", content=GOOD, headers={**origin, "Authorization": f"Bearer {KEY}"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://shop.example")
    assert keyed.post("/predict", content=GOOD, headers=origin).status_code == 401
    other = {**asked, "Origin": "https://evil.example"}
    assert "access-control-allow-origin" not in keyed.options("/predict", headers=other).headers


def test_what_writes_is_off_unless_asked_for(server):
    for address, option in (("/corrections", "--corrections"), ("/models/toy/reload", "--allow-reload")):
        answer = server.post(address)
        assert answer.status_code == 403
        assert option in answer.json()["error"]["message"]
    assert server.get("/models").json()["corrections"] is False


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "cells.example"])
def test_other_addresses_than_this_computers_need_a_key(host):
    config = build_config(ServeConfig, {"host": host})
    with pytest.raises(ConfigError, match="NEXTDETR_API_KEY"):
        access_of(config, {})
    assert access_of(config, {"NEXTDETR_API_KEY": "k"}).keys == (b"k",)
    assert access_of(build_config(ServeConfig, {"host": host, "api_key": "k"}), {}).keys == (b"k",)


def test_keys_are_taken_as_windows_writes_them_and_refused_where_no_header_can_have_them(tmp_path):
    file = tmp_path / "keys"
    file.write_bytes(b"\xef\xbb\xbffirst\r\nsecond\r\n")
    assert access_of(build_config(ServeConfig, {"api_key_file": file}), {}).keys == (b"first", b"second")
    for key in ("Schlüssel", "a\x07b"):
        with pytest.raises(ConfigError, match="signs of ASCII"):
            access_of(build_config(ServeConfig, {}), {"NEXTDETR_API_KEY": key})


def test_the_command_line_says_in_a_sentence_what_is_wrong(capsys, monkeypatch, tmp_path, model, server):
    monkeypatch.delenv("NEXTDETR_API_KEY", raising=False)
    (tmp_path / "empty").touch()
    taken = str(server.base_url.port)
    for options, expected in {
        (str(model), "--host", "0.0.0.0"): "NEXTDETR_API_KEY",
        (str(model), "--cors-origins", "*"): "needs a key",
        (str(model), "--cors-origins", "shop.example"): "https://example.org",
        (str(model), "--api-key-file", str(tmp_path / "empty")): "there is no key in it",
        (str(model), "--api-key", "a", "--api-key-file", "b"): "give one of them",
        (str(model), "--port", taken): "cannot listen",
        (str(model), "--host", "no.such.host.invalid", "--api-key", "k"): "there is no such address",
        (str(model), f"toy={model}", "--port", "0"): "two models would be called toy",
        ("missing.onnx", "--port", "0"): "missing.onnx",
        (): "needs a model",
    }.items():
        assert run(["serve", *options, "--json"]) == 2
        assert expected in json.loads(capsys.readouterr().out)["error"]["message"]
