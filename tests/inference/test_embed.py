from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from nextdetr import Detector
from nextdetr.cli.main import run
from nextdetr.errors import ConfigError, DataError, WeightsError, WriteError
from nextdetr.inference.pytorch import embed as module
from nextdetr.inference.pytorch.embed import embed_images, write_embeddings
from nextdetr.models.convnextv2 import convnextv2
from nextdetr.weights.backbone import open_features
from nextdetr.weights.convert import save_backbone
from tests.helpers import tiny_model


@pytest.fixture
def images(tmp_path):
    generator = np.random.default_rng()
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def detector(tmp_path):
    return Detector(tiny_model(tmp_path), device="cpu")


def tensor(path) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None].float() / 255


def test_the_last_backbone_map_averaged(detector, images):
    result = detector.embed(images, image_size=64, batch_size=2)
    assert result.row == 0
    assert result.paths == [str(images / f"{number}.png") for number in range(5)]
    assert result.embeddings.shape == (5, 320)
    assert result.embeddings.dtype == np.float32
    for path, vector in zip(result.paths, result.embeddings, strict=True):
        with torch.no_grad():
            wanted = detector.opened.model.backbone(tensor(path))[-1].mean((0, 2, 3))
        np.testing.assert_allclose(vector, wanted.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(result.normalized(), axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("row", [1, 2])
def test_any_row(detector, images, row):
    seen = {}
    hook = detector.opened.model.rows[row].register_forward_hook(lambda m, i, o: seen.update(map=o))
    with torch.no_grad():
        detector.opened.model(tensor(images / "0.png"))
    hook.remove()
    result = detector.embed(images / "0.png", row=row, image_size=64)
    np.testing.assert_allclose(result.embeddings[0], seen["map"].mean((0, 2, 3)).numpy(), rtol=1e-4, atol=1e-5)


def test_later_rows_are_not_run(detector, images):
    def refuse(*_):
        raise AssertionError("a row behind the one asked for was run")

    for number in (2, 3):
        detector.opened.model.rows[number].register_forward_pre_hook(refuse)
    assert detector.embed(images, row=1, image_size=64).embeddings.shape == (5, 32)


def test_batches_bound_what_is_in_memory_and_change_nothing(detector, images, monkeypatch):
    sizes = []
    original = module._vectors
    monkeypatch.setattr(module, "_vectors", lambda m, t, *rest: sizes.append(len(t)) or original(m, t, *rest))
    by_two = detector.embed(images, image_size=64, batch_size=2)
    assert sizes == [2, 2, 1]
    at_once = detector.embed(images, image_size=64, batch_size=8)
    np.testing.assert_allclose(by_two.embeddings, at_once.embeddings, rtol=1e-4, atol=1e-5)


def test_images_in_memory(detector, images):
    arrays = [np.asarray(Image.open(images / f"{number}.png")) for number in (3, 1)]
    result = detector.embed(arrays, image_size=64)
    assert result.paths == ["image-1", "image-2"]
    whole = detector.embed(images, image_size=64).embeddings
    np.testing.assert_allclose(result.embeddings, whole[[3, 1]], rtol=1e-4, atol=1e-5)


def test_an_unreadable_image_keeps_its_place(detector, images, tmp_path):
    (images / "2.png").write_bytes(b"not an image")
    result = detector.embed(images, image_size=64, batch_size=2)
    assert np.isnan(result.embeddings[2]).all()
    assert np.isfinite(result.embeddings[[0, 1, 3, 4]]).all()
    assert list(result.problems) == [2]
    entry = result.to_json()["images"][2]
    assert entry["embedding"] is None
    assert "2.png" in entry["problem"]
    rows = list(csv.reader(write_embeddings(result, tmp_path / "v.csv").open()))
    assert rows[3][1:] == [""] * 320
    with pytest.raises(DataError, match=r"2\.png"):
        detector.embed(images / "2.png", image_size=64)


def test_files_hold_the_same_numbers(detector, images, tmp_path):
    result = detector.embed(images, image_size=64, output=tmp_path / "v.npz")
    with np.load(tmp_path / "v.npz", allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["embeddings"], result.embeddings)
        assert stored["paths"].tolist() == result.paths
        assert stored["row"] == 0
    rows = list(csv.reader(write_embeddings(result, tmp_path / "v.csv").open()))
    assert rows[0] == ["path", *map(str, range(320))]
    np.testing.assert_array_equal(np.array([row[1:] for row in rows[1:]], np.float32), result.embeddings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"row": 3}, "yields boxes"),
        ({"row": 9}, "does not exist"),
        ({"image_size": 50}, "multiple of 32"),
        ({"output": "v.parquet"}, r"\.npz"),
        ({"rows": 3}, "did you mean row"),
    ],
)
def test_mistakes(detector, images, settings, message):
    with pytest.raises(ConfigError, match=message):
        detector.embed(images, **settings)


def test_a_file_that_cannot_be_written_is_reported_before_an_image_is_read(detector, images, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="file is a file"):
        detector.embed(images / "missing.png", output=tmp_path / "file" / "v.npz")


def test_a_backbone_alone(images, tmp_path):
    backbone = convnextv2("atto")
    path = save_backbone(tmp_path / "b.safetensors", backbone.state_dict(), weights_licence="none", source_weights="none")
    opened = open_features(path)
    result = embed_images(opened.model, images / "1.png", image_size=64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    image = (tensor(images / "1.png") - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        wanted = backbone(image)[-1].mean((0, 2, 3)).numpy()
    np.testing.assert_allclose(result.embeddings[0], wanted, rtol=1e-4, atol=1e-5)
    few = {name: value for name, value in backbone.state_dict().items() if "stages.3.1.pwconv2" not in name}
    save_backbone(path, few, weights_licence="none", source_weights="none")
    with pytest.raises(WeightsError, match="missing"):
        open_features(path)


def test_command(detector, images, tmp_path, capsys):
    checkpoint = detector.save(tmp_path / "d.safetensors")
    for model in (checkpoint, tmp_path / "tiny.yaml"):
        assert run(["embed", str(model), str(images), "--row", "1", "--image-size", "64", "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert set(result) == {"command", "model", "row", "images", "skipped"}
        assert (result["command"], result["row"], len(result["images"])) == ("embed", 1, 5)
        assert set(result["images"][0]) == {"path", "embedding"}
        assert len(result["images"][0]["embedding"]) == 32
    output = str(tmp_path / "out" / "v.npz")
    assert run(["embed", str(checkpoint), str(images), "--image-size", "64", "--output", output, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["output"], result["shape"]) == (output, [5, 320])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "images"), (["x.jpg", "--output", "v.txt"], ".npz"), (["x.jpg", "--json", "--row", "-1"], "--row")],
)
def test_command_mistakes(detector, tmp_path, arguments, message, capsys):
    assert run(["embed", str(tmp_path / "tiny.yaml"), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.out + captured.err
    assert "Traceback" not in captured.err
