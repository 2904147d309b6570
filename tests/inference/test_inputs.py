"""Images from bytes, tensors, standard input and the web; animations and folders of videos."""

from __future__ import annotations

import io
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from nextdetr.cli.main import run
from nextdetr.errors import DataError
from nextdetr.inference import web
from nextdetr.inference.predictor import Predictor
from nextdetr.inference.sources import Video, find_images
from nextdetr.inference.writers.video import VideoWriter
from nextdetr.pictures import Encoded
from nextdetr.preprocess import Reading, as_image
from tests.helpers import tiny_model
from tests.inference.conftest import CLASSES

BOX = [20, 10, 80, 50]


@pytest.fixture
def predictor(model):
    return Predictor(model, CLASSES, 200, device="cpu")


def png(image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def animation(path, scene, frames=4, **settings):
    scene.save(path, save_all=True, append_images=[scene.rotate(5 * n) for n in range(1, frames)], **settings)
    return path


class TestInMemory:
    def test_bytes_and_opened_files(self, predictor, scene, tmp_path):
        content = png(scene)
        (tmp_path / "a.png").write_bytes(content)
        with (tmp_path / "a.png").open("rb") as file:
            given = [content, bytearray(content), memoryview(content), io.BytesIO(content), file, Encoded(content, "mine")]
            results = list(predictor.stream(given))
        assert [result.path for result in results] == [
            *(f"image-{n}" for n in range(1, 5)),
            str(tmp_path / "a.png"),
            "mine",
        ]
        for result in results:
            np.testing.assert_allclose(result.detections.xyxy[0], BOX, atol=1e-4)

    def test_text_is_refused(self, predictor, tmp_path):
        (tmp_path / "list.txt").write_text("a.png")
        with (tmp_path / "list.txt").open() as file, pytest.raises(DataError, match=r"list\.txt was opened as text"):
            predictor.predict(file)

    def test_a_file_in_memory_is_upright(self, scene):
        exif = Image.Exif()
        exif[0x0112] = 6
        file = io.BytesIO()
        scene.save(file, "JPEG", exif=exif)
        assert as_image(file.getvalue()).size == (100, 200)

    def test_what_is_no_image(self, predictor, scene):
        content = png(scene)
        for bad, message in (
            (b"", "image-2 is empty"),
            (b"x" * 99, "image-2 is not an image"),
            (content[: len(content) // 2], "image-2 cannot"),
        ):
            good, result = predictor.stream([scene, bad])
            assert good.problem is None
            assert message in result.problem

    def test_too_large(self):
        content = png(Image.new("RGB", (200, 100)))
        with pytest.raises(DataError, match="image is too large: 200 x 100"):
            as_image(content, Reading(max_pixels=100))


class TestTensors:
    def test_channels_first(self, predictor, scene):
        array = torch.from_numpy(np.asarray(scene).copy())
        planes = array.permute(2, 0, 1)
        given = [planes, planes.float() / 255, planes.half() / 255, planes.bfloat16() / 255, planes[:1], planes[0]]
        given.append((planes.float() / 255).requires_grad_())
        for (found,) in map(predictor.predict, given):
            np.testing.assert_allclose(found.xyxy[0], BOX, atol=1e-4)
        assert len(predictor.predict(list(torch.stack([planes] * 3)))) == 3

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((100, 200, 3), r"channels-last: pass tensor\.permute"),
            ((3, 200, 3), "channels-last"),
            ((2, 3, 100, 200), r"pass a batch as list\(tensor\)"),
            ((4, 100, 200), r"\[3, H, W\] \(RGB\).*not \[4, 100, 200\]"),
            ((3, 0, 200), "not"),
        ],
    )
    def test_other_shapes_are_refused(self, predictor, shape, message):
        with pytest.raises(DataError, match=message):
            predictor.predict(torch.zeros(shape))

    def test_other_ranges_are_refused(self, predictor):
        with pytest.raises(DataError, match="0 to 1; this one holds values from -2"):
            predictor.predict(torch.full((3, 8, 8), -2.0))
        with pytest.raises(DataError, match="divide it by its range"):
            predictor.predict(torch.full((3, 8, 8), 255.0))
        with pytest.raises(DataError, match="int64"):
            predictor.predict(torch.ones((3, 8, 8), dtype=torch.int64))


class Answers(BaseHTTPRequestHandler):
    content = b""

    def do_GET(self):
        kinds = {"/photo.png": "image/png", "/page": "text/html; charset=utf-8"}
        kinds["/camera"] = "multipart/x-mixed-replace; boundary=x"
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path[len("/to/") :])
            self.end_headers()
        elif self.path.split("?")[0] in kinds:
            self.send_response(200)
            self.send_header("Content-Type", kinds[self.path.split("?")[0]])
            self.end_headers()
            self.wfile.write(self.content)
        elif self.path == "/slow":
            threading.Event().wait(2)
        else:
            self.send_error(404)

    def log_message(self, *rest):
        pass


@pytest.fixture
def address(scene, monkeypatch):
    monkeypatch.setattr(Answers, "content", png(scene))
    monkeypatch.setenv("NO_PROXY", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class TestWeb:
    def test_an_image_is_fetched(self, predictor, address):
        results = list(predictor.stream([f"{address}/photo.png?size=[1]*", f"{address}/to/{address}/photo.png"]))
        assert [result.path for result in results] == [
            f"{address}/photo.png?size=[1]*",
            f"{address}/to/{address}/photo.png",
        ]
        for result in results:
            np.testing.assert_allclose(result.detections.xyxy[0], BOX, atol=1e-4)

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("/none.png", "the server answers 404"),
            ("/page", "is a web page, not an image"),
            ("/camera", "is a camera's stream: name its address that begins with rtsp:// or ends in .mjpg"),
            ("/to/file:///etc/passwd", "neither http:// nor https://"),
            ("/to/ftp://127.0.0.1/x.png", "neither http:// nor https://"),
        ],
    )
    def test_what_is_no_image_has_a_sentence(self, predictor, address, scene, path, message):
        _, result = predictor.stream([scene, address + path])
        assert message in result.problem

    def test_limits(self, predictor, address, scene, monkeypatch):
        monkeypatch.setattr(web, "SILENCE", 0.3)
        _, result = predictor.stream([scene, f"{address}/slow"])
        assert "no answer within 0.3 seconds" in result.problem
        monkeypatch.setattr(web, "MAX_BYTES", 100)
        with pytest.raises(DataError, match="is larger than 0 MB"):
            predictor.predict(f"{address}/photo.png")

    def test_nobody_there(self, predictor, monkeypatch):
        monkeypatch.setenv("NO_PROXY", "*")
        with pytest.raises(DataError, match="the server refuses the connection"):
            predictor.predict("http://127.0.0.1:9/a.png")
        with pytest.raises(DataError, match="no such server, or no network"):
            predictor.predict("http://no-such-host.invalid/a.png")
        with pytest.raises(DataError, match="http:// and https:// addresses only"):
            predictor.predict("file:///etc/passwd")

    def test_passwords_are_not_shown(self):
        (item,) = find_images("https://me:secret@example.org/a.png")
        assert item.path == "https://example.org/a.png"
        assert item.image.address == "https://me:secret@example.org/a.png"


class TestAnimations:
    @pytest.mark.parametrize("ending", ["gif", "webp"])
    def test_frames_count_as_images(self, predictor, scene, tmp_path, ending):
        path = animation(tmp_path / f"a.{ending}", scene, duration=[100, 200, 300, 100])
        for source in (path, path.read_bytes()):
            results = list(predictor.stream(source))
            assert [result.frame for result in results] == [0, 1, 2, 3]
            np.testing.assert_allclose([result.seconds for result in results], [0, 0.1, 0.3, 0.6])
            assert [result.tags.frames for result in results] == [4] * 4
            np.testing.assert_allclose(results[0].detections.xyxy[0], BOX, atol=2)
            assert [result.origin.in_memory for result in results] == [source is not path] * 4
            again = [result.origin.image() for result in results]
            assert all(
                np.array_equal(*map(np.asarray, pair)) for pair in zip(again, (r.image for r in results), strict=True)
            )
        assert not predictor.skipped

    def test_where_no_videos_are_taken_the_first_frame_is(self, predictor, scene, tmp_path):
        path = animation(tmp_path / "a.gif", scene)
        (result,) = predictor.stream(path, animations=False)
        assert result.frame is None
        assert predictor.skipped == {"frames": 3}

    def test_one_frame_is_an_image(self, predictor, scene, tmp_path):
        scene.save(tmp_path / "a.gif")
        (result,) = predictor.stream(tmp_path / "a.gif")
        assert result.frame is None

    def test_a_damaged_one_ends_with_a_sentence(self, predictor, scene, tmp_path):
        noise = np.random.default_rng(0).integers(0, 256, (3, 100, 200, 3), np.uint8)
        first, *rest = (Image.fromarray(pixels) for pixels in noise)
        first.save(tmp_path / "a.gif", save_all=True, append_images=rest)
        (tmp_path / "a.gif").write_bytes((tmp_path / "a.gif").read_bytes()[:-2000])
        good, *frames, last = predictor.stream([scene, tmp_path / "a.gif"])
        assert good.problem is None
        assert [frame.frame for frame in frames] == [0, 1]
        assert "a.gif: frame 2 cannot be read" in last.problem


def clip(path, frames=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, 64, 48, 10) as writer:
        for number in range(frames):
            writer.write(np.full((48, 64, 3), 200, np.uint8), number / 10)
    return path


class TestFoldersOfVideos:
    def test_images_and_videos_in_the_order_of_their_names(self, scene, tmp_path):
        clip(tmp_path / "b.mp4")
        for name in ("a.png", "c.png"):
            scene.save(tmp_path / name)
        (tmp_path / "app.ts").write_text("export const a = 1\n")
        (tmp_path / ".hidden.mp4").write_bytes(b"x")
        items = find_images(tmp_path, videos=True)
        assert [item.path.rpartition("/")[2] for item in items] == ["a.png", "b.mp4", "c.png"]
        assert isinstance(items[1].image, Video)
        assert [item.path for item in find_images(f"{tmp_path}/b*", videos=True)] == [str(tmp_path / "b.mp4")]

    def test_only_videos_and_subfolders(self, predictor, tmp_path):
        clip(tmp_path / "x/1/a.mp4")
        with pytest.raises(DataError, match="holds no image or video; its subfolders do"):
            find_images(tmp_path / "x", videos=True)
        results = list(predictor.stream(tmp_path / "x", recursive=True))
        assert [(result.frame, result.width) for result in results] == [(0, 64), (1, 64), (2, 64)]

    def test_where_they_are_not_taken_they_are_counted(self, scene, tmp_path):
        scene.save(tmp_path / "a.png")
        clip(tmp_path / "b.mp4")
        skipped = Counter()
        assert len(find_images(tmp_path, skipped=skipped)) == 1
        assert skipped == {"videos": 1}
        (tmp_path / "a.png").unlink()
        with pytest.raises(DataError, match=r"holds no image; skipped: 1 video \(not supported here"):
            find_images(tmp_path)


class Stdin(io.BytesIO):
    def isatty(self):
        return False

    @property
    def buffer(self):
        return self


class TestStandardInput:
    def test_an_image(self, tmp_path, scene, monkeypatch, capsys):
        model = str(tiny_model(tmp_path))
        monkeypatch.setattr("sys.stdin", Stdin(png(scene)))
        assert run(["predict", model, "-", "--output", str(tmp_path / "out"), "--json"]) == 0
        (image,) = json.loads(capsys.readouterr().out)["images"]
        assert (image["path"], image["width"]) == ("stdin", 200)
        assert (tmp_path / "out" / "images" / "stdin.jpg").is_file()

    def test_nothing(self, tmp_path, monkeypatch, capsys):
        model = str(tiny_model(tmp_path))
        monkeypatch.setattr("sys.stdin", Stdin(b""))
        assert run(["predict", model, "-", "--output", str(tmp_path / "out")]) == 2
        assert "standard input, which is empty" in capsys.readouterr().err
        monkeypatch.setattr(Stdin, "isatty", lambda self: True)
        assert run(["predict", model, "-", "--output", str(tmp_path / "out")]) == 2
        assert "nothing is sent there" in capsys.readouterr().err
