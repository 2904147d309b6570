"""The tools themselves: MLflow with a database in a file, Weights & Biases offline, TensorBoard under two processes."""

from __future__ import annotations

import os
import struct
import sys
import time
from pathlib import Path

import pytest

import nextdetr
from nextdetr.cli.main import run
from nextdetr.config import TrainConfig
from nextdetr.engine.loggers.places import read_places
from nextdetr.engine.loggers.run import RunLogs
from nextdetr.engine.loggers.tools import Outcome
from nextdetr.engine.train import train
from nextdetr.errors import ConfigError
from tests.helpers import interrupt_training, squares, tiny_model

pytestmark = pytest.mark.slow
CI = bool(os.environ.get("CI"))


def needed(package):
    """The package; a test without it is skipped, but in CI it fails."""
    return __import__(package) if CI else pytest.importorskip(package)


@pytest.fixture(autouse=True)
def _apart(monkeypatch, tmp_path):
    """No account, settings or server of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    monkeypatch.chdir(tmp_path)
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # it keeps what it has read of the environment


@pytest.fixture
def settings(tmp_path):
    squares(tmp_path / "squares")
    return {
        "data": str(tmp_path / "squares"), "model": str(tiny_model(tmp_path)), "epochs": 2, "image_size": 64,
        "batch_size": 2, "workers": 0, "val_every": 1, "output": tmp_path / "run",
    }  # fmt: skip


def test_mlflow_has_one_run_of_both_sessions(settings, tmp_path, monkeypatch, capfd):
    mlflow = needed("mlflow")
    interrupt_training(settings | {"log": ("mlflow",)}, 4)
    place = read_places(settings["output"])["mlflow"]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert client.get_run(place["run_id"]).info.status == "KILLED"

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # where MLflow would begin another database
    result = train(TrainConfig(resume=settings["output"], epochs=3), quiet=True)
    experiment = client.get_experiment_by_name("nextdetr")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == read_places(settings["output"])["mlflow"]["run_id"] == place["run_id"]
    assert (found.info.status, found.info.run_name) == ("FINISHED", "run")
    assert (found.data.params["learning_rate"], found.data.params["epochs"]) == ("0.0004", "2")
    assert found.data.tags["now.epochs"] == "3"
    steps = [(metric.step, metric.value) for metric in client.get_metric_history(found.info.run_id, "loss")]
    assert [step for step, _ in steps] == [3, 6, 9]
    assert found.data.metrics["best/AP50"] == pytest.approx(result.best["metrics"]["AP50"])
    assert {"AP_class/square", "AP_class/bar"} <= set(found.data.metrics)
    names = {item.path for item in client.list_artifacts(found.info.run_id)}
    assert names == {"config.yaml", "metrics.csv", "report.html", "curves.png", "per_class.json", "weights"}
    (weights,) = client.list_artifacts(found.info.run_id, "weights")
    assert weights.file_size == (settings["output"] / "best.safetensors").stat().st_size
    row = nextdetr.runs(settings["output"]).runs[0]
    assert row.logs["mlflow"]["run_id"] == place["run_id"]
    assert capfd.readouterr().out == ""  # which is the result's


def test_mlflow_begins_anew_where_its_run_is_gone(settings, tmp_path, monkeypatch):
    mlflow = needed("mlflow")
    folder = settings["output"]
    folder.mkdir()
    config = TrainConfig(log=("mlflow",))
    with RunLogs(config, folder, "train", print):
        pass
    first = read_places(folder)["mlflow"]["run_id"]
    mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").delete_run(first)
    (folder / "last.ckpt").touch()
    with RunLogs(config, folder, "train", print):
        pass
    assert read_places(folder)["mlflow"]["run_id"] != first


def test_mlflow_takes_a_thousand_classes_and_the_script_keeps_its_own_run(settings, tmp_path):
    mlflow = needed("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'own.db'}")
    try:
        settings["output"].mkdir()
        with mlflow.start_run() as own:
            with RunLogs(TrainConfig(log=("mlflow",)), settings["output"], "train", print) as logs:
                logs.finish(Outcome({"AP": 0.5}, {f"(class {number})/猫": 0.25 for number in range(1203)}), 3)
            mlflow.log_metric("mine", 1.0)
        client = mlflow.MlflowClient()
        run_id = read_places(settings["output"])["mlflow"]["run_id"]
        found = client.get_run(run_id)
        assert sum(name.startswith("AP_class/") for name in found.data.metrics) == 1203
        assert found.data.tags["mlflow.parentRunId"] == own.info.run_id
        assert client.get_run(own.info.run_id).data.metrics == {"mine": 1.0}
    finally:
        mlflow.set_tracking_uri(None)


def test_a_server_that_is_not_there_is_told_before_a_training_and_ends_none(settings, monkeypatch, caplog):
    needed("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somebody:secret@127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"--log mlflow: the run cannot be logged there \(.*refused"):
        train(TrainConfig(**settings, log=("mlflow",)), quiet=True)
    assert not (settings["output"] / "metrics.csv").exists()
    interrupt_training(settings | {"log": ("csv",)}, 4)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert train(TrainConfig(resume=settings["output"], log=("mlflow",)), quiet=True).epochs == 2
    assert sum("MLflow cannot be written" in record.getMessage() for record in caplog.records) == 1
    assert "secret" not in "".join(path.read_text() for path in settings["output"].glob("*.json"))


def test_mlflow_skinny_without_a_server_is_refused_before_a_training(settings, monkeypatch):
    needed("mlflow")
    monkeypatch.setattr("nextdetr.engine.loggers.mlflow_run.is_installed", lambda name: name != "sqlalchemy")
    with pytest.raises(ConfigError, match=r"mlflow-skinny writes no database: set MLFLOW_TRACKING_URI .*; fix this"):
        train(TrainConfig(**settings, log=("mlflow",)), quiet=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # which is another matter
    with pytest.raises(ConfigError, match="refused"):
        train(TrainConfig(**settings, log=("mlflow",)), quiet=True)


def test_mlflow_that_fails_under_way_warns_once_and_gets_the_rest_later(settings, tmp_path, monkeypatch, caplog):
    mlflow = needed("mlflow")
    from sqlalchemy.exc import OperationalError

    settings["output"].mkdir()
    with RunLogs(TrainConfig(log=("mlflow",)), settings["output"], "train", print) as logs:
        (courier,) = logs._couriers
        with monkeypatch.context() as patch:
            patch.setattr(
                "mlflow.MlflowClient.log_batch", lambda *a, **k: (_ for _ in ()).throw(OperationalError("x", {}, "disk"))
            )
            for step in (1, 2):
                logs.add({"loss": 1.0}, step)
                assert not courier.wait(30)
        logs.add({"loss": 0.5}, 3)
    run_id = read_places(settings["output"])["mlflow"]["run_id"]
    history = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_metric_history(run_id, "loss")
    assert [metric.step for metric in history] == [1, 2, 3]
    assert sum("MLflow cannot be written" in record.getMessage() for record in caplog.records) == 1


def records(folder):
    """All records of an offline run of Weights & Biases, whose process may still be writing the last ones."""
    end = time.monotonic() + 30
    found = written(folder)
    while not any(record.HasField("exit") for record in found) and time.monotonic() < end:
        time.sleep(0.2)
        found = written(folder)
    return found


def written(folder):
    """The records that there are by now: protobufs in the blocks of LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("*.wandb")
    content, place, whole, found = file.read_bytes(), 7, b"", []
    assert content[:4] == b":W&B"
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # no header fits into the rest of a block
            place += 32768 - place % 32768
            continue
        size, kind = struct.unpack_from("<HB", content, place + 4)
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            found.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return found


def history(folder):
    rows = [record.history for record in records(folder) if record.WhichOneof("record_type") == "history"]
    return [{item.key or "/".join(item.nested_key): item.value_json for item in row.item} for row in rows]


def test_wandb_without_a_key_works_offline_and_has_one_run_of_both_sessions(settings, monkeypatch, capfd):
    needed("wandb")
    monkeypatch.setattr(sys, "stdin", None)  # nobody is there to answer
    interrupt_training(settings | {"log": ("wandb",)}, 4)
    place = read_places(settings["output"])["wandb"]
    assert (place["mode"], place["project"]) == ("offline", "nextdetr")
    assert place["look"].startswith(f"wandb sync {settings['output'].absolute()}/wandb/offline-run-")
    assert train(TrainConfig(resume=settings["output"])).epochs == 2
    told = " ".join(capfd.readouterr().err.split())
    assert "Weights & Biases works offline (no key: wandb login, or WANDB_API_KEY)." in told
    assert f"logged on as run {place['run_id']}; {place['look']}" in told
    first, second = sorted((settings["output"] / "wandb").glob(f"offline-run-*-{place['run_id']}"))
    assert read_places(settings["output"])["wandb"]["run_id"] == place["run_id"]
    assert [row["_step"] for row in history(first)] == ["3"]
    assert [row["_step"] for row in history(second)] == ["6"]
    assert {"loss", "AP50", "report/path"} <= set(history(second)[-1])
    run_records = [record.run for record in records(second) if record.WhichOneof("record_type") == "run"]
    config = {item.key: item.value_json for item in run_records[0].config.update}
    assert config["learning_rate"] == "0.0004"
    summary = [record.summary for record in records(second) if record.WhichOneof("record_type") == "summary"]
    keys = {item.key or "/".join(item.nested_key) for part in summary for item in part.update}
    assert {"best/AP", "AP_class/square", "AP_class/bar"} <= keys
    kinds = {record.request.log_artifact.artifact.type for record in records(second)} | {
        record.artifact.type for record in records(second)
    }
    assert {"model", "files"} <= kinds


@pytest.mark.parametrize("key", ["a" * 40, "short"])
def test_wandb_with_a_key_and_no_server_works_offline(tmp_path, monkeypatch, key):
    needed("wandb")
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("nextdetr.engine.loggers.wandb_run.INIT_SECONDS", 3.0)
    told = []
    (tmp_path / "run").mkdir()
    with RunLogs(TrainConfig(log=("wandb",)), tmp_path / "run", "train", told.append) as logs:
        logs.add({"loss": 1.0}, 1)
    assert "works offline (" in told[0]
    assert [row["loss"] for row in history(next((tmp_path / "run" / "wandb").glob("offline-run-*")))] == ["1"]


def test_wandb_that_is_disabled_logs_nothing(tmp_path, monkeypatch):
    needed("wandb")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    told = []
    (tmp_path / "run").mkdir()
    with RunLogs(TrainConfig(log=("wandb",)), tmp_path / "run", "train", told.append) as logs:
        logs.add({"loss": 1.0}, 1)
        logs.finish(Outcome({"AP": 0.5}, {"cat": 0.5}), 1)
    assert told == ["Weights & Biases is disabled (WANDB_MODE): nothing is logged there."]
    assert not (tmp_path / "run" / "wandb").exists()


def test_only_the_first_of_two_processes_logs(settings, capfd):
    needed("wandb")
    settings |= {"devices": 2, "accelerator": "cpu", "log": ("wandb", "tensorboard"), "epochs": 1}
    train(TrainConfig(**settings), quiet=True)
    assert len(list((settings["output"] / "wandb").glob("offline-run-*"))) == 1
    assert len(list(settings["output"].glob("events*"))) == 1


def test_pre_training_of_both_parts_and_the_command_line(settings, tmp_path, capsys):
    needed("wandb")
    arguments = [
        "pretrain", str(Path(settings["data"]) / "images" / "train"), "--model", "nextdetr-zepto", "--detector", "--epochs",
        "1", "--head-epochs", "1", "--image-size", "64", "--batch-size", "3", "--head-batch-size", "3", "--workers", "0",
        "--output", str(tmp_path / "pre"), "--log", "wandb", "tensorboard",
    ]  # fmt: skip
    assert run(arguments) == 0
    for folder, name in ((tmp_path / "pre", "pre"), (tmp_path / "pre" / "head", "pre/head")):
        assert list(folder.glob("events*"))
        (session,) = (folder / "wandb").glob("offline-run-*")
        (found,) = [record.run for record in records(session) if record.WhichOneof("record_type") == "run"]
        assert found.display_name == name
        assert "loss" in history(session)[0]
    assert run(["runs", str(tmp_path / "pre")]) == 0
    assert f"wandb sync {tmp_path / 'pre' / 'wandb'}" in capsys.readouterr().out
