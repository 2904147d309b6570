from __future__ import annotations

import json

import pytest
from PIL import Image

from nextdetr.config import PredictConfig
from nextdetr.errors import ConfigError, DataError
from nextdetr.inference.pipeline import predict_stream
from nextdetr.inference.predictor import Predictor
from nextdetr.inference.writers.table import PredictionTable
from tests.inference.conftest import CLASSES

parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def photos(scene, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(7):
        scene.save(folder / f"{number}.png")
    (folder / "3.png").write_bytes(b"no image")
    return folder


def run(model, photos, output, **settings):
    predictor = Predictor(model, CLASSES, 200, device="cpu")
    sources = photos if isinstance(photos, list) else str(photos)
    return predict_stream(predictor, sources, PredictConfig(output=output, batch_size=2, **settings), model="m")


def test_a_row_an_image(model, photos, tmp_path):
    yielded = list(run(model, photos, tmp_path / "all.parquet"))
    table = parquet.read_table(tmp_path / "all.parquet")
    rows = table.to_pylist()
    assert [row["path"] for row in rows] == [str(photos / f"{n}.png") for n in range(7)] == [item.path for item in yielded]
    assert [row["problem"] is not None for row in rows] == [n == 3 for n in range(7)]
    assert rows[0]["detections"][0]["class_name"] == "dog"
    assert rows[0]["detections"][0]["box"] == pytest.approx([20, 10, 80, 50], abs=1e-3)
    assert (rows[0]["width"], rows[0]["height"], len(rows[0]["detections"]), rows[3]["detections"]) == (200, 100, 2, [])
    assert json.loads(table.schema.metadata[b"nextdetr"])["model"] == "m"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.parquet", "photos"]


def test_a_run_that_was_broken_off_goes_on(model, photos, tmp_path, monkeypatch):
    output = tmp_path / "all.parquet"
    monkeypatch.setattr("nextdetr.inference.writers.table.PART_ROWS", 2)
    stream = run(model, photos, output)
    for _ in range(4):
        next(stream)
    stream.close()  # as Ctrl-C does
    assert not output.exists()
    seen = len(model.batches)
    rest = list(run(model, photos, output))
    assert len(rest) <= 4
    assert len(model.batches) - seen <= 2
    paths = parquet.read_table(output).column("path").to_pylist()
    assert sorted(paths) == sorted(str(photos / f"{n}.png") for n in range(7))


def test_a_rest_of_damaged_images_is_no_failure(model, photos, tmp_path):
    output = tmp_path / "all.parquet"
    stream = run(model, photos, output)
    next(stream)
    stream.close()
    for path in sorted(photos.iterdir())[1:]:
        path.write_bytes(b"no image")
    assert all(item.problem for item in run(model, photos, output))
    assert parquet.read_table(output).num_rows == 7


def test_nothing_readable_at_all(model, photos, tmp_path):
    for path in photos.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 7"):
        list(run(model, photos, tmp_path / "all.parquet"))


def test_refusals(model, photos, scene, tmp_path):
    output = tmp_path / "all.parquet"
    next(run(model, photos, output))
    with pytest.raises(ConfigError, match="other settings"):
        run(model, photos, output, confidence=0.5)
    list(run(model, photos, output))
    with pytest.raises(ConfigError, match="exists already"):
        run(model, photos, output)
    with pytest.raises(ConfigError, match="videos"):
        run(model, photos, tmp_path / "b.parquet", zone=("0,0,9,0,9,9",))
    predictor = Predictor(model, CLASSES, 200, device="cpu")
    with pytest.raises(ConfigError, match="names its images by their files"):
        predict_stream(predictor, [Image.new("RGB", (9, 9))], PredictConfig(output=tmp_path / "c.parquet"))


def test_parts_are_bounded(model, photos, tmp_path):
    table = PredictionTable(tmp_path / "t.parquet", {}, part_rows=2)
    predictor = Predictor(model, CLASSES, 200, device="cpu")
    with table.kept():
        for prediction in predictor.stream(str(photos)):
            table.add(prediction)
        table.abort()
        parts = sorted((tmp_path / "t.parquet.parts").glob("part-*.parquet"))
        assert [parquet.read_metadata(part).num_rows for part in parts] == [2, 2, 2, 1]
        table.commit()
    assert parquet.read_metadata(tmp_path / "t.parquet").num_rows == 7
    assert not (tmp_path / "t.parquet.parts").exists()


def test_a_second_process_is_refused(model, photos, tmp_path):
    output = tmp_path / "all.parquet"
    first = run(model, photos, output)
    next(first)
    second = run(model, photos, output)  # begun before the first has ended
    with pytest.raises(ConfigError, match="another process is writing there"):
        next(second)
    assert len(list(first)) == 6
    third = run(model, [photos, photos / "1.png"], tmp_path / "b.parquet")
    late = run(model, photos, tmp_path / "b.parquet")
    assert len(list(third)) == 7
    with pytest.raises(ConfigError, match="exists already"):
        next(late)
    for name in ("all", "b"):
        paths = parquet.read_table(tmp_path / f"{name}.parquet").column("path").to_pylist()
        assert sorted(paths) == sorted(str(photos / f"{n}.png") for n in range(7)), "a row is lost or doubled"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.parquet", "b.parquet", "photos"]


def test_a_damaged_part_is_named(model, photos, tmp_path):
    stream = run(model, photos, tmp_path / "all.parquet")
    next(stream)
    stream.close()
    part = next((tmp_path / "all.parquet.parts").glob("part-*"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(DataError, match=r"part-00000000\.parquet is damaged.*remove it"):
        next(run(model, photos, tmp_path / "all.parquet"))
    part.unlink()
    assert len(list(run(model, photos, tmp_path / "all.parquet"))) == 7


def test_parts_behind_a_removed_one_are_kept(model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("nextdetr.inference.writers.table.PART_ROWS", 2)
    output = tmp_path / "all.parquet"
    stream = run(model, photos, output)
    for _ in range(5):
        next(stream)
    stream.close()
    parts = sorted((tmp_path / "all.parquet.parts").glob("part-*"))
    assert len(parts) == 3
    parts[1].unlink()  # as the message about a damaged part says
    assert len(list(run(model, photos, output))) == 4
    paths = parquet.read_table(output).column("path").to_pylist()
    assert sorted(paths) == sorted(str(photos / f"{n}.png") for n in range(7))


def test_other_weights_are_another_model(model, photos, tmp_path):
    predictor = Predictor(model, CLASSES, 200, device="cpu")
    (tmp_path / "a.pth").write_bytes(b"1")
    (tmp_path / "b.pth").write_bytes(b"2")

    def begun(weights):
        opens = {"model": "m", "weights": weights, "backbone_weights": None}
        config = PredictConfig(output=tmp_path / "all.parquet", batch_size=2)
        return predict_stream(predictor, str(photos), config, model="m", opens=opens)

    next(begun(tmp_path / "a.pth"))
    for other in (tmp_path / "b.pth", "owner/name", None):
        with pytest.raises(ConfigError, match="another model"):
            begun(other)
    assert len(list(begun(tmp_path / "a.pth"))) == 6
