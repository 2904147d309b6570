from __future__ import annotations

import json
import time

import pytest
import torch
from torch import nn

from nextdetr import Detector
from nextdetr.cli.main import run
from nextdetr.errors import ConfigError
from nextdetr.models.graph import build_model, parse_model_text
from nextdetr.models.profile import RowProfile, profile_rows
from nextdetr.models.summary import count_gflop, summarize
from tests.helpers import TINY_MODEL, tiny_model


@pytest.fixture
def tiny():
    return build_model(parse_model_text(TINY_MODEL, "tiny.yaml"))


def test_rows_sum_to_the_whole_and_a_convolution_to_its_formula(tiny):
    rows = profile_rows(tiny, 64, runs=1, warm_up=0)
    assert len(rows) == len(tiny.rows)
    assert sum(row.gflop for row in rows) == pytest.approx(count_gflop(tiny, 64), rel=1e-9)
    assert rows[1].gflop == pytest.approx(2 * 320 * 32 * 2 * 2 / 1e9)  # a 1x1 convolution on the 2x2 places of stride 32
    assert rows[2].gflop == pytest.approx(2 * 160 * 32 * 4 * 4 / 1e9)
    assert all(row.seconds > 0 for row in rows)


class Slow(nn.Module):
    def __init__(self, inner: nn.Module, seconds: list[float]) -> None:
        super().__init__()
        self.inner, self.seconds = inner, seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds.pop(0))
        return self.inner(x)


def test_time_is_the_median_of_the_runs_after_the_warm_up(tiny):
    waits = [0.0, 0.5, 0.02, 0.3, 0.02]  # counting, warm-up, three runs
    tiny.rows[1] = Slow(tiny.rows[1], waits)
    rows = profile_rows(tiny, 64, runs=3, warm_up=1)
    assert waits == []
    assert 0.02 <= rows[1].seconds < 0.2
    assert rows[2].seconds < 0.2


def test_speed():
    assert RowProfile(0.5, 4.0).gflop_per_second == 8.0
    assert RowProfile(0.0, 0.0).gflop_per_second == 0.0


def test_profiling_has_no_side_effect(tiny):
    tiny.train()
    tiny.backbone.eval()
    modes = [module.training for module in tiny.modules()]
    random = torch.get_rng_state()
    profile_rows(tiny, 64, runs=1, warm_up=0)
    assert [module.training for module in tiny.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(row._forward_hooks or row._forward_pre_hooks for row in tiny.rows)
    tiny.train()(torch.rand(2, 3, 64, 64)).logits.sum().backward()  # what the runs keep serves training too


def test_hooks_go_after_a_failure(tiny):
    with pytest.raises(ConfigError, match="multiple of 32"):
        profile_rows(tiny, 2)
    assert not any(row._forward_hooks or row._forward_pre_hooks for row in tiny.rows)


def test_json_has_the_cost_only_where_it_was_measured(tiny):
    plain = summarize(tiny, 64).to_json()["rows"][1]
    measured = summarize(tiny, 64, profile=True).to_json()["rows"][1]
    assert set(measured) - set(plain) == {"seconds", "gflop"}
    assert set(plain) <= set(measured)


def test_command_and_python(tmp_path, capsys):
    model = tiny_model(tmp_path)
    assert run(["info", str(model), "--image-size", "64", "--profile", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert all(row["seconds"] > 0 and row["gflop"] >= 0 for row in rows)
    assert run(["info", str(model), "--image-size", "64", "--profile"]) == 0
    table = capsys.readouterr().out
    assert "GFLOP/s" in table
    shares = [float(line.split("%")[0].split()[-1]) for line in table.splitlines() if "%" in line]
    assert sum(shares[:-1]) == pytest.approx(100, abs=0.5)
    assert shares[-1] == 100
    assert Detector(model).info(64, profile=True).rows[0].profile is not None
    assert Detector(model).info(64).rows[0].profile is None
