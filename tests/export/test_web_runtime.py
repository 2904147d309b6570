"""Where onnxruntime-web comes from: a server that speaks the registry's HTTP, and sends what it should not."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nextdetr.errors import ConfigError
from nextdetr.export.web import runtime
from nextdetr.export.web.runtime import runtime_files

CONTENT = {"ort.wasm.bundle.min.mjs": b"export {};" * 400, runtime.WASM: bytes(range(256)) * 300}


def package():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in {**CONTENT, "README.md": b"more"}.items():
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def registry(monkeypatch, tmp_path):
    """A registry with a small package, pinned in place of the true one, and an empty cache."""
    whole = package()
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    monkeypatch.setattr(runtime, "FILES", digests)
    monkeypatch.setattr(runtime, "PACKAGE_BYTES", len(whole))
    monkeypatch.setattr(runtime, "INTEGRITY", base64.b64encode(hashlib.sha512(whole).digest()).decode())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            self.send_response(server.status)
            self.send_header("Content-Length", str(server.length or len(server.body)))
            self.end_headers()
            self.wfile.write(server.body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.body, server.status, server.length, server.asked, server.cache = whole, 200, None, [], tmp_path / "nextdetr"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name, **_: tmp_path / name)
    yield server
    server.shutdown()
    server.server_close()


def test_it_is_fetched_once_and_said(registry, capsys):
    for _ in range(2):
        found = runtime_files()
        assert {name: path.read_bytes() for name, path in found.items()} == CONTENT
    assert registry.asked == [f"/onnxruntime-web/-/onnxruntime-web-{runtime.VERSION}.tgz"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "(MIT): downloading http://127.0.0.1" in said


def test_a_damaged_cache_is_filled_again(registry):
    path = runtime_files()[runtime.WASM]
    path.write_bytes(b"damaged")
    assert runtime_files()[runtime.WASM].read_bytes() == CONTENT[runtime.WASM]
    assert len(registry.asked) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": 404}, "Not Found"),
        ({"status": 503}, "Service Unavailable"),
        ({"body": lambda whole: whole[:-1]}, "broke off after"),
        ({"body": lambda whole: whole[:200], "length": 100_000}, "IncompleteRead|broke off after 200"),
        ({"body": lambda whole: whole[:-9] + b"x" + whole[-8:]}, "checksum is not the pinned one"),
        ({"body": lambda whole: whole * 3}, "checksum is not the pinned one"),
        ({"body": lambda whole: b"<html>log in</html>"}, "broke off after 19 of"),
    ],
)
def test_anything_else_is_refused_and_not_kept(registry, change, message):
    for name, value in change.items():
        setattr(registry, name, value(registry.body) if callable(value) else value)
    with pytest.raises(ConfigError, match=message) as caught:
        runtime_files()
    assert "--runtime-dir" in str(caught.value)
    assert not list(registry.cache.rglob("*.*js")) + list(registry.cache.rglob("*.wasm"))


def test_no_network_is_one_sentence(registry, monkeypatch):
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"cannot be downloaded.*--runtime-dir") as caught:
        runtime_files()
    assert "\n" not in str(caught.value)


def test_only_a_web_address_is_a_registry(registry, monkeypatch):
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "file:///etc")
    with pytest.raises(ConfigError, match="begins with https"):
        runtime_files()


@pytest.mark.parametrize("inside", [".", "dist", "package/dist"])
def test_the_users_own_folder_asks_nobody(registry, tmp_path, inside):
    place = tmp_path / "own" / inside
    place.mkdir(parents=True)
    for name, content in CONTENT.items():
        (place / name).write_bytes(content)
    assert {name: path.read_bytes() for name, path in runtime_files(tmp_path / "own").items()} == CONTENT
    (place / runtime.WASM).write_bytes(b"of another version")
    with pytest.raises(ConfigError, match=r"\.wasm: not the file of onnxruntime-web"):
        runtime_files(tmp_path / "own")
    (place / runtime.WASM).unlink()
    with pytest.raises(ConfigError, match="does not hold ort"):
        runtime_files(tmp_path / "own")
    assert registry.asked == []
