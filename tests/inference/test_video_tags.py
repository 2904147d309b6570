"""Metadata of video streams: rotation, times, colours, pixel shape, and changes within a video."""

from __future__ import annotations

import json
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace
from PIL import Image, ImageOps

from nextdetr.config import PredictConfig
from nextdetr.inference.pipeline import predict_stream
from nextdetr.inference.predictor import Predictor
from nextdetr.inference.sources import Video, as_video
from nextdetr.inference.tags import VideoTags
from nextdetr.inference.video import read_frames
from nextdetr.inference.writers.video import VideoWriter
from tests.inference.conftest import CLASSES


def scene(width: int = 96, height: int = 64) -> np.ndarray:
    """Black, with a bright rectangle in the upper left and a blue edge on the right: no two orientations look alike."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[8 : height // 2, 8 : width // 2] = 255
    pixels[:, -16:, 2] = 200
    return pixels


def encode(
    path, pictures, *, codec="libx264", container=None, rate=10, turn=None, aspect=Fraction(1), tags=None, pix="yuv420p"
):
    """Write pictures; ``turn`` is (degrees counter-clockwise, mirrored, upside down), ``tags`` (matrix, range)."""
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix
        if turn is not None:
            stream.set_display_rotation(*turn)
        stream.codec_context.sample_aspect_ratio = aspect
        convert = {}
        if tags is not None:
            stream.codec_context.colorspace, stream.codec_context.color_range = tags
            convert = {
                "dst_colorspace": Colorspace.ITU709 if tags[0] == 1 else Colorspace.ITU601,
                "dst_color_range": tags[1],
            }
        for number, pixels in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix, **convert)
            frame.pts, frame.time_base = number, Fraction(1, rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def frames(path):
    return list(read_frames(Video(str(path), str(path))))


def run(model, source, **settings):
    return predict_stream(Predictor(model, CLASSES, 200, device="cpu"), source, PredictConfig(**settings))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_frames_stand_upright(tmp_path, degrees, mirrored):
    path = encode(tmp_path / "phone.mp4", [scene()] * 2, turn=(degrees, mirrored, False))
    shown = Image.fromarray(scene()).rotate(degrees, expand=True)
    shown = np.asarray(ImageOps.mirror(shown) if mirrored else shown)
    frame = frames(path)[0]
    assert frame.pixels.shape == shown.shape
    assert np.abs(frame.pixels.astype(int) - shown).mean() < 6


def test_a_phone_clip_is_upright_in_json_boxes_and_the_written_video(model, tmp_path):
    path = encode(tmp_path / "phone.mp4", [scene()] * 3, turn=(-90, False, False), aspect=Fraction(4, 3))
    results = list(run(model, str(path), output=tmp_path / "out", save=("images", "json"), confidence=0.5))
    line = json.loads((tmp_path / "out" / "videos" / "phone.jsonl").read_text().splitlines()[0])
    assert (line["width"], line["height"]) == (64, 96)
    np.testing.assert_allclose(results[0].detections.xyxy, [[32, 8, 56, 48]], atol=2)  # turned clockwise: (64 - y, x)
    with av.open(str(tmp_path / "out" / "videos" / "phone.mp4")) as drawn:
        stream = drawn.streams.video[0]
        assert (stream.width, stream.height, stream.sample_aspect_ratio) == (64, 96, Fraction(3, 4))
        assert float(stream.average_rate) == pytest.approx(10, rel=0.01)
    assert np.abs(frames(tmp_path / "out" / "videos" / "phone.mp4")[0].pixels[20, :20].astype(int)).max() < 60


@pytest.mark.parametrize("matrix", [1, 6])
@pytest.mark.parametrize("span", [1, 2])
def test_colours_are_read_and_written_by_the_tags(tmp_path, matrix, span):
    colour = np.full((64, 64, 3), (200, 60, 30), np.uint8)
    path = encode(tmp_path / "a.mp4", [colour] * 2, tags=(matrix, span))
    (frame, _) = frames(path)
    assert np.abs(frame.pixels[32, 32].astype(int) - (200, 60, 30)).max() <= 3
    assert (frame.tags.matrix, frame.tags.full_range) == (matrix, span == 2)
    with VideoWriter(tmp_path / "b.mp4", 64, 64, 10, frame.tags) as writer:
        writer.write(frame.pixels, 0.0)
    (again,) = frames(tmp_path / "b.mp4")
    assert (again.tags.matrix, again.tags.full_range) == (matrix, span == 2)
    assert np.abs(again.pixels[32, 32].astype(int) - (200, 60, 30)).max() <= 4


def test_a_video_without_tags_has_the_colours_that_players_take(tmp_path):
    assert VideoTags().matrix_for(1280, 720) == 1
    assert VideoTags().matrix_for(720, 576) == 6
    assert VideoTags(matrix=0).matrix_for(64, 64) == 6  # RGB itself; what is written of it is not
    assert VideoTags(matrix=9).matrix_for(64, 64) == 9
    colour = np.full((608, 32, 3), (200, 60, 30), np.uint8)
    path = encode(tmp_path / "tall.mp4", [colour] * 2, tags=(1, 1))
    bare = tmp_path / "bare.mp4"
    with av.open(str(path)) as source, av.open(str(bare), "w") as file:  # the same luma and chroma, without tags
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 608, "yuv420p"
        for picture in source.decode(video=0):
            picture.colorspace, picture.color_range = 2, 0
            file.mux(stream.encode(picture))
        file.mux(stream.encode(None))
    assert frames(bare)[0].tags.matrix == 2
    assert np.abs(frames(bare)[0].pixels[300, 16].astype(int) - (200, 60, 30)).max() <= 5


def test_a_source_that_changes_its_size(model, tmp_path):
    encode(tmp_path / "a.h264", [scene()] * 3, container="h264")
    encode(tmp_path / "b.h264", [scene(64, 96)] * 3, container="h264")
    path = tmp_path / "both.h264"
    path.write_bytes((tmp_path / "a.h264").read_bytes() + (tmp_path / "b.h264").read_bytes())
    results = list(run(model, str(path), output=tmp_path / "out", save=("images", "json"), confidence=0.5))
    assert [(r.width, r.height) for r in results] == [(96, 64)] * 3 + [(64, 96)] * 3
    np.testing.assert_allclose(results[4].detections.xyxy, [[8, 8, 32, 48]], atol=2)
    drawn = frames(tmp_path / "out" / "videos" / "both.mp4")
    assert [frame.pixels.shape for frame in drawn] == [(64, 96, 3)] * 6
    assert drawn[5].pixels[:, :20].max() < 30, "the tall frame is not in the middle, between black bars"
    assert drawn[5].pixels[:, 26:48].max() > 200


@pytest.mark.parametrize(
    ("name", "codec", "container", "pix"),
    [
        ("a.h264", "libx264", "h264", "yuv420p"),
        ("a.mjpeg", "mjpeg", "mjpeg", "yuvj420p"),
        ("a.3gp", "mpeg4", "3gp", "yuv420p"),
        ("A.VOB", "mpeg2video", "vob", "yuv420p"),
        ("a.m2v", "mpeg2video", "mpeg2video", "yuv420p"),
    ],
)
def test_other_containers(tmp_path, name, codec, container, pix):
    path = encode(tmp_path / name, [scene()] * 5, codec=codec, container=container, rate=25, pix=pix)
    assert as_video(path) == Video(str(path), str(path))
    np.testing.assert_allclose([frame.seconds for frame in frames(path)], np.arange(5) / 25, atol=1e-3)


def test_times_rise_where_the_stream_begins_anew(tmp_path):
    encode(tmp_path / "a.ts", [scene()] * 30)
    path = tmp_path / "both.ts"
    path.write_bytes((tmp_path / "a.ts").read_bytes() * 2)
    seconds = [frame.seconds for frame in frames(path)]
    assert len(seconds) == 60
    np.testing.assert_allclose(seconds, np.arange(60) / 10, atol=1e-3)
