"""Counts and progress of videos."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest

from nextdetr.cli import progress
from nextdetr.cli.main import run
from nextdetr.cli.progress import VideoProgress
from nextdetr.inference import tally
from nextdetr.inference.moving import Video
from nextdetr.inference.tags import VideoTags
from nextdetr.inference.tally import Tally
from nextdetr.inference.video import read_frames
from nextdetr.inference.writers.video import VideoWriter
from tests.helpers import tiny_model
from tests.inference.test_tracking import frame


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by half a second each time it is looked at."""
    now = [0.0]

    def monotonic():
        now[0] += 0.5
        return now[0]

    monkeypatch.setattr(tally.time, "monotonic", monotonic)
    return now


def tracked(number, tracks, path="a.mp4", counted=None, expected=10):
    given = frame(number, [[0, 0, 9, 9]] * len(tracks), [0.9] * len(tracks), path)
    given.detections.tracker_id = np.array(tracks, np.int64)
    return replace(given, counted=counted, tags=VideoTags(25, frames=expected))


def test_each_video_is_counted(clock):
    counts = Tally()
    given = [
        tracked(0, [1, -1]),
        tracked(1, [1, 2]),
        tracked(2, []),
        tracked(0, [5], "b.mp4", expected=0),
        frame(None, [], [], "c.png"),
    ]
    seen = [counts.add(item) for item in given]
    assert seen[-1] is None
    first, second = counts.videos
    assert (first.frames, first.expected, dict(first.detections), dict(first.tracks)) == (3, 10, {"car": 4}, {"car": 2})
    assert (second.frames, second.left, dict(second.tracks)) == (1, None, {"car": 1})
    # Three frames: 0.5 s from beginning to the first one, and 0.5 s from each to the next.
    assert first.rate == pytest.approx(2 / first.seconds)
    assert first.left == pytest.approx(7 / first.rate)
    assert first.to_json() | {"seconds": 0} == {
        "path": "a.mp4", "frames": 3, "seconds": 0, "detections": {"car": 4}, "tracks": {"car": 2},
    }  # fmt: skip


def test_a_track_counts_once_by_the_class_that_it_had_most_often(clock):
    counts = Tally()
    for number, name in enumerate(["van", "car", "car"]):
        item = tracked(number, [7])
        item.detections.data["class_name"] = np.array([name])
        counts.add(item)
    assert dict(counts.videos[0].tracks) == {"car": 1}
    assert dict(counts.videos[0].detections) == {"car": 2, "van": 1}


def test_the_lines_at_the_end(clock):
    counts = Tally()
    for number, inside in enumerate([1, 3, 2]):
        counts.add(tracked(number, [1], counted={"lines": [{"in": number, "out": 1}], "zones": [inside, 0]}))
    assert counts.videos[0].to_json()["counted"] == {"lines": [{"in": 2, "out": 1}], "zones": [2, 0], "zones_most": [3, 0]}
    first, second = counts.videos[0].lines()
    assert re.fullmatch(r"a\.mp4: 3 frames \([\d.]+ frames a second\); 3 car in all frames together", first)
    assert second == "  tracks: 1 car; line 1: 2 in, 1 out; zone 1: 3 at most; zone 2: 0 at most"
    plain = Tally()
    plain.add(frame(0, [], []))
    assert list(plain.videos[0].lines()) == ["a.mp4: 1 frame; nothing in all frames together"]


def test_a_log_has_a_line_now_and_then(clock, capsys, monkeypatch):
    counts = Tally()
    with VideoProgress() as shown:
        for number in range(60):
            shown.update(counts.add(tracked(number, [1], expected=100)))
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 7
    assert re.fullmatch(r"a\.mp4: [\d]+ of 100 frames, [\d.]+ a second, \d:\d\d left", lines[0])
    with VideoProgress(quiet=True) as shown:
        for number in range(60):
            shown.update(counts.add(tracked(number, [1])))
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_a_bar(clock, monkeypatch):
    terminal, out = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", "120")
    counts = Tally()
    with VideoProgress() as shown:
        for number in range(3):
            shown.update(counts.add(tracked(number, [1], "[bold]a.mp4")))
        sys.stdout.write("the result\n")
        shown.update(counts.add(tracked(0, [1], "b.mp4", expected=0)))
    assert "[bold]a.mp4" in terminal.getvalue()
    assert "b.mp4" in terminal.getvalue()
    assert out.getvalue() == "the result\n"


def test_hours(monkeypatch):
    assert [progress._clock(seconds) for seconds in (5, 65, 3700)] == ["0:05", "1:05", "1:01:40"]


def clip(path, frames=12):
    with VideoWriter(path, 64, 48, 10) as writer:
        for number in range(frames):
            writer.write(np.full((48, 64, 3), 200, np.uint8), number / 10)
    return path


def test_a_file_says_how_many_frames_it_has(tmp_path):
    whole = list(read_frames(Video("a", str(clip(tmp_path / "a.mp4")))))
    assert len(whole) == 12
    assert abs(whole[0].tags.frames - 12) <= 1


def test_the_command_says_what_it_counted(tmp_path, capsys):
    model, video = str(tiny_model(tmp_path)), str(clip(tmp_path / "a.mp4"))
    arguments = ["predict", model, video, "--output", str(tmp_path / "out"), "--save", "json"]
    assert run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2  # what was counted, and where it is written
    assert lines[0].startswith(f"{video}: 12 frames (")
    assert run([*arguments, "--json"]) == 0
    (counted,) = json.loads(capsys.readouterr().out)["videos"]
    assert (counted["path"], counted["frames"]) == (video, 12)
    assert "tracks" not in counted
