"""Which processes a run gets, and which it refuses."""

from __future__ import annotations

import pytest
import torch

from nextdetr.config import GraftConfig, PretrainConfig, TrainConfig
from nextdetr.engine.launch import launch
from nextdetr.errors import ConfigError


def refusal(config):
    with pytest.raises(ConfigError) as caught, launch(config, config, print):
        pytest.fail("the run has begun")
    return str(caught.value)


def test_more_devices_than_there_are_gpus_are_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    told = refusal(TrainConfig(data="x", devices=2))
    assert told == "--devices 2: this machine has 1 GPU to use; give a lower number, or --accelerator cpu."


def test_processes_of_torchrun_are_those_of_one_run(monkeypatch):
    """Each would otherwise train for itself, on the same GPU."""
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    told = "torchrun started 2 processes, but --devices is 1: give --devices 2."
    assert refusal(TrainConfig(data="x")) == told
    assert refusal(PretrainConfig(images=("x",))) == told
    assert "give --devices 2" in refusal(TrainConfig(data="x", devices=3))
    assert refusal(GraftConfig()) == "nextdetr graft runs in one process: start it without torchrun."
    monkeypatch.setenv("WORLD_SIZE", "1")
    with launch(TrainConfig(data="x"), TrainConfig(data="x", accelerator="cpu"), print) as fabric:
        assert fabric.world_size == 1
