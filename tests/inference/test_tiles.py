from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from nextdetr.errors import ConfigError, DataError
from nextdetr.inference.objects import Objects
from nextdetr.inference.predictor import Predictor
from nextdetr.inference.tiles import merge_tiles, stream_tiles, tile_windows
from nextdetr.structures import DetectorOutput
from tests.inference.conftest import CLASSES


def found(*rows):
    """Objects of (box, score, class) each."""
    boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return Objects(
        xyxy=np.array(boxes, np.float32).reshape(-1, 4), confidence=np.array(scores, np.float32),
        class_id=np.array(labels, np.int64), data={"class_name": np.array(CLASSES)[np.array(labels, int)]},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("size", "tile", "overlap"), [((1000, 700), 640, 0.2), ((640, 640), 640, 0.2), ((99, 41), 32, 0.5)]
)
def test_windows_cover_the_image_and_end_at_its_edges(size, tile, overlap):
    covered = np.zeros(size[::-1], int)
    windows = tile_windows(*size, tile, overlap)
    for x1, y1, x2, y2 in windows:
        assert 0 <= x1 < x2 <= size[0]
        assert 0 <= y1 < y2 <= size[1]
        assert (x2 - x1, y2 - y1) == (min(tile, size[0]), min(tile, size[1]))
        covered[y1:y2, x1:x2] += 1
    assert covered.min() == 1 or len(windows) == 1
    assert len(set(windows)) == len(windows)
    if size == (1000, 700):
        assert windows == [(0, 0, 640, 640), (360, 0, 1000, 640), (0, 60, 640, 700), (360, 60, 1000, 700)]


def test_what_is_found_twice_is_one_and_the_surest():
    windows = [(0, 0, 100, 100), (60, 0, 160, 100)]
    merged = merge_tiles([found(([70, 20, 90, 40], 0.6, 1)), found(([10, 20, 30, 41], 0.8, 1))], windows, (160, 100))
    np.testing.assert_allclose(merged.xyxy, [[70, 20, 90, 41]])
    np.testing.assert_allclose(merged.confidence, [0.8])
    assert merged.data["class_name"].tolist() == ["dog"]


def test_other_classes_and_objects_inside_objects_stay():
    windows = [(0, 0, 100, 100), (60, 0, 160, 100)]
    tiles = [found(([5, 5, 95, 95], 0.9, 1), ([40, 40, 55, 55], 0.5, 1), ([5, 5, 95, 95], 0.4, 2)), found()]
    assert len(merge_tiles(tiles, windows, (160, 100))) == 3


def test_a_cut_box_gives_way_to_the_whole_one():
    windows = [(0, 0, 100, 100), (60, 0, 160, 100), (0, 0, 160, 100)]
    tiles = [found(([80, 20, 100, 60], 0.9, 1)), found(([20, 20, 80, 60], 0.7, 1)), found()]
    merged = merge_tiles(tiles, windows, (160, 100))
    np.testing.assert_allclose(merged.xyxy, [[80, 20, 140, 60]])


def test_halves_are_joined():
    windows = [(0, 0, 100, 100), (60, 0, 160, 100)]
    tiles = [found(([30, 20, 100, 60], 0.9, 1)), found(([0, 21, 70, 60], 0.7, 1))]
    merged = merge_tiles(tiles, windows, (160, 100))
    np.testing.assert_allclose(merged.xyxy, [[30, 20, 130, 60]])
    np.testing.assert_allclose(merged.confidence, [0.9])


def test_neighbours_that_one_edge_cuts_stay_apart():
    windows = [(0, 0, 100, 100), (60, 0, 160, 100)]
    left = found(([20, 10, 100, 50], 0.9, 1), ([30, 28, 100, 70], 0.8, 1))  # two that overlap, both cut
    right = found(([0, 10, 80, 50], 0.7, 1), ([0, 28, 85, 70], 0.6, 1))
    merged = merge_tiles([left, right], windows, (160, 100))
    np.testing.assert_allclose(merged.xyxy, [[20, 10, 140, 50], [30, 28, 145, 70]])
    np.testing.assert_allclose(merged.confidence, [0.9, 0.8])


def test_the_surer_half_gives_the_score():
    windows = [(0, 0, 100, 100), (60, 0, 160, 100)]
    tiles = [found(([20, 20, 100, 60], 0.5, 1)), found(([0, 20, 12, 60], 0.9, 1))]  # the second has a sixth of it
    merged = merge_tiles(tiles, windows, (160, 100))
    np.testing.assert_allclose(merged.xyxy, [[20, 20, 100, 60]])
    np.testing.assert_allclose(merged.confidence, [0.9])


class Crowd(torch.nn.Module):
    """Finds four hundred objects in every image, two by two nearly at the same place."""

    def forward(self, images, targets=None, *, queries=None):
        number = torch.arange(400)
        x, y = (number // 2 % 20 + 0.5) / 20, (number // 40 + 0.5) / 10
        boxes = torch.stack((x, y, 0.04 + 0.002 * (number % 2), torch.full((400,), 0.08)), dim=-1)
        return DetectorOutput(torch.zeros(len(images), 400, 1), boxes.expand(len(images), 400, 4))


def test_an_image_within_a_tile_is_as_without_tiles(scene):
    crowd = found(([5, 5, 60, 60], 0.9, 1), ([8, 8, 60, 60], 0.8, 1))
    assert merge_tiles([crowd], [(0, 0, 100, 100)], (100, 100)) == crowd
    predictor, settings = Predictor(Crowd(), ["bird"], 64, device="cpu"), {"confidence": 0.1, "max_detections": 500}
    (alone,) = predictor.stream(scene, **settings)
    (tiled,) = stream_tiles(predictor, scene, tile=200, overlap=0.2, **settings)
    assert len(alone.found) == 400
    assert tiled.found == alone.found


def test_nothing_found_keeps_the_fields():
    merged = merge_tiles([found(), found()], [(0, 0, 50, 50), (30, 0, 80, 50)], (80, 50))
    assert len(merged) == 0
    assert merged.data["class_name"].tolist() == []


def test_the_whole_way(model, scene, tmp_path):
    predictor = Predictor(model, CLASSES, 200, device="cpu")
    large = Image.new("RGB", (300, 100))
    large.paste(scene.crop((0, 0, 100, 60)), (100, 0))  # the bright rectangle at (120, 10)-(180, 50), within both tiles
    large.save(tmp_path / "large.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    sources = [tmp_path / "large.png", tmp_path / "bad.png", Image.new("RGB", (64, 64), "white")]
    results = list(stream_tiles(predictor, sources, tile=200, overlap=0.5, confidence=0.5, batch_size=4))
    assert [(r.width, r.height) for r in results] == [(300, 100), (0, 0), (64, 64)]
    assert "bad.png" in str(results[1].problem)
    np.testing.assert_allclose(results[0].detections.xyxy, [[120, 10, 180, 50]], atol=1.5)
    assert len(results[2].detections) == 1
    assert model.batches == [3, 1]  # two tiles and the whole image together


def test_bad_settings(model):
    predictor = Predictor(model, CLASSES, 100, device="cpu")
    for settings, named in (({"tile": 8, "overlap": 0.2}, "--tile"), ({"tile": 64, "overlap": 1.0}, "--overlap")):
        with pytest.raises(ConfigError, match=named):
            stream_tiles(predictor, "x.png", **settings)
    with pytest.raises(DataError, match=r"nowhere"):
        stream_tiles(predictor, "nowhere.png", tile=64, overlap=0.2)
