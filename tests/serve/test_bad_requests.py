"""A hundred kinds of bad requests: each gets a 4xx with one sentence, and the server goes on."""

from __future__ import annotations

import json
import re
import socket
import struct
import zlib
from io import BytesIO

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.serve.conftest import encoded

GOOD = encoded()
NOISE = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)


def picture(form, **settings):
    file = BytesIO()
    Image.fromarray(NOISE).save(file, form, **settings)
    return file.getvalue()


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, data=b"", extra=b""):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


ZEROS = zlib.compress(bytes(90_000_000))


def jpeg_of_size(width, height):
    content = bytearray(picture("JPEG"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def jpeg_of_many_scans():
    content = picture("JPEG", progressive=True)
    start = content.rindex(b"\xff\xda")
    return content[:start] + content[start:-2] * 200 + b"\xff\xd9"


BODIES = {
    "nothing": b"",
    "one byte": b"\xff",
    "text": b"a photograph of a cat",
    "html": b"<!doctype html><p>cat",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "json": b'{"image": "cat.jpg"}',
    "pdf": b"%PDF-1.7\n1 0 obj",
    "zip": b"PK\x03\x04" + bytes(60),
    "program": b"\x7fELF" + bytes(60),
    "noise": NOISE.tobytes(),
    "zeros": bytes(5000),
    "eps, which Ghostscript would run": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n/x {(touch /tmp/x) run} def\n",
    "video": b"\x00\x00\x00\x18ftypisom" + bytes(80),
    "heic without the package": b"\x00\x00\x00\x18ftypheic" + bytes(80),
    "icon": b"\x00\x00\x01\x00\x01\x00" + bytes(40),
    "photoshop": b"8BPS\x00\x01" + bytes(40),
    "tga, which has no signature": b"\x00\x00\x02" + bytes(9) + struct.pack("<HH", 4, 4) + b"\x18\x00" + bytes(48),
    "base64 of a picture": b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII=",
    "data address": b"data:image/png;base64,iVBORw0KGgo=",
    "jpeg, its first bytes": picture("JPEG")[:4],
    "jpeg, its head": picture("JPEG")[:300],
    "jpeg, half": picture("JPEG")[: len(picture("JPEG")) // 2],
    "jpeg with foreign tables": picture("JPEG")[:2] + bytes(100) + picture("JPEG")[102:],
    "jpeg of many scans": jpeg_of_many_scans(),
    "png, its signature": GOOD[:8],
    "png, half": picture("PNG")[: len(picture("PNG")) // 2],
    "png with a wrong checksum": GOOD[:29] + b"\x00\x00\x00\x00" + GOOD[33:],
    "png without pixels": png(0, 10),
    "png with damaged data": png(10, 10, b"no deflate"),
    "png with too little data": png(100, 100, zlib.compress(bytes(20))),
    "gif, half": picture("GIF")[:100],
    "webp, half": picture("WEBP")[:100],
    "tiff, half": picture("TIFF")[:100],
    "tiff whose directory is elsewhere": b"II*\x00" + struct.pack("<I", 1 << 30),
    "bmp, half": picture("BMP")[:60],
    "jpeg 2000, half": picture("JPEG2000")[:100],
    "ppm, its head": b"P6 10 10 255\n",
    "ppm with letters for numbers": b"P6 ten ten 255\n" + bytes(300),
    "avif, its head": b"\x00\x00\x00\x1cftypavif" + bytes(100),
    "bomb: png": png(20_000, 20_000, zlib.compress(bytes(1000))),
    "bomb: png, as large as can be": png(2**31 - 1, 2**31 - 1),
    "bomb: png of one line": png(2_000_000, 1, zlib.compress(bytes(1000))),
    "bomb: text in a png": png(9, 9, zlib.compress(bytes(270)), png_chunk(b"zTXt", b"a\0\0" + ZEROS)),
    "bomb: jpeg": jpeg_of_size(65_000, 65_000),
    "bomb: gif": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + picture("GIF")[10:],
    "bomb: ppm": b"P6 90000 90000 255\n" + bytes(100),
    "bomb: bmp": picture("BMP")[:18] + struct.pack("<ii", 50_000, 50_000) + picture("BMP")[26:],
    "bomb: tiff": picture("TIFF").replace(struct.pack("<HHII", 256, 4, 1, 80), struct.pack("<HHII", 256, 4, 1, 8 * 10**7)),
}  # fmt: skip

QUERIES = [
    "confidence=-0.1", "confidence=1.1", "confidence=nan", "confidence=inf", "confidence=1e999", "confidence=half",
    "confidence=", "confidence=0,5", "confidence=0x1", "max_detections=0", "max_detections=-1", "max_detections=1.5",
    "max_detections=many", "max_detections=10001", "max_detections=" + "9" * 5000, "classes=lion", "classes=", "classes=,,",
    "merge_iou=1.5", "merge_iou=-0.1", "merge_iou=nan", "merge_iou=",
    "classes=3", "classes=-1", "classes=cat,lion", "classes=%00", "classes=%ff", "confidense=0.5", "threshold=0.5",
    "confidence[]=0.5", "=1", "model=toy",
]  # fmt: skip


def part(name, content, head="", boundary="b"):
    return (
        f"--{boundary}\r\n{head or f'Content-Disposition: form-data; name={name}; filename=a.png'}\r\n\r\n".encode()
        + content
        + b"\r\n"
    )


END = b"--b--\r\n"
IMAGE = part('"image"', GOOD)
FORMS = {
    "nothing": (b"", None),
    "only its end": (END, None),
    "without the end": (IMAGE, None),
    "cut in a picture": (IMAGE[:90], None),
    "cut in a head": (IMAGE[:30], None),
    "no form at all": (GOOD, None),
    "another boundary": (IMAGE + END, "multipart/form-data; boundary=c"),
    "without a boundary": (IMAGE + END, "multipart/form-data"),
    "an empty boundary": (IMAGE + END, 'multipart/form-data; boundary=""'),
    "an endless boundary": (IMAGE + END, "multipart/form-data; boundary=" + "b" * 1000),
    "multipart/mixed": (IMAGE + END, "multipart/mixed; boundary=b"),
    "a part without a head": (b"--b\r\n\r\n" + GOOD + b"\r\n" + END, None),
    "a part without a name": (part("", GOOD, "Content-Disposition: form-data; filename=a.png") + END, None),
    "an attachment": (part("", GOOD, "Content-Disposition: attachment; name=a; filename=a.png") + END, None),
    "text alone": (part("", b"0.5", "Content-Disposition: form-data; name=confidence") + END, None),
    "text beside a picture": (IMAGE + part("", b"0.5", "Content-Disposition: form-data; name=confidence") + END, None),
    "an empty file": (part('"image"', b"") + END, None),
    "an empty file beside a picture": (IMAGE + part('"image"', b"") + END, None),
    "a damaged picture beside a good one": (IMAGE + part('"image"', GOOD[:40]) + END, None),
    "a bomb beside a good one": (IMAGE + part('"image"', BODIES["bomb: png"]) + END, None),
    "more pictures than allowed": (IMAGE * 5 + END, None),
    "thousands of parts": (IMAGE[:60] * 9000 + END, None),
    "base64": (part("", GOOD, "Content-Disposition: form-data; name=a\r\nContent-Transfer-Encoding: base64") + END, None),
    "a head without an end": (b"--b\r\nContent-Disposition: form-data; name=" + b"a" * 100_000 + b"\r\n\r\n" + GOOD, None),
    "a hundred lines of head": (part("", GOOD, "\r\n".join(f"X-{i}: 1" for i in range(100))) + END, None),
    "a line without a colon": (part("", GOOD, "Content-Disposition") + END, None),
}  # fmt: skip

HEADERS = {
    "json": {"Content-Type": "application/json"},
    "plain text": {"Content-Type": "text/plain"},
    "video": {"Content-Type": "video/mp4"},
    "nonsense": {"Content-Type": ";;;"},
    "gzip": {"Content-Encoding": "gzip"},
    "brotli, twice": {"Content-Encoding": "br, br"},
    "html wanted": {"Accept": "text/html"},
    "nothing wanted": {"Accept": "*/*;q=0"},
    "another picture wanted": {"Accept": "image/webp"},
}

ADDRESSES = [
    ("GET", "/predict"), ("PUT", "/predict"), ("DELETE", "/predict"), ("PATCH", "/models/toy/predict"), ("POST", "/health"),
    ("POST", "/model"), ("OPTIONS", "/predict"), ("HEAD", "/predict"), ("POST", "/predictions"), ("POST", "/predict/"),
    ("POST", "/models/lion/predict"), ("POST", "/models/%2e%2e/predict"), ("POST", "/models//predict"),
    ("POST", "/models/" + "a" * 5000 + "/predict"), ("POST", "/models/%00/predict"), ("POST", "/models/%ff%fe/predict"),
    ("GET", "/models/lion"), ("GET", "/models/..%2f..%2fetc%2fpasswd"), ("GET", "/page/nothing.js"),
    ("GET", "/page/..%2fapp.py"), ("GET", "/page/%2e%2e/app.py"), ("GET", "/docs"), ("GET", "/redoc"), ("GET", "/.env"),
    ("POST", "/corrections"), ("POST", "/models/toy/reload"), ("POST", "/models/lion/reload"), ("GET", "/stream"),
]  # fmt: skip

HOST = b"Host: localhost\r\n"
RAW = {
    "no http": b"hello\r\n\r\n",
    "tls": bytes.fromhex("16030100a50100") + bytes(60),
    "another version": b"GET /health HTTP/9.9\r\n" + HOST + b"\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "a space in a name": b"GET /health HTTP/1.1\r\n" + HOST + b"X Y: 1\r\n\r\n",
    "zero in a header": b"GET /health HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n",
    "negative length": b"POST /predict HTTP/1.1\r\n" + HOST + b"Content-Length: -5\r\n\r\n",
    "length in words": b"POST /predict HTTP/1.1\r\n" + HOST + b"Content-Length: five\r\n\r\n",
    "two lengths": b"POST /predict HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    "length beside chunks": b"POST /predict HTTP/1.1\r\n" + HOST
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a huge length": b"POST /predict HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n",
    "a wrong chunk": b"POST /predict HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    "chunks beyond the limit": b"POST /predict HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    + (b"80000\r\n" + bytes(0x80000) + b"\r\n") * 5 + b"0\r\n\r\n",
    "an endless head": b"GET /health HTTP/1.1\r\n" + HOST + b"".join(b"X-%d: %s\r\n" % (i, b"y" * 900) for i in range(100)),
    "an endless address": b"GET /" + b"a" * 80_000,
    "connect": b"CONNECT evil.example:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "trace": b"TRACE /health HTTP/1.1\r\n" + HOST + b"\r\n",
}  # fmt: skip


def told(status, headers, body):
    """Check that an answer is a refusal in one sentence, and return that."""
    assert 400 <= status < 500, (status, body)
    assert headers["content-type"].startswith("application/json")
    error = json.loads(body)["error"]
    assert set(error) == {"type", "message"}
    assert re.fullmatch(r"[^\n]{8,400}\.", error["message"]), error["message"]
    assert "Traceback" not in error["message"]
    assert " object at 0x" not in error["message"]
    return error["message"]


def test_there_are_a_hundred_kinds():
    assert len(BODIES) + len(QUERIES) + len(FORMS) + len(HEADERS) + len(ADDRESSES) + len(RAW) >= 100


@pytest.mark.parametrize("kind", BODIES)
def test_bodies(server, kind):
    answer = server.post("/predict", content=BODIES[kind])
    message = told(answer.status_code, answer.headers, answer.content)
    assert (answer.status_code == 413) == (kind.startswith("bomb") and "text" not in kind), message


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query[:40])
def test_parameters(server, query):
    answer = server.post(f"/predict?{query}", content=GOOD)
    told(answer.status_code, answer.headers, answer.content)


@pytest.mark.parametrize("kind", FORMS)
def test_forms(server, kind):
    content, content_type = FORMS[kind]
    answer = server.post(
        "/predict", content=content, headers={"Content-Type": content_type or "multipart/form-data; boundary=b"}
    )
    told(answer.status_code, answer.headers, answer.content)


@pytest.mark.parametrize("kind", HEADERS)
def test_headers(server, kind):
    answer = server.post("/predict", content=GOOD, headers=HEADERS[kind])
    told(answer.status_code, answer.headers, answer.content)


@pytest.mark.parametrize(("method", "address"), ADDRESSES, ids=lambda value: value[:30])
def test_addresses(server, method, address):
    url = httpx.URL(str(server.base_url).rstrip("/")).copy_with(raw_path=address.encode())
    answer = server.request(method, url, content=GOOD if method == "POST" else None)
    if method == "HEAD":
        assert answer.status_code == 405
    else:
        told(answer.status_code, answer.headers, answer.content)


@pytest.mark.parametrize("kind", RAW)
def test_what_is_hardly_http(server, kind):
    with socket.create_connection((server.base_url.host, server.base_url.port), timeout=10) as connection:
        connection.sendall(RAW[kind])
        received = b""
        while b"\r\n\r\n" not in received or not received.endswith((b"}", b"}\r\n")):
            some = connection.recv(65536)
            if not some:
                break
            received += some
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    told(int(lines[0].split()[1]), headers, body)


def test_several_pictures_are_not_drawn(server):
    files = [("image", GOOD), ("image", GOOD)]
    answer = server.post("/predict", files=files, headers={"Accept": "image/jpeg"})
    assert "one" in told(answer.status_code, answer.headers, answer.content)


def test_a_body_is_refused_by_its_stated_size_before_it_is_sent(server):
    """A client that waits for 100 Continue sends nothing."""
    with socket.create_connection((server.base_url.host, server.base_url.port), timeout=10) as connection:
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(head)
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_bomb_is_refused_before_it_is_decoded(server, monkeypatch):
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    answer = server.post("/predict", content=BODIES["bomb: png"])
    assert "20000 x 20000 are 400,000,000 pixels" in told(answer.status_code, answer.headers, answer.content)


def test_the_server_goes_on(server):
    assert server.post("/predict", content=GOOD).status_code == 200
    text = server.get("/metrics").text
    assert 'nextdetr_queue_images{model="toy"} 0.0' in text
    assert 'status="500"' not in text
    assert server.app.state.service._budget.used == 0
