from __future__ import annotations

import pickle
from dataclasses import asdict

import pytest
import torch

from nextdetr.confidence import Thresholds
from nextdetr.engine.best import Best
from nextdetr.engine.state import Cursor, from_file, read_state, step_seed, write_state
from nextdetr.errors import WeightsError


def test_round_trip(tmp_path):
    cursor = Cursor(
        epoch=3, place=2, step=17, seconds=4.5, sums={"loss": 1.5}, best=Best(2, {"AP": 0.25, "AP_small": None})
    )
    write_state(tmp_path / "last.ckpt", cursor, model={"w": torch.ones(2)})
    again, parts = read_state(tmp_path / "last.ckpt")
    assert again == cursor
    assert torch.equal(parts["model"]["w"], torch.ones(2))


def test_thresholds_of_an_earlier_version_are_a_list(tmp_path):
    cursor = asdict(Cursor(thresholds=Thresholds([0.2, 0.4], [0.5, 0.6]))) | {"best": asdict(Best())}
    assert from_file(Cursor, cursor).thresholds == Thresholds([0.2, 0.4], [0.5, 0.6])
    cursor["thresholds"], cursor["best"]["thresholds"] = [0.2, 0.4], [0.1, 0.3]
    again = from_file(Cursor, cursor)
    assert (again.thresholds, again.best.thresholds) == (Thresholds([0.2, 0.4]), Thresholds([0.1, 0.3]))


class _Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


@pytest.mark.parametrize("kind", ["missing", "empty", "zeros", "text", "truncated", "pickle", "torch-pickle", "other"])
def test_bad_files_are_refused_and_run_nothing(tmp_path, capsys, kind):
    path = tmp_path / "last.ckpt"
    if kind in ("empty", "zeros"):
        path.write_bytes(bytes(5000 if kind == "zeros" else 0))
    elif kind == "text":
        path.write_text("hello")
    elif kind == "truncated":
        write_state(path, Cursor(), model={"w": torch.ones(100)})
        path.write_bytes(path.read_bytes()[:300])
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(_Evil()))
    elif kind == "torch-pickle":
        torch.save({"state_version": 1, "cursor": _Evil()}, path)
    elif kind == "other":
        torch.save({"model": {}}, path)
    with pytest.raises(WeightsError, match=r"last\.ckpt: ") as caught:
        read_state(path)
    assert "weights_only" not in str(caught.value)  # torch's own message says how to run what is in a file
    assert "\x1b" not in str(caught.value)
    assert "must never run" not in capsys.readouterr().out


def test_step_seeds_differ():
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(2)}
    assert len(seeds) == 300


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"epoch": "one"}, "epoch: input should be a valid integer"),
        ({"place": -4}, "place: input should be greater than or equal to 0"),
        ({"step": 2**70}, "step: input should be less than"),
        ({"sums": [1]}, "sums: input should be a valid dictionary"),
        ({"best": None}, "best: "),
        ({"best": {"epoch": "x"}}, "best.epoch: "),
        ({"more": 1}, "unknown is more"),
    ],
)
def test_a_cursor_of_other_kinds_is_refused(tmp_path, change, cause):
    path = tmp_path / "last.ckpt"
    write_state(path, Cursor())
    state = torch.load(path, weights_only=True)
    torch.save({**state, "cursor": {**state["cursor"], **change}}, path)
    with pytest.raises(WeightsError, match=f"last.ckpt: not a whole training state .{cause}"):
        read_state(path)


@pytest.mark.parametrize("cursor", [[1], None, 5])
def test_a_cursor_that_is_no_mapping_is_refused(tmp_path, cursor):
    torch.save({"state_version": 2, "cursor": cursor}, tmp_path / "last.ckpt")
    with pytest.raises(WeightsError, match="cursor is not a mapping"):
        read_state(tmp_path / "last.ckpt")
