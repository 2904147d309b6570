"""The number of threads of a training on a CPU that other programs use, too."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nextdetr.config import TrainConfig
from nextdetr.engine import threads as threads_module
from nextdetr.engine.log import Display
from nextdetr.engine.threads import GAIN, INTERVAL, ROUNDS, ThreadTuner
from nextdetr.engine.train import Trainer, train
from tests.helpers import squares, tiny_model

CPU = torch.device("cpu")


class Machine:
    """Steps take a time that depends on the threads; the clock only advances during them."""

    def __init__(self, **seconds: float) -> None:
        self.take(**seconds)
        self.now = 0.0
        self.used: list[int] = []

    def take(self, **seconds: float) -> None:
        self.seconds = {int(count.lstrip("t")): value for count, value in seconds.items()}

    def clock(self) -> float:
        return self.now

    def step(self, tuned: ThreadTuner, work: float = 1.0) -> None:
        with tuned.step(work):
            count = torch.get_num_threads()
            self.used.append(count)
            self.now += work * self.seconds.get(count, 9.0)

    def steps(self, tuned: ThreadTuner, number: int) -> list[int]:
        """Threads of the next steps."""
        self.used = []
        for _ in range(number):
            self.step(tuned)
        return self.used


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
    options = {"device": CPU, "clock": machine.clock, **options}
    return ThreadTuner(options.pop("device"), display, **options)


@pytest.mark.usefixtures("_threads")
def test_a_busy_machine_gets_fewer_threads_and_an_idle_one_all_of_them():
    machine, lines = Machine(t4=1.0, t3=0.6, t2=0.7), []
    tuned = tuner(machine, lines)
    assert machine.steps(tuned, 3 * ROUNDS) == [2, 3, 4] * ROUNDS
    machine.take(t1=1.0, t2=0.7, t3=1.0, t4=1.2)
    assert machine.steps(tuned, 20) == [3] * 20  # no trial is due yet
    machine.now += 1000
    assert machine.steps(tuned, 4 * ROUNDS) == [1, 2, 3, 4] * ROUNDS
    assert machine.steps(tuned, 1) == [2]
    machine.take(t1=4.0, t2=2.1, t3=1.4, t4=1.0)
    machine.now += 1000
    machine.steps(tuned, 4 * ROUNDS)
    assert machine.steps(tuned, 1) == [4]
    assert lines == [
        "Training uses 3 of 4 CPU threads, which is faster while other programs run (OMP_NUM_THREADS sets a fixed number).",
        "Training uses 4 of 4 CPU threads again.",
    ]


@pytest.mark.usefixtures("_threads")
def test_a_small_difference_changes_nothing_and_the_start_is_the_limit():
    machine = Machine(t2=2.0, t3=1.01 / GAIN, t4=1.0, t8=0.1)
    tuned = tuner(machine)
    assert set(machine.steps(tuned, 3 * ROUNDS)) == {2, 3, 4}
    assert machine.steps(tuned, 1) == [4]


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize(("at", "seconds"), [(2, {"t4": 50.0}), (3, {"t2": 0.01})])
def test_steps_are_compared_by_their_work_and_a_single_one_decides_nothing(at, seconds):
    machine = Machine(t2=2.0, t3=1.5, t4=1.0)
    tuned = tuner(machine)
    for number in range(3 * ROUNDS):
        if number == at:  # something else happens in this step
            usual = machine.seconds
            machine.take(**seconds)
            machine.step(tuned)
            machine.seconds = usual
        else:
            machine.step(tuned, work=0.1 if number % 3 == 0 else 5.0)
    assert machine.steps(tuned, 1) == [4]


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("seconds", [0.1, 5.0])
def test_trials_take_a_small_part_of_the_time(seconds):
    machine = Machine(t2=1.9 * seconds, t3=1.4 * seconds, t4=seconds)
    tuned = tuner(machine)
    used = machine.steps(tuned, 1500)
    others = len([count for count in used if count != 4])
    assert others >= 2 * 2 * ROUNDS  # more than one trial
    assert others < 0.03 * len(used)
    assert machine.now < 1.02 * seconds * len(used)
    assert INTERVAL > 3 * ROUNDS * 1.9 * 0.1


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("options", [{"device": torch.device("cuda", 0)}, {"processes": 2}])
def test_it_is_off_on_other_devices_and_with_several_processes(options):
    machine = Machine(t3=0.1)
    tuned = tuner(machine, **options)
    torch.set_num_threads(3)  # by someone else
    assert machine.steps(tuned, 30) == [3] * 30
    tuned.restore()
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("_threads")
def test_a_number_set_by_the_user_is_kept(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    machine = Machine(t3=0.1)
    assert machine.steps(tuner(machine), 30) == [4] * 30


@pytest.mark.usefixtures("_threads")
def test_a_training_uses_it_and_restores_the_threads(tmp_path, monkeypatch):
    seen, step = [], Trainer.step

    def noted(self, *arguments):
        seen.append(torch.get_num_threads())
        machine.now += {2: 1.0}.get(seen[-1], 5.0)
        return step(self, *arguments)

    def ended(self):
        run_epochs(self)
        after.append(torch.get_num_threads())

    after, run_epochs = [], Trainer.run_epochs
    monkeypatch.setattr(Trainer, "step", noted)
    monkeypatch.setattr(Trainer, "run_epochs", ended)
    machine = Machine()
    monkeypatch.setattr(threads_module, "time", SimpleNamespace(monotonic=machine.clock))
    train(
        TrainConfig(
            data=str(squares(tmp_path / "data")), model=str(tiny_model(tmp_path)), epochs=4, image_size=64, batch_size=2,
            workers=0, output=tmp_path / "run", start="none", accelerator="cpu",
        ),
        quiet=True,
    )  # fmt: skip
    assert seen == [2, 3, 4] * ROUNDS + [2] * 3
    assert after == [4]  # what is measured after the last step has all threads
