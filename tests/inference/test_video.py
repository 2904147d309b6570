from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
from av.error import InvalidDataError
from PIL import Image

from nextdetr.config import PredictConfig
from nextdetr.errors import DataError, WriteError
from nextdetr.inference import video
from nextdetr.inference.outputs import save_predictions
from nextdetr.inference.pipeline import predict_stream
from nextdetr.inference.predictor import Prediction, Predictor
from nextdetr.inference.sources import Video, as_video, find_images
from nextdetr.inference.video import read_frames
from nextdetr.inference.writers.part import PartFile
from nextdetr.inference.writers.video import VideoWriter
from tests.inference.conftest import CLASSES

FRAMES = 12


@pytest.fixture
def clip(tmp_path):
    """200×100 at 10 frames a second: the bright rectangle (20 + 5 n, 10)-(80 + 5 n, 50) in frame n."""
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 200, 100, 10) as writer:
        for number in range(FRAMES):
            pixels = np.zeros((100, 200, 3), np.uint8)
            pixels[10:50, 20 + 5 * number : 80 + 5 * number] = 255
            writer.write(pixels, number / 10)
    return path


def run(model, source, **settings):
    return predict_stream(Predictor(model, CLASSES, 200, device="cpu"), source, PredictConfig(**settings))


def test_what_is_written_is_read_again(clip):
    frames = list(read_frames(Video("clip", str(clip))))
    assert [frame.index for frame in frames] == list(range(FRAMES))
    np.testing.assert_allclose([frame.seconds for frame in frames], np.arange(FRAMES) / 10, atol=1e-3)
    assert frames[3].pixels.shape == (100, 200, 3)
    assert frames[3].pixels[30, 60].min() > 200
    assert frames[3].pixels[30, 20].max() < 50
    assert not clip.with_name("clip.part.mp4").exists()


def test_a_killed_writer_leaves_a_video_to_play(tmp_path):
    writer = VideoWriter(tmp_path / "x.mp4", 64, 48, 25)
    for number in range(120):
        writer.write(np.full((48, 64, 3), number, np.uint8), number / 25)
    part = tmp_path / "x.part.mp4"  # never closed, as after a kill
    assert not (tmp_path / "x.mp4").exists()
    assert len(list(read_frames(Video("x", str(part))))) >= 40
    writer.commit()
    assert len(list(read_frames(Video("x", str(tmp_path / "x.mp4"))))) == 120


@pytest.mark.parametrize("size", [(63, 49), (2, 2)])
def test_odd_sizes_lose_a_row(tmp_path, size):
    width, height = size
    with VideoWriter(tmp_path / "odd.mp4", width, height) as writer:
        writer.write(np.zeros((height, width, 3), np.uint8), 0.0)
    (frame,) = read_frames(Video("odd", str(tmp_path / "odd.mp4")))
    assert frame.pixels.shape == (height - height % 2, width - width % 2, 3)


def test_predictions_frame_by_frame(model, clip, tmp_path):
    output = tmp_path / "out"
    results = list(run(model, str(clip), output=output, save=("images", "json", "yolo"), confidence=0.5, batch_size=4))
    assert [r.frame for r in results] == list(range(FRAMES))
    assert {r.path for r in results} == {str(clip)}
    np.testing.assert_allclose(results[5].detections.xyxy, [[45, 10, 105, 50]], atol=2)
    assert max(model.batches) == 4
    lines = [json.loads(line) for line in (output / "videos" / "clip.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(FRAMES))
    assert lines[2]["seconds"] == pytest.approx(0.2, abs=1e-3)
    assert len(list((output / "labels").glob("clip_*.txt"))) == FRAMES
    assert sorted(path.name for path in output.iterdir()) == ["labels", "videos"]
    drawn = list(read_frames(Video("out", str(output / "videos" / "clip.mp4"))))
    assert len(drawn) == FRAMES
    assert np.abs(drawn[0].pixels.astype(int) - next(iter(read_frames(Video("c", str(clip))))).pixels).max() > 50


def test_pictures_and_videos_together(model, clip, scene, tmp_path):
    scene.save(tmp_path / "scene.png")
    results = list(run(model, [tmp_path / "scene.png", clip], output=tmp_path / "out", save=("images", "json")))
    assert [r.frame for r in results] == [None, *range(FRAMES)]
    assert (tmp_path / "out" / "images" / "scene.jpg").is_file()
    assert {row["file_name"] for row in json.loads((tmp_path / "out" / "predictions.json").read_text())} == {
        str(tmp_path / "scene.png")
    }


def test_a_run_that_is_left_keeps_what_it_has(model, clip, tmp_path):
    stream = run(model, str(clip), output=tmp_path / "out", save=("images", "json"), batch_size=2)
    for _ in range(5):
        next(stream)
    stream.close()  # as Ctrl-C does
    assert sorted(path.name for path in (tmp_path / "out" / "videos").iterdir()) == ["clip.part.jsonl", "clip.part.mp4"]
    assert len((tmp_path / "out" / "videos" / "clip.part.jsonl").read_text().splitlines()) == 5
    assert len(list(read_frames(Video("out", str(tmp_path / "out" / "videos" / "clip.part.mp4"))))) == 5
    assert not [thread for thread in threading.enumerate() if thread.name == "nextdetr-decode"]


def test_a_video_that_is_left_is_not_called_damaged(tmp_path, caplog, monkeypatch):
    path = noisy(tmp_path / "long.mp4")
    monkeypatch.setattr(video, "AHEAD", 1)  # so that frames are left when the reader goes
    frames = read_frames(Video("clip", str(path)))
    next(frames)
    frames.close()
    assert not caplog.messages


def test_a_damaged_video_ends_and_says_so(model, tmp_path, caplog):
    path = tmp_path / "long.mp4"
    generator = np.random.default_rng(0)
    with VideoWriter(path, 200, 100, 10) as writer:
        for number in range(150):
            writer.write(generator.integers(0, 255, (100, 200, 3), dtype=np.uint8), number / 10)
    content = path.read_bytes()
    (tmp_path / "short.mp4").write_bytes(content[: len(content) * 2 // 3])
    seen = list(run(model, str(tmp_path / "short.mp4"), confidence=0.5))
    assert 50 <= len(seen) < 150
    hole = bytearray(content)
    middle = len(hole) // 2
    hole[middle : middle + 3000] = bytes(generator.integers(0, 255, 3000, dtype=np.uint8))
    (tmp_path / "hole.mp4").write_bytes(bytes(hole))
    assert len(list(run(model, str(tmp_path / "hole.mp4"), confidence=0.5))) >= 50


def noisy(path: Path) -> Path:
    """Write 40 frames at 10 a second, with FFmpeg's usual options for the container."""
    generator = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flv1" if path.suffix == ".flv" else "mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(40):
            pixels = generator.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["long.mkv", "long.flv"])
def test_a_cut_file_without_a_number_of_frames_says_so(tmp_path, caplog, name):
    path = noisy(tmp_path / name)
    assert len(list(read_frames(Video("whole", str(path))))) == 40
    assert not caplog.messages
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert len(list(read_frames(Video("cut", str(path))))) < 30
    assert any("of its 4.0 seconds" in message for message in caplog.messages), caplog.messages


@pytest.mark.parametrize("content", [b"", b"no video at all", b"\x00\x00\x00\x18ftypmp42"])
def test_no_video(model, tmp_path, content):
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.mp4"):
        list(run(model, str(path)))
    good = Image.new("RGB", (50, 50), "white")
    results = list(run(model, [good, str(path)]))  # the others are looked at all the same
    assert [r.problem is None for r in results] == [True, False]


def test_sound_is_no_video(model, tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match=r"no picture"):
        list(read_frames(Video("sound", str(path))))


def test_a_live_source_skips_what_is_too_late(clip):
    frames = []
    for frame in read_frames(Video("live", str(clip), live=True)):
        frames.append(frame.index)
        time.sleep(0.05)
    assert frames[-1] == FRAMES - 1
    assert len(frames) < FRAMES
    assert frames == sorted(frames)


def test_a_live_source_is_not_decoded_in_frames_at_once(clip):
    """With a thread a frame, each frame comes as many frames later."""
    for live, kind in ((True, "SLICE"), (False, "AUTO")):
        with video._open(Video("clip", str(clip), live=live)) as container:
            assert container.streams.video[0].thread_type.name == kind


class Camera:
    """The clip as a camera shows it: now and then it has no picture yet, and in the end it may be pulled out."""

    def __init__(self, container, end=None):
        self.container, self.end, self.asked = container, end, 0
        container.streams.video[0].thread_type = "NONE"  # frames come out at once

    def __getattr__(self, name):
        return getattr(self.container, name)

    def demux(self, stream):
        for packet in self.container.demux(stream):
            self.asked += 1
            yield packet
            if self.asked % 3 == 0:
                raise av.error.BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
            if self.asked > 7 and self.end is not None:
                raise self.end


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (None, "the source ended after 12 frames"),
        (InvalidDataError(1094995529, "Invalid data found"), r"broke off after \d+ frames \(invalid data found\)"),
        (OSError(errno.EIO, "Input/output error"), r"broke off after \d+ frames \(input/output error\)"),
    ],
)
def test_a_camera_without_a_picture_is_asked_again_and_its_end_is_told(clip, monkeypatch, caplog, end, told):
    opened = video._open
    monkeypatch.setattr(video, "_open", lambda source: Camera(opened(source), end))
    monkeypatch.setattr(video, "AHEAD_LIVE", 100)
    seen = [frame.index for frame in read_frames(Video("camera 0", str(clip), live=True))]
    assert seen == list(range(len(seen)))
    assert len(seen) == FRAMES if end is None else 0 < len(seen) < FRAMES
    (message,) = caplog.messages
    assert re.fullmatch(f"camera 0: {told}", message)


def test_a_file_is_not_asked_again(clip, monkeypatch, caplog):
    opened = video._open
    monkeypatch.setattr(video, "_open", lambda source: Camera(opened(source)))
    assert len(list(read_frames(Video("clip", str(clip))))) <= 3
    assert "broke off after" in caplog.text


def test_what_is_a_video(tmp_path, clip):
    assert as_video(clip) == Video(str(clip), str(clip))
    assert as_video("0").live
    assert as_video("0").name == "camera 0"
    assert as_video("rtsp://host/stream").live
    assert as_video("http://[host/a.mp4") is None
    assert not as_video("https://host/a.mp4?x=1").live
    (tmp_path / "7").write_bytes(b"")
    assert as_video(str(tmp_path / "7")) is None
    for other in ("photo.jpg", "https://host/a.jpg", tmp_path, "nowhere.mp4"):
        assert as_video(other) is None
    with pytest.raises(DataError, match="no videos"):
        find_images(str(clip))
    with pytest.raises(DataError, match=r"no such file"):
        find_images("nowhere.mp4", videos=True)


@pytest.mark.parametrize("scheme", ["rtsp", "https"])
def test_a_password_goes_to_the_camera_only(scheme):
    video = as_video(f"{scheme}://admin:secret@camera.local:554/live.mp4")
    assert video.source == f"{scheme}://admin:secret@camera.local:554/live.mp4"
    assert video.name == f"{scheme}://camera.local:554/live.mp4"
    (item,) = find_images(video.source, videos=True)
    assert item.path == video.name  # as results, lines and messages have it
    with pytest.raises(DataError) as refused:
        find_images(video.source)
    assert "secret" not in str(refused.value)


def test_a_stream_that_does_not_answer_is_given_up(model, monkeypatch):
    monkeypatch.setattr(video, "TIMEOUT", 0.5)
    started = time.monotonic()
    with pytest.raises(DataError, match=r"rtsp://127\.0\.0\.1.*; check address and network"):
        list(run(model, "rtsp://127.0.0.1:9/none"))
    assert time.monotonic() - started < 20


@pytest.fixture
def small_disk():
    """Files of more than 20,000 bytes cannot be written."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def noise(count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (100, 200, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize("kind", ["images", "json"])
def test_a_full_disk_ends_the_run(model, tmp_path, small_disk, kind):
    pictures = [Image.fromarray(pixels) for pixels in noise(12)]
    frames = [
        Prediction("a.mp4", 200, 100, Predictor(model, CLASSES, 200).nothing(), image, None, n, n / 10)
        for n, image in enumerate(pictures * (1 if kind == "images" else 40))
    ]
    with pytest.raises(WriteError, match=r"a\.(mp4|jsonl): cannot be written \(File too large\)"):
        list(save_predictions(frames, tmp_path, [kind]))
    assert [path.name for path in (tmp_path / "videos").iterdir()] in (["a.part.mp4"], ["a.part.jsonl"])


def test_what_the_disk_has_not_kept_gets_no_name(tmp_path, monkeypatch):
    def forgetful(self, data):
        return len(data) if self.tell() > 20_000 else write(self, data)

    write = PartFile.write
    monkeypatch.setattr(PartFile, "write", forgetful)
    writer = VideoWriter(tmp_path / "x.mp4", 200, 100)
    for number, pixels in enumerate(noise(12)):
        writer.write(pixels, number / 10)
    with pytest.raises(WriteError, match="of 12 frames"):
        writer.commit()
    assert [path.name for path in tmp_path.iterdir()] == ["x.part.mp4"]


def test_two_processes_never_write_one_video(tmp_path):
    with VideoWriter(tmp_path / "x.mp4", 64, 48) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8), 0.0)
        size = (tmp_path / "x.part.mp4").stat().st_size
        code = (
            "import sys; from pathlib import Path; from nextdetr.inference.writers.part import PartFile\n"
            "try: PartFile(Path(sys.argv[1]))\n"
            "except Exception as error: print(type(error).__name__, error)"
        )
        said = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "x.mp4")], capture_output=True, text=True, check=True
        )
        assert said.stdout.startswith("ConfigError")
        assert "another process is writing it" in said.stdout
        assert (tmp_path / "x.part.mp4").stat().st_size >= size
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]
    PartFile(tmp_path / "x.mp4").abort(keep=False)
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]
