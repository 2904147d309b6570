"""Pictures that a camera sends over HTTP one by one, as MJPEG."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from urllib.request import urlopen

import pytest
from PIL import Image

from nextdetr.inference.frames import frames_of
from nextdetr.inference.sources import find_images

FRAMES = 12


class Pictures(BaseHTTPRequestHandler):
    """Twelve pictures: a recording, or as a camera sends them, ten a second."""

    def do_GET(self):
        encoded = []
        for number in range(FRAMES):
            buffer = BytesIO()
            Image.new("RGB", (64, 48), (20 * number, 0, 0)).save(buffer, "JPEG")
            encoded.append(buffer.getvalue())
        pushed = self.path == "/camera.mjpg"
        self.send_response(200)
        kind = "multipart/x-mixed-replace; boundary=x" if pushed else "video/x-motion-jpeg"
        self.send_header("Content-Type", kind)
        if not pushed:
            self.send_header("Content-Length", str(sum(map(len, encoded))))
        self.end_headers()
        for content in encoded:
            head = b"--x\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(content)
            self.wfile.write(head + content + b"\r\n" if pushed else content)
            time.sleep(0.1 * pushed)

    def log_message(self, *rest):
        pass


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_pictures_that_a_camera_sends_are_live(web):
    """They were all kept, and results came later and later; each counted as 1/25 of a second."""
    (item,) = find_images(f"{web}/camera.mjpg", videos=True)
    frames = []
    for frame in frames_of(item):
        frames.append(frame)
        time.sleep(0.4)  # of four frames
    assert all(frame.live for frame in frames)
    assert len(frames) < FRAMES
    first, last = frames[0], frames[-1]
    assert (last.seconds - first.seconds) / (last.frame - first.frame) > 0.06


def test_a_recording_from_the_web_is_whole(web):
    (item,) = find_images(f"{web}/recording.mjpg", videos=True)
    frames = list(frames_of(item))
    assert [frame.frame for frame in frames] == list(range(FRAMES))
    assert not any(frame.live for frame in frames)


def test_a_file_of_what_a_camera_sent_is_whole(web, tmp_path):
    """It was taken for the camera: most of its frames were dropped, and the others came at the times of decoding."""
    file = tmp_path / "camera.mjpg"
    with urlopen(f"{web}/camera.mjpg") as answer:
        file.write_bytes(answer.read())
    (item,) = find_images(file, videos=True)
    frames = list(frames_of(item))
    assert [frame.frame for frame in frames] == list(range(FRAMES))
    assert not any(frame.live for frame in frames)
    assert [frame.seconds for frame in frames] == pytest.approx([number / 25 for number in range(FRAMES)])
