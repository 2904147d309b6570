from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict, replace

import pytest
from matplotlib.text import Text

from nextdetr.errors import ConfigError, WeightsError
from nextdetr.inference.pytorch.latency import steady_ms
from nextdetr.inference.speed import (
    SPEED,
    Setting,
    SpeedPoint,
    SpeedTable,
    choose,
    pareto,
    processor_name,
    read_points,
    read_table,
)
from nextdetr.inference.speed_text import draw_points, number_offsets, plot_lines, table_lines
from nextdetr.inference.times import Times, model_digest, pick


def point(size, latency, score, queries=100, layers=3, *, measured=True):
    return SpeedPoint(size, queries, layers, score, latency, "openvino", "some processor", 2, measured)


POINTS = [point(160, 10.0, 0.30), point(192, 14.0, 0.40), point(224, 20.0, 0.50), point(256, 24.0, 0.498)]
TABLE = SpeedTable(25.0, POINTS[3], tuple(POINTS), 87)
METADATA = {SPEED: json.dumps(TABLE.to_json())}


def law(setting):
    """Milliseconds of a machine that exists nowhere."""
    pixels = (setting.image_size / 640) ** 2
    return 3 + 120 * pixels + 14 * pixels**2 + setting.layers * (2 + 0.02 * setting.queries)


def law_point(setting):
    return point(setting.image_size, law(setting), None, setting.queries, setting.layers)


@pytest.mark.parametrize(
    ("latency", "size"),
    [
        (9.9, None),
        (10.0, 160),
        (19.0, 192),
        (22.0, 224),
        (25.0, 256),  # as accurate as any image set can tell, and it uses the time
        (40.0, 224),  # nothing is near: the most accurate one
    ],
)
def test_the_choice_is_the_most_accurate_that_keeps_the_latency(latency, size):
    found = choose(POINTS, latency)
    assert (None if found is None else found.image_size) == size


def test_a_slower_point_is_not_chosen_for_being_near_if_it_is_worse():
    points = [point(224, 20.0, 0.50), point(256, 24.0, 0.49)]
    assert choose(points, 25.0).image_size == 224


def test_pareto_leaves_out_what_another_beats():
    assert [p.image_size for p in pareto([*POINTS, point(128, 14.0, 0.2)])] == [160, 192, 224]


def test_a_table_comes_back_as_it_was_and_is_shown(tmp_path):
    assert read_table(METADATA, "x") == TABLE
    assert read_table({}, "x") is None
    text = "\n".join(table_lines(TABLE))
    assert "at most 25 ms" in text
    assert text.count("some processor") == len(POINTS) + 1
    drawn = plot_lines(TABLE)
    assert sum(line.count("o") for line in drawn) == len(POINTS) - 1
    draw_points(TABLE, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


CLOSE = [point(size, 10.0 + 0.02 * number, 0.3 + 0.001 * number) for number, size in enumerate(range(128, 480, 32))]


def test_no_label_in_the_picture_covers_another_one(tmp_path, monkeypatch):
    """Many points close to each other, and one far away, so that the picture is not only of these."""
    points = (*CLOSE, point(640, 60.0, 0.6))
    overlapping = []

    def look(figure, *_, **__):
        figure.draw_without_rendering()
        boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]  # without the lines to the points
        assert len(boxes) == len(points)
        overlapping.extend((a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b))

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", look)
    draw_points(SpeedTable(25.0, points[3], points, 87), tmp_path / "plot.png")
    assert overlapping == []


@pytest.mark.parametrize("spread", [0.0, 3.0, 40.0])
def test_numbers_cover_neither_each_other_nor_points(spread):
    spots = [(spread * number, 0.5 * spread * number) for number in range(30)]
    found = number_offsets(spots, [4.0] * 30)
    middles = [(x + right, y + up) for (x, y), (right, up) in zip(spots, found, strict=True)]
    assert all(abs(a - c) > 5 or abs(b - d) > 9 for (a, b), (c, d) in itertools.combinations(middles, 2))
    assert all(abs(a - c) > 7 or abs(b - d) > 8 for a, b in middles for c, d in spots)
    assert spread < 40 or all(math.hypot(*offset) < 13 for offset in found)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps(TABLE.to_json() | {"points": []}),
        json.dumps(TABLE.to_json() | {"points": [asdict(POINTS[0]) | {"latency_ms": 0}]}),
        json.dumps(TABLE.to_json() | {"points": [asdict(POINTS[0]) | {"image_size": True}]}),
        json.dumps(TABLE.to_json() | {"points": [asdict(POINTS[0]) | {"AP": math.nan}]}),
        json.dumps(TABLE.to_json() | {"asked_ms": "25"}),
    ],
)
def test_a_damaged_table_is_refused(text):
    with pytest.raises(WeightsError, match=r"d.safetensors: its metadata is damaged: the table of speeds"):
        read_table({SPEED: text}, "d.safetensors")


def test_what_cannot_be_kept_says_what_can():
    with pytest.raises(ConfigError, match=r"nothing of it takes at most 5 ms; the fastest takes 10.0 ms \(160 px"):
        pick(METADATA, 5.0, "d.safetensors")
    with pytest.raises(ConfigError, match="no table of speeds"):
        pick({}, 5.0, "d.safetensors")


def test_the_latency_of_the_training_takes_the_point_that_it_chose():
    """If it had no time to measure more, another point is estimated to be better."""
    better = point(256, 24.5, 0.52, measured=False)
    table = SpeedTable(25.0, POINTS[2], (*POINTS[:3], better), 87)
    metadata = {SPEED: json.dumps(table.to_json())}
    assert pick(metadata, 25.0, "d.safetensors") == POINTS[2]
    assert pick(metadata, 24.9, "d.safetensors") == better


def test_times_of_another_machine_replace_those_of_the_table(tmp_path):
    file = tmp_path / "benchmark.json"
    slow = [asdict(replace(p, latency_ms=3 * p.latency_ms, processor="a slow one")) for p in POINTS]
    file.write_text(json.dumps({"points": slow}))
    found = pick(METADATA, 45.0, "d.safetensors", file)
    assert (found.image_size, found.latency_ms, found.processor, found.AP) == (192, 42.0, "a slow one", 0.40)


def test_times_of_another_model_are_refused_as_in_training(tmp_path):
    file = tmp_path / "benchmark.json"
    points = [asdict(p) for p in POINTS]
    file.write_text(json.dumps({"points": points, "model_digest": model_digest("nc: 1"), "model": "other"}))
    assert pick(METADATA | {"model": "nc: 1"}, 19.0, "d.safetensors", file).image_size == 192
    with pytest.raises(ConfigError, match=r"another model \(other\): run nextdetr benchmark"):
        pick(METADATA | {"model": "nc: 2"}, 19.0, "d.safetensors", file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "holds no measured points"),
        ('{"points": []}', "holds no measured points: run"),
        ('{"points": [{"image_size": 3}]}', "queries is None"),
        (json.dumps({"points": [asdict(POINTS[0])], "points_measured": False}), "not measured there: run .* --points"),
        (json.dumps({"points": [asdict(POINTS[0])], "model_digest": "1", "model": "other"}), r"another model \(other\)"),
    ],
)
def test_a_file_that_is_no_benchmark_is_refused(tmp_path, content, message):
    file = tmp_path / "f.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_points(file, "2")


def test_few_measurements_tell_the_times_of_all_settings():
    corners = [Setting(320, 200, 3), Setting(160, 100, 1), Setting(320, 100, 1)]
    times = Times(map(law_point, corners))
    for corner in corners:
        assert times.at(corner) == law_point(corner)
    for size in (192, 256, 288, 352, 384):
        for queries, layers in ((100, 1), (200, 2), (300, 3)):
            setting = Setting(size, queries, layers)
            found = times.at(setting)
            assert not found.measured
            assert found.latency_ms == pytest.approx(law(setting), rel=0.2)


def test_one_measurement_is_enough_to_begin_with():
    times = Times([law_point(Setting(320, 200, 3))])
    taken = [times.at(Setting(size, 200, 3)).latency_ms for size in (128, 256, 320, 640)]
    assert taken == sorted(taken)
    assert taken[2] == law(Setting(320, 200, 3))


def test_what_else_the_machine_does_for_a_while_is_left_out():
    """Calls of 30 ms, as another program runs too, and of 10 ms in the last of the five rounds."""
    taken, now = itertools.chain(itertools.repeat(0.03, 3 + 4 * 9), itertools.repeat(0.01)), 0.0

    def call():
        nonlocal now
        now += next(taken)

    assert steady_ms(call, clock=lambda: now) == pytest.approx(10.0)
    assert processor_name()


def test_a_slow_model_is_not_measured_for_minutes():
    calls = 0

    def call():
        nonlocal calls
        calls += 1

    assert steady_ms(call, clock=lambda: 5.0 * calls) == pytest.approx(5000.0)
    assert calls == 4  # to warm up, and a round


def test_a_table_does_not_go_with_weights_to_another_model(tmp_path):
    from nextdetr.weights import checkpoint
    from nextdetr.weights.start import open_detector
    from tests.helpers import tiny_model

    assert checkpoint.SPEED == SPEED
    model = tiny_model(tmp_path)
    opened = checkpoint.open_model(model)
    weights = checkpoint.save_opened(tmp_path / "d.safetensors", opened, extra=METADATA)
    assert SPEED in open_detector(model, weights=weights)[0].metadata
    other = tmp_path / "other.yaml"
    other.write_text(model.read_text() + "# another\n")
    assert SPEED not in open_detector(other, weights=weights)[0].metadata
