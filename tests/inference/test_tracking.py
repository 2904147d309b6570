from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextdetr.cli.main import run
from nextdetr.config import PredictConfig
from nextdetr.errors import ConfigError
from nextdetr.inference._supervision import sv
from nextdetr.inference.crossing import CrossingLine
from nextdetr.inference.predictor import Prediction
from nextdetr.inference.tags import VideoTags
from nextdetr.inference.tracking import Follower, parse_points
from tests.helpers import tiny_model

pytest.importorskip("trackers")

POINTS = "-10,120,400,-5"


def frame(number, boxes, scores, path="a.mp4"):
    count = len(boxes)
    detections = sv.Detections(
        xyxy=np.array(boxes, np.float32).reshape(-1, 4), confidence=np.array(scores, np.float32),
        class_id=np.zeros(count, np.int64), data={"class_name": np.array(["car"] * count, dtype=str)},
    )  # fmt: skip
    return Prediction(path, 400, 200, detections, Image.new("RGB", (400, 200)), None, number, (number or 0) / 25)


def two_cars(count=30, path="a.mp4"):
    """One from left to right, one from right to left; the second is unsure in frames 10 to 14."""
    for n in range(count):
        unsure = 0.15 if 10 <= n < 15 else 0.8
        boxes = [[10 * n, 20, 10 * n + 60, 60], [340 - 10 * n, 120, 400 - 10 * n, 160]]
        yield frame(n, boxes, [0.9, unsure], path)


def test_each_object_keeps_its_number():
    results = list(Follower(confidence=0.3, track=True).follow(two_cars()))
    numbers = [{id_ for id_ in r.detections.tracker_id if id_ >= 0} for r in results[3:]]
    assert all(len(ids) == 2 for ids in numbers)
    assert len(set.union(*numbers)) == 2
    row = results[-1].to_json()["detections"][0]
    assert row["track_id"] in numbers[-1]
    assert (np.diff(results[12].detections.confidence) <= 0).all()


def test_unsure_detections_are_shown_only_on_tracks():
    noise = [frame(n, [[5, 5, 20, 20]], [0.15]) for n in range(5)]
    assert all(len(r.detections) == 0 for r in Follower(confidence=0.3, track=True).follow(noise))
    photo = frame(None, [[5, 5, 20, 20], [50, 5, 80, 20]], [0.15, 0.5])
    (result,) = Follower(confidence=0.3, track=True).follow([photo])
    assert result.detections.confidence.tolist() == [0.5]


def test_empty_frames_and_new_videos():
    follower = Follower(confidence=0.3, track=True)
    frames = [frame(0, [], []), frame(1, [[5, 5, 50, 50]], [0.9]), frame(2, [], []), *two_cars(6, "b.mp4")]
    results = list(follower.follow(frames))
    assert [len(r.detections) for r in results[:3]] == [0, 1, 0]
    assert results[0].to_json()["detections"] == []
    assert min(id_ for r in results[3:] for id_ in r.detections.tracker_id if id_ >= 0) == 0


def test_lines_and_zones_count():
    follower = Follower(
        confidence=0.3, track=True, lines=["200,0,200,200"], zones=["0,100,400,100,400,200,0,200", "0,0,20,0,0,20"]
    )
    results = list(follower.follow(two_cars()))
    (line,) = results[-1].counted["lines"]
    assert (line["in"], line["out"]) == (1, 1)
    assert results[0].counted["zones"] == [1, 0]
    assert results[0].to_json()["counted"]["zones"] == [1, 0]
    picture = follower.draw(results[-1].image, results[-1])
    assert picture.size == (400, 200)
    assert np.asarray(picture)[100, 200].min() > 200  # the line is drawn


def test_zones_without_tracks():
    (result,) = Follower(confidence=0.3, track=False, zones=["0,0,400,0,400,200,0,200"]).follow(
        [frame(0, [[5, 5, 50, 50]], [0.9])]
    )
    assert result.counted == {"zones": [1]}
    assert "track_id" not in result.to_json()["detections"][0]


@pytest.mark.parametrize("text", ["1,2,3", "1,2", "a,b,c,d", "", "1,2,3,4,5,6"])
def test_bad_lines(text):
    with pytest.raises(ConfigError, match="--line needs 2 points"):
        parse_points(text, "line", 2, 2)


def test_bad_settings():
    with pytest.raises(ConfigError, match="add --track"):
        Follower(confidence=0.3, track=False, lines=["0,0,9,9"])
    with pytest.raises(ConfigError, match="--zone needs 3 points or more"):
        Follower(confidence=0.3, track=False, zones=["0,0,9,9"])


def test_counts_begin_anew_with_each_video():
    follower = Follower(confidence=0.3, track=True, lines=["200,0,200,200"])
    results = list(follower.follow([*two_cars(30, "a.mp4"), *two_cars(30, "b.mp4"), *two_cars(30, "b.mp4")]))
    assert [results[n].counted["lines"] for n in (29, 30, 59, 60, 89)] == [
        [{"in": 1, "out": 1}], [{"in": 0, "out": 0}], [{"in": 1, "out": 1}], [{"in": 0, "out": 0}], [{"in": 1, "out": 1}],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "given", [["--line", "-10,120,400,-5"], ["--line=-10,120,400,-5"], ["--line", "-10,120,400,-5", "0,0,9,9"]]
)
def test_a_line_may_begin_outside_the_frame(given, monkeypatch):
    seen = []

    class Stub:
        load_reports = ()
        opened = None

        def __init__(self, *_: object, **__: object) -> None:
            pass

        def stream(self, sources: list[str], config: PredictConfig, **_: object):
            seen.append((sources, config))
            return iter(())

    monkeypatch.setattr("nextdetr.detector.Detector", Stub)
    assert run(["predict", "m", "a.mp4", "--track", *given, "--output", "out", "--json"]) == 0
    ((sources, config),) = seen
    assert sources == ["a.mp4"]
    assert config.output == Path("out")
    assert parse_points(config.line[0], "line", 2, 2) == [(-10, 120), (400, -5)]
    assert len(config.line) == len([value for value in given if "," in value])


def numbers_of(results):
    return [None if len(r.detections) == 0 else int(r.detections.tracker_id[0]) for r in results]


@pytest.mark.parametrize("rate", [5, 60])
def test_a_lost_object_keeps_its_number_for_a_second_whatever_the_rate(rate):
    def gap(seconds):
        """Seen for half a second, gone for so long, seen again."""
        half = rate // 2 + 1
        away = round(seconds * rate)
        for n in range(2 * half + away):
            here = n < half or n >= half + away
            yield replace(
                frame(n, [[100, 50, 160, 110]] * here, [0.9] * here), seconds=n / rate, tags=VideoTags(rate=float(rate))
            )

    kept = numbers_of(Follower(confidence=0.3, track=True).follow(gap(0.8)))
    assert kept[-1] == kept[rate // 2] == 0
    lost = numbers_of(Follower(confidence=0.3, track=True).follow(gap(1.5)))
    assert lost[-1] == 1


def test_a_live_source_that_drops_frames_keeps_its_numbers():
    """A car at 3 pixels a frame; after half a second one frame in 25 arrives, in which it has left its place."""
    seen = [n for n in range(300) if n < 30 or n % 25 == 0]
    frames = [
        replace(frame(n, [[3 * n, 20, 3 * n + 60, 60]], [0.9]), seconds=n / 60, tags=VideoTags(rate=60.0)) for n in seen
    ]
    assert set(numbers_of(Follower(confidence=0.3, track=True).follow(frames))[1:]) == {0}


def test_what_crosses_before_it_has_a_number_is_counted():
    """On the left in its first frame, on the line in its second, in which it gets its number."""
    boxes = [[139, 20, 199, 60], [170, 20, 230, 60], [201, 20, 261, 60], [232, 20, 292, 60]]
    follower = Follower(confidence=0.3, track=True, lines=["200,0,200,200"])
    results = list(follower.follow(frame(n, [box], [0.9]) for n, box in enumerate(boxes)))
    assert numbers_of(results) == [-1, 0, 0, 0]
    assert [sum(r.counted["lines"][0].values()) for r in results] == [0, 0, 1, 1]


def test_what_crosses_while_it_is_hidden_is_counted():
    boxes = [[100 + 8 * n, 20, 160 + 8 * n, 60] for n in range(20)]
    hidden = range(5, 13)  # 160 is on the left then, 264 on the right
    follower = Follower(confidence=0.3, track=True, lines=["210,0,210,200"])
    frames = (frame(n, [] if n in hidden else [box], [] if n in hidden else [0.9]) for n, box in enumerate(boxes))
    results = list(follower.follow(frames))
    assert numbers_of(results)[-1] == 0
    assert sum(results[-1].counted["lines"][0].values()) == 1


def test_lines_count_as_supervision_does():
    """Objects that wander at random, each seen in every frame."""
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 400, (30, 2)) + np.cumsum(generator.normal(0, 25, (60, 30, 2)), axis=0)
    ours, theirs = CrossingLine((320, 60), (90, 350)), sv.LineZone(sv.Point(320, 60), sv.Point(90, 350))
    for places in corners:
        boxes = np.hstack((places, places + 12)).astype(np.float32)
        theirs.trigger(sv.Detections(xyxy=boxes, class_id=np.zeros(30, int), tracker_id=np.arange(30)))
        for number, box in enumerate(boxes):
            ours.see(number, box)
    assert (ours.entered, ours.left) == (theirs.in_count, theirs.out_count)
    assert ours.entered > 10
    ours.keep({1, 2})
    ours.see(3, [0, 0, 5, 5])
    assert ours.entered + ours.left == theirs.in_count + theirs.out_count


def test_frames_that_change_their_size_are_the_same_picture():
    """From frame 10 on at half the size: numbers go on, and the line stays where it was."""

    def shrunk(prediction):
        found = replace(prediction.detections, xyxy=prediction.detections.xyxy / 2)
        return replace(prediction, width=200, height=100, found=found, image=Image.new("RGB", (200, 100)))

    frames = [shrunk(f) if n >= 10 else f for n, f in enumerate(two_cars())]
    settings = {"lines": ["200,0,200,200"], "zones": ["0,100,400,100,400,200,0,200"]}
    follower, plain = (Follower(confidence=0.3, track=True, **settings) for _ in range(2))
    results, expected = list(follower.follow(frames)), list(plain.follow(two_cars()))
    assert [r.counted for r in results] == [r.counted for r in expected]
    for result, other in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.detections.tracker_id, other.detections.tracker_id)
    np.testing.assert_allclose(results[-1].detections.xyxy * 2, expected[-1].detections.xyxy, atol=1e-3)
    picture = np.asarray(follower.draw(results[-1].image, results[-1]))
    assert picture[50, 100].min() > 200, "the line is not drawn in the middle"


def test_a_line_of_no_length():
    with pytest.raises(ConfigError, match="two points that differ"):
        Follower(confidence=0.3, track=True, lines=["5,5,5,5"])


def test_a_zone_may_reach_beyond_the_frame():
    follower = Follower(confidence=0.3, track=False, zones=["-50,-50,300,-50,300,300,-50,300"])
    (result,) = follower.follow([frame(0, [[5, 5, 50, 50], [310, 5, 390, 50]], [0.9, 0.9])])
    assert result.counted == {"zones": [1]}


def test_pictures_one_after_the_other_are_followed_like_frames():
    """They have no frame number, and names of their own."""
    stills = [replace(item, frame=None, seconds=None, path=f"image-{n}") for n, item in enumerate(two_cars(), start=1)]
    follower = Follower(confidence=0.3, track=True, lines=["200,0,200,200"])
    results = list(follower.follow(stills))
    numbers = [{id_ for id_ in result.detections.tracker_id if id_ >= 0} for result in results[3:]]
    assert all(len(ids) == 2 for ids in numbers)
    assert len(set.union(*numbers)) == 2
    assert results[-1].counted == {"lines": [{"in": 1, "out": 1}]}
    assert follower.draw(stills[0].image, results[-1]).size == (400, 200)
    # A video in between, and what comes after it, begin again.
    results = list(follower.follow([*stills[:6], *two_cars(6), *stills[:6]]))
    assert [
        min(result.detections.tracker_id.max() for result in results[start + 3 : start + 6]) for start in (0, 6, 12)
    ] == [1] * 3


def test_tracking_in_memory_from_python(tmp_path):
    from nextdetr import Detector

    detector = Detector(tiny_model(tmp_path), device="cpu")
    drawn = []

    def camera():
        for number in range(5):
            drawn.append(number)
            yield np.full((48, 64, 3), 40 * number, np.uint8)

    results = detector.track(camera(), confidence=0.001, max_detections=5)
    first = next(results)
    assert len(drawn) <= 2  # no batch is waited for
    assert [first, *results][-1].detections.tracker_id.max() >= 0
    listed = detector.predict(list(camera()), track=True, confidence=0.001, max_detections=5)
    assert len(listed) == 5
    assert listed[-1].tracker_id.max() >= 0
    assert listed[-1].to_json()["detections"][0]["track_id"] is not None


@pytest.mark.parametrize("scale", [1, 10])
def test_lines_and_their_counts_fit_the_picture(scale):
    """In a frame ten times as large, the line is wider and its text higher."""
    size = (400 * scale, 200 * scale)
    follower = Follower(confidence=0.3, track=True, lines=[f"{200 * scale},0,{200 * scale},{200 * scale}"])
    (result,) = follower.follow([replace(frame(0, [], []), width=size[0], height=size[1], image=Image.new("RGB", size))])
    white = np.asarray(follower.draw(result.image, result))[:, :, 1] > 200
    line = white[150 * scale].sum()
    text = np.flatnonzero(white[:, 210 * scale : 300 * scale].any(axis=1))
    assert {1: 3, 10: 7}[scale] <= line <= {1: 4, 10: 12}[scale]
    assert {1: 6, 10: 30}[scale] <= text.max() - text.min() + 1 <= {1: 16, 10: 70}[scale]
