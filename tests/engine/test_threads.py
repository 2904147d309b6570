"""The number of threads of a training on a CPU that other programs use, too."""

from __future__ import annotations

import pytest
import torch

from nextdetr.config import TrainConfig
from nextdetr.engine import threads as threads_module
from nextdetr.engine.log import Display
from nextdetr.engine.threads import GAIN, INTERVAL, ThreadTuner
from nextdetr.engine.train import Trainer, train
from tests.helpers import squares, tiny_model

CPU = torch.device("cpu")


class Machine:
    """Speeds by number of threads, and a clock that stands still."""

    def __init__(self, **speeds: float) -> None:
        self.speeds = {int(count.lstrip("t")): speed for count, speed in speeds.items()}
        self.seconds = 0.0
        self.timed: list[int] = []

    def speed(self, count: int) -> float:
        self.timed.append(count)
        return self.speeds.get(count, 0.0)

    def clock(self) -> float:
        return self.seconds


@pytest.fixture
def _threads(monkeypatch):
    """Four threads, whatever the environment says; the number is restored."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def tuner(machine: Machine, lines: list[str] | None = None, **options) -> ThreadTuner:
    display = Display(enabled=False)
    display.line = (lines if lines is not None else []).append  # type: ignore[method-assign]
    options = {"device": CPU, "clock": machine.clock, "speed": machine.speed, **options}
    return ThreadTuner(options.pop("device"), display, **options)


@pytest.mark.usefixtures("_threads")
def test_a_busy_machine_gets_fewer_threads_and_an_idle_one_all_of_them():
    machine, lines = Machine(t4=1.0, t3=1.6, t2=1.5), []
    tuned = tuner(machine, lines)
    tuned.adapt()
    assert torch.get_num_threads() == 3
    machine.speeds = {1: 1.0, 2: 1.4, 3: 1.0, 4: 0.8}
    tuned.adapt()
    assert torch.get_num_threads() == 3  # not due yet
    machine.seconds += INTERVAL
    tuned.adapt()
    assert torch.get_num_threads() == 2
    machine.speeds = {1: 1.0, 2: 1.9, 3: 2.8, 4: 3.7}
    machine.seconds += INTERVAL
    tuned.adapt()
    assert torch.get_num_threads() == 4
    assert lines == [
        "Training uses 3 of 4 CPU threads, which is faster while other programs run (OMP_NUM_THREADS sets a fixed number).",
        "Training uses 4 of 4 CPU threads again.",
    ]


@pytest.mark.usefixtures("_threads")
def test_a_small_difference_changes_nothing_and_the_start_is_the_limit():
    machine = Machine(t2=1.0, t3=0.99 * GAIN, t4=1.0, t8=9.0)
    tuner(machine).adapt()
    assert torch.get_num_threads() == 4
    assert set(machine.timed) == {2, 3, 4}


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("options", [{"device": torch.device("cuda", 0)}, {"processes": 2}])
def test_it_is_off_on_other_devices_and_with_several_processes(options):
    machine = Machine(t3=9.0)
    tuned = tuner(machine, **options)
    torch.set_num_threads(3)  # by someone else
    tuned.adapt()
    tuned.restore()
    assert not machine.timed
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("_threads")
def test_a_number_set_by_the_user_is_kept(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    machine = Machine(t3=9.0)
    tuner(machine).adapt()
    assert not machine.timed


@pytest.mark.usefixtures("_threads")
def test_the_timed_work_takes_no_random_numbers():
    before = torch.get_rng_state()
    work = threads_module._Work()
    assert work.speed(2) > 0
    assert torch.get_num_threads() == 2
    with torch.no_grad():
        assert work.speed(1) > 0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("_threads")
def test_a_training_uses_it_and_restores_the_threads(tmp_path, monkeypatch):
    seen, step = [], Trainer.step

    def noted(self, *arguments):
        seen.append(torch.get_num_threads())
        return step(self, *arguments)

    def ended(self):
        run_epochs(self)
        after.append(torch.get_num_threads())

    after, run_epochs = [], Trainer.run_epochs
    monkeypatch.setattr(Trainer, "step", noted)
    monkeypatch.setattr(Trainer, "run_epochs", ended)
    monkeypatch.setattr(threads_module._Work, "speed", lambda self, count: {2: 1.0}.get(count, 0.1))
    train(
        TrainConfig(
            data=str(squares(tmp_path / "data")), model=str(tiny_model(tmp_path)), epochs=1, image_size=64, batch_size=2,
            workers=0, output=tmp_path / "run", start="none", accelerator="cpu",
        ),
        quiet=True,
    )  # fmt: skip
    assert seen
    assert set(seen) == {2}
    assert after == [4]  # what is measured after the last step has all threads
