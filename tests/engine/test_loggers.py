"""Experiment trackers, simulated: what each is sent, and what happens to the run if one fails."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from importlib.machinery import ModuleSpec

import pytest

from nextdetr.config import TrainConfig, build_config
from nextdetr.engine.loggers import run as run_module
from nextdetr.engine.loggers import tools
from nextdetr.engine.loggers.board import TensorBoard
from nextdetr.engine.loggers.courier import Courier, reason
from nextdetr.engine.loggers.mlflow_run import metric_names
from nextdetr.engine.loggers.places import read_places
from nextdetr.engine.loggers.run import RunLogs
from nextdetr.engine.loggers.tools import Logged, Outcome, Tool
from nextdetr.engine.train import Trainer, train
from nextdetr.errors import ConfigError
from nextdetr.installation import install_command
from tests.helpers import interrupt_training, squares, tiny_model


class Recorder(Tool):
    """A tracker that records what it is sent; ``fails`` says which calls fail."""

    name = "mlflow"

    def __init__(self, fails=lambda call: False):
        self.calls, self.fails = [], fails

    def _take(self, *call):
        if self.fails(call):
            raise ConnectionError("the network is down")
        self.calls.append(call)

    def start(self, run, earlier):
        self._take("start", run.name, earlier)
        return {"run_id": earlier.get("run_id", "r1"), "look": "there"}

    def add(self, values, step, when):
        self._take("add", values, step)

    def finish(self, outcome, step, when):
        self._take("finish", outcome)

    def close(self, status):
        self._take("close", status)

    def names(self):
        return [call[0] for call in self.calls]


@pytest.fixture
def settings(tmp_path):
    squares(tmp_path / "squares")
    return {
        "data": str(tmp_path / "squares"), "model": str(tiny_model(tmp_path)), "epochs": 2, "image_size": 64,
        "batch_size": 2, "workers": 0, "val_every": 1, "output": tmp_path / "run", "log": ("mlflow",),
    }  # fmt: skip


@pytest.fixture
def tool(monkeypatch):
    """Have this tool stand in for MLflow."""

    def use(recorder):
        monkeypatch.setattr(run_module, "_open", lambda name, tell: recorder)
        monkeypatch.setattr(tools, "is_installed", lambda package: True)
        return recorder

    return use


def logs(folder, tell=lambda text: None):
    folder.mkdir(exist_ok=True)
    return RunLogs(TrainConfig(log=("mlflow",)), folder, "train", tell)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("nextdetr.engine.loggers")]


def test_a_training_is_logged_from_its_settings_to_its_files(settings, tool):
    recorder = tool(Recorder())
    result = train(TrainConfig(**settings), quiet=True)
    assert recorder.names() == ["start", "add", "add", "finish", "close"]
    assert recorder.calls[0] == ("start", "run", {})
    first = recorder.calls[1][1]
    assert {"loss", "loss_l1", "learning_rate", "AP"} <= set(first)
    assert recorder.calls[2][2] == 6  # steps
    outcome = recorder.calls[3][1]
    assert outcome.metrics["AP"] == pytest.approx(result.best["metrics"]["AP"])
    assert set(outcome.per_class) == {"square", "bar"}
    assert {path.name for path in outcome.existing()} == {
        "config.yaml", "metrics.csv", "report.html", "curves.png", "best.safetensors",
    }  # fmt: skip
    assert recorder.calls[-1] == ("close", "finished")
    assert read_places(settings["output"]) == {"mlflow": {"run_id": "r1", "look": "there"}}


def test_a_stopped_run_goes_on_in_the_same_place(settings, tool, monkeypatch):
    recorder = tool(Recorder())
    interrupt_training(settings, 4)
    assert recorder.calls[-1] == ("close", "interrupted")
    recorder.calls.clear()
    train(TrainConfig(resume=settings["output"]), quiet=True)
    assert recorder.calls[0] == ("start", "run", {"run_id": "r1", "look": "there"})
    assert recorder.names() == ["start", "add", "finish", "close"]


def test_another_tool_may_be_named_when_a_run_goes_on(settings, tool, monkeypatch):
    recorder = tool(Recorder())
    interrupt_training(settings | {"log": ("csv",)}, 4)
    assert recorder.calls == []
    train(TrainConfig(resume=settings["output"], log=("mlflow",)), quiet=True)
    assert recorder.names() == ["start", "add", "finish", "close"]


def test_a_run_that_breaks_is_said_to_have_failed(settings, tool, monkeypatch):
    recorder = tool(Recorder())
    monkeypatch.setattr(Trainer, "step", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(TrainConfig(**settings), quiet=True)
    assert recorder.calls[-1] == ("close", "failed")


def test_a_session_that_only_validates_is_logged_and_in_the_table(settings, tool, monkeypatch):
    recorder = tool(Recorder())
    monkeypatch.setattr(Trainer, "_validation_due", lambda *arguments: False)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_validate", lambda self, number: 1 / 0)
        with pytest.raises(ZeroDivisionError):  # after the last epoch, whose state is saved
            train(TrainConfig(**settings), quiet=True)
    recorder.calls.clear()
    result = train(TrainConfig(resume=settings["output"]), quiet=True)
    assert recorder.names() == ["start", "add", "finish", "close"]
    assert recorder.calls[1][1]["AP50"] == pytest.approx(result.best["metrics"]["AP50"])
    lines = (settings["output"] / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    assert len(lines) == 3
    assert float(lines[2].split(",")[names.index("AP50")]) == pytest.approx(result.best["metrics"]["AP50"], rel=1e-5)
    assert lines[2].split(",")[names.index("loss_l1")]


def test_a_tool_that_is_not_installed_is_refused_before_anything_is_read(settings, monkeypatch):
    monkeypatch.setattr(tools, "is_installed", lambda package: package != "wandb")
    with pytest.raises(ConfigError, match=r"--log wandb needs the package wandb: pip install wandb"):
        train(TrainConfig(**settings | {"log": ("mlflow", "wandb"), "data": "nowhere"}), quiet=True)
    assert not settings["output"].exists()


def test_a_mere_folder_is_no_package(monkeypatch):
    """W&B leaves a folder wandb behind, which Python takes for a package without files."""
    monkeypatch.setattr("nextdetr.extras.find_spec", lambda name: ModuleSpec(name, None))
    assert not tools.is_installed("wandb")


def test_a_tool_that_does_not_take_a_new_run_is_told_before_the_training(settings, tool):
    tool(Recorder(fails=lambda call: call[0] == "start"))
    with pytest.raises(ConfigError, match=r"--log mlflow: the run cannot be logged there \(the network is down\)"):
        train(TrainConfig(**settings), quiet=True)


def test_a_run_that_goes_on_does_so_without_its_tool(tmp_path, tool, caplog):
    recorder = tool(Recorder(fails=lambda call: True))
    told = []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.ckpt").touch()
    with logs(tmp_path / "run", told.append) as running:
        for step in range(3):
            running.add({"loss": 1.0}, step)
        running.finish(Outcome({}), 3)
    assert recorder.calls == []
    assert len(warnings(caplog)) == 1
    assert "MLflow cannot be written (the network is down); the run continues" in warnings(caplog)[0]
    assert "MLflow lacks the end of this run" in told[-1]


def test_after_an_outage_the_tool_has_everything_in_order(tmp_path, tool, caplog):
    down = threading.Event()
    recorder = tool(Recorder(fails=lambda call: down.is_set()))
    with logs(tmp_path / "run") as running:
        running.add({"loss": 3.0}, 1)
        (courier,) = running._couriers
        assert courier.wait(10)
        down.set()
        for step in (2, 3):
            running.add({"loss": 3.0}, step)
            assert not courier.wait(10)
        down.clear()
        running.add({"loss": 1.0, "AP": None, "AR": float("nan")}, 4)
    assert recorder.calls[1:] == [
        ("add", {"loss": 3.0}, 1), ("add", {"loss": 3.0}, 2), ("add", {"loss": 3.0}, 3), ("add", {"loss": 1.0}, 4),
        ("close", "finished"),
    ]  # fmt: skip
    assert len(warnings(caplog)) == 1


def test_a_slow_network_holds_neither_the_run_nor_its_end(tmp_path, tool, monkeypatch):
    monkeypatch.setattr(run_module, "SHORT_SECONDS", 0.2)
    monkeypatch.setattr(run_module, "CLOSE_SECONDS", 0.2)
    release = threading.Event()
    tool(Recorder(fails=lambda call: call[0] == "add" and release.wait(60)))
    started, told = time.monotonic(), []
    with logs(tmp_path / "run", told.append) as running:
        running.add({"loss": 1.0}, 1)
    assert time.monotonic() - started < 30
    assert "lacks the end" in told[-1]
    release.set()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"mlflow": 1}', '{"mlflow": {"run_id": 1}}', '{"elsewhere": {}}', "[" * 9999]
)
def test_a_damaged_list_of_places_begins_anew(tmp_path, tool, caplog, content):
    recorder = tool(Recorder())
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "last.ckpt").touch()
    (folder / "logs.json").write_text(content)
    with logs(folder):
        pass
    assert recorder.calls[0] == ("start", "run", {})
    assert "logged as a new one" in warnings(caplog)[0]
    assert json.loads((folder / "logs.json").read_text())["mlflow"]["run_id"] == "r1"


def test_tools_are_given_as_texts_lists_and_with_commas():
    for given in ("mlflow,wandb", ["mlflow", "wandb"], ("mlflow, wandb",)):
        assert build_config(TrainConfig, {"log": given}).log == ("mlflow", "wandb")
    assert TrainConfig().log is None
    with pytest.raises(ConfigError, match="--log"):
        build_config(TrainConfig, {"log": "comet"})


def test_names_that_mlflow_refuses_are_replaced_and_stay_apart():
    names = ["cat", "猫", "a/b", "a(b", ".", "..", "", "x" * 300, "x" * 301, "été d'or"]
    found = metric_names(names)
    assert len(set(found.values())) == len(names)
    assert [found[name] for name in ("cat", "猫", "a/b", "..", "été d'or")] == ["cat", "猫", "a_b", "__", "été d_or"]
    assert max(map(len, found.values())) <= 240


# TensorBoard


def board(folder, **settings):
    tool = TensorBoard()
    tool.start(Logged("run", folder, "train", settings, False), {})
    return tool


def test_events_are_what_tensorboard_reads(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tool = board(tmp_path, seed=3, log=["csv"], teacher=None)
    tool.add({"loss": 2.5}, 3, 100.0)
    tool.add({"loss": 1.5, "AP": 0.25}, 4, 101.0)
    tool.finish(Outcome({}, {"猫": 0.5, "none": None}), 4, 102.0)
    tool.close("finished")
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 2.5), (4, 1.5)]
    assert [(event.step, event.value) for event in events.Scalars("AP")] == [(4, 0.25)]
    assert [(event.step, event.value) for event in events.Scalars("AP_class/猫")] == [(4, 0.5)]
    assert events.SummaryMetadata("_hparams_/session_start_info").plugin_data.plugin_name == "hparams"


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_events_stop_and_the_run_does_not_when_the_disk_is_full(tmp_path, caplog, capfd):
    pytest.importorskip("tensorboard")
    with RunLogs(TrainConfig(), tmp_path, "train", lambda text: None) as running:
        (courier,) = running._couriers
        courier.tool._writer._writer.close()
        courier.tool._writer._writer = type("Full", (), {"write": full, "flush": full, "close": full})()
        running.add({"loss": 2.5}, 3)
        running.add({"loss": 2.5}, 4)
    assert caplog.text.count("No space left") == 1
    with RunLogs(TrainConfig(), tmp_path / "gone", "train", lambda text: None) as running:
        running.add({"loss": 2.5}, 3)
    assert "Traceback" not in capfd.readouterr().err


def test_without_tensorboard_a_line_says_so_and_csv_asks_for_none(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(run_module, "is_installed", lambda package: False)
    with RunLogs(TrainConfig(), tmp_path, "train", told.append):
        pass
    assert told == [f"No TensorBoard events: the package is not installed ({install_command('logging')})."]
    monkeypatch.undo()
    with RunLogs(TrainConfig(log=("csv",)), tmp_path, "train", told.append) as running:
        assert running._couriers == []
    assert not list(tmp_path.glob("events*"))
    assert len(told) == 1


def test_reasons_are_short_and_hold_no_password():
    text = reason(ValueError("request to http://me:secret@host/x failed: " + "long " * 200 + "refused."))
    assert text.startswith("request to http://host/x failed")
    assert text.endswith("refused")
    assert len(text) <= 300
    assert reason(ValueError()) == "ValueError"


def test_a_package_that_cannot_be_imported_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "_tool", lambda name, tell: exec("raise ImportError('no numpy')"))
    with pytest.raises(ConfigError, match=r"--log mlflow: its package cannot be imported \(no numpy\)"):
        logs(tmp_path / "run").__enter__()


def test_a_courier_makes_local_calls_at_once():
    made = []
    tool = Recorder()
    tool.remote = False
    courier = Courier(tool)
    courier.send(lambda: made.append(1))
    assert made == [1]
    assert courier.wait(0)
