from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from nextdetr import Detector
from nextdetr.cli.main import run
from nextdetr.inference.feature_map import FeatureMap
from nextdetr.inference.features import draw_features
from nextdetr.inference.pytorch.recorder import FeatureRecorder
from tests.helpers import tiny_model

MAPS = ["level-1-row-2", "level-2-row-1", "stage-1-row-0", "stage-2-row-0", "stage-3-row-0", "stage-4-row-0"]


@pytest.fixture
def detector(tmp_path):
    return Detector(tiny_model(tmp_path), device="cpu")


def test_what_is_kept_is_what_the_rows_yield(detector):
    model, images = detector.opened.model, torch.rand(3, 3, 64, 64)
    seen = {}
    for number in (1, 2):
        model.rows[number].register_forward_hook(lambda m, i, o, number=number: seen.update({number: o}))
    with torch.no_grad():
        with FeatureRecorder(model, most=5).watch() as maps:
            model(images)
            model(images.flip(0))
        model(images)  # no longer looked at
        stages = model.backbone(images)
    wanted = [*enumerate(stages, 1), (1, seen[2]), (2, seen[1])]
    assert len(maps) == 6
    for image, found in enumerate(maps[:3]):
        assert [(m.kind, m.position) for m in found] == [("stage", n) for n in (1, 2, 3, 4)] + [
            ("level", n) for n in (1, 2)
        ]
        assert [m.stride for m in found] == [4, 8, 16, 32, 16, 32]
        for entry, (_, maps) in zip(found, wanted, strict=True):
            values = maps[image].numpy()
            variance = values.reshape(len(values), -1).var(1)
            assert entry.channels == len(values)
            np.testing.assert_allclose(variance[entry.chosen], np.sort(variance)[::-1][:5], rtol=1e-3, atol=1e-7)
            np.testing.assert_allclose(entry.maps, values[entry.chosen], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(entry.mean, values.mean(0), rtol=1e-4, atol=1e-5)
    assert not model._forward_hooks


def test_pictures_of_each_image_in_batches_with_a_damaged_one(detector, tmp_path):
    generator = np.random.default_rng()
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        pixels = np.zeros((60, 80, 3), np.uint8)
        pixels[:, :, :] = generator.integers(0, 256, 3)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "1.png").write_bytes(b"not an image")
    plain = detector.predict(folder, confidence=0, batch_size=2, image_size=64)
    found = detector.predict(folder, confidence=0, batch_size=2, image_size=64, features=tmp_path / "out")
    for a, b in zip(plain, found, strict=True):
        np.testing.assert_array_equal(a.xyxy, b.xyxy)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0", "2", "3"]
    for stem in "023":
        assert sorted(path.stem for path in (tmp_path / "out" / stem).iterdir()) == MAPS
        picture = Image.open(tmp_path / "out" / stem / f"{MAPS[0]}.png")
        assert picture.format == "PNG"
        # The first cell is the image itself: its colour shows that no picture went to another image's folder.
        corner = np.asarray(Image.open(folder / f"{stem}.png"))[0, 0]
        assert np.abs(np.asarray(picture.convert("RGB"))[60, 20].astype(int) - corner).max() <= 1


def test_in_tiles_each_image_has_the_maps_of_its_view_as_a_whole(detector, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(1).integers(0, 256, (2, 64, 150, 3), dtype=np.uint8)
    for number in range(2):
        Image.fromarray(pixels[number]).save(folder / f"{number}.png")
    settings = {"confidence": 0, "image_size": 64}
    detector.predict(folder, features=tmp_path / "whole", **settings)
    detector.predict(folder, features=tmp_path / "tiled", tile=64, batch_size=2, **settings)
    for number in range(2):
        for name in MAPS:
            whole, tiled = (
                np.asarray(Image.open(tmp_path / kind / str(number) / f"{name}.png")) for kind in ("whole", "tiled")
            )
            np.testing.assert_array_equal(whole, tiled)
    assert [path.name for path in sorted((tmp_path / "tiled").iterdir())] == ["0", "1"]


def test_what_other_threads_look_at_is_not_recorded(detector):
    model = detector.opened.model
    images = torch.rand(3, 1, 3, 64, 64)

    def other():
        with torch.inference_mode():
            model(images[2])

    with torch.inference_mode(), FeatureRecorder(model).watch() as maps:
        model(images[0])
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        model(images[1])
    with torch.inference_mode(), FeatureRecorder(model).watch() as alone:
        model(images[0])
        model(images[1])
    assert len(maps) == 2
    for one, two in zip(maps, alone, strict=True):
        np.testing.assert_array_equal(one[0].mean, two[0].mean)


def grid(maps: np.ndarray) -> FeatureMap:
    return FeatureMap("level", 1, 12, "RepC3", 8, 128, list(range(len(maps))), maps, maps.mean(0))


def test_cells_are_normalised_each_for_itself():
    ramp = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    maps = np.stack([ramp, ramp * 1e-6, ramp * 1e6 - 5])
    picture = np.asarray(draw_features(grid(maps)))
    cells = [picture[48:208, 6 + 166 * k : 166 + 166 * k] for k in range(1, 4)]
    np.testing.assert_array_equal(cells[0], cells[1])
    np.testing.assert_array_equal(cells[0], cells[2])
    assert cells[0].std() > 20
    assert cells[0][0, 0].sum() < cells[0][-1, -1].sum()  # dark to bright


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_map_of_one_value_is_drawn(value):
    draw_features(grid(np.full((2, 1, 1), value, np.float32)), Image.new("RGB", (500, 20)))
    peak = np.zeros((1, 20, 20), np.float32)
    peak[0, 3, 3] = 1
    picture = np.asarray(draw_features(grid(peak)))
    assert (picture[48:208, 172:332] != picture[207, 331]).any()  # a single peak shows, though no percentile has it


def test_the_title_names_row_stride_and_channels():
    title = grid(np.zeros((2, 10, 10), np.float32)).title
    for part in ("fusion level 1", "row 12", "RepC3", "stride 8", "128 channels"):
        assert part in title


def test_command(detector, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    model = str(tmp_path / "tiny.yaml")
    arguments = ["predict", model, str(tmp_path / "a.png"), "--save", "json", "--output", str(tmp_path / "out")]
    assert run([*arguments, "--image-size", "64", "--features", str(tmp_path / "maps"), "--json"]) == 0
    assert len(list((tmp_path / "maps" / "a").glob("*.png"))) == 6


SEVERAL_ROWS = """
nc: 2
image_size: 64
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [24, 3, 2]]
  - [-1, 1, Conv, [16, 3, 1]]
  - [-1, 1, Conv, [40, 3, 2]]
head:
  - [-1, 1, Conv, [32, 1, 1]]
  - [[2, 5], 1, RTDETRDecoder, [nc, 32, 20, 2, 4, 2, 64]]
"""


def test_a_backbone_of_several_rows_has_a_stage_for_each_stride(tmp_path):
    (tmp_path / "several.yaml").write_text(SEVERAL_ROWS)
    detector = Detector(tmp_path / "several.yaml", device="cpu")
    model = detector.opened.model
    with torch.no_grad(), FeatureRecorder(model).watch() as maps:
        model(torch.rand(1, 3, 64, 64))
    found = [(m.kind, m.row, m.stride, m.channels) for m in maps[0]]
    # Row 2, which is not the last of stride 8, is drawn as a level, since the decoder reads it.
    assert found == [
        ("stage", 0, 2, 8), ("stage", 1, 4, 8), ("stage", 3, 8, 16), ("stage", 4, 16, 40),
        ("level", 2, 8, 24), ("level", 5, 16, 32),
    ]  # fmt: skip
    assert detector.embed(np.zeros((64, 64, 3), np.uint8)).embeddings.shape == (1, 40)  # the backbone's last row
