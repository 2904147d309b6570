"""A cache, a folder and a server of the Hub for each test of weights by name."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from nextdetr.weights import remote
from tests.weights.hub_server import FOLDER, Repository, serving


@pytest.fixture(scope="module")
def server():
    with serving() as hub:
        yield hub


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """The server, with an empty cache, in an empty folder."""
    server.repositories, server.down = {"owner/name": Repository({"main": dict(FOLDER), "v1": dict(FOLDER)})}, False
    server.asked.clear()
    server.ranges.clear()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    quick = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})  # between the client's own attempts
    monkeypatch.setattr("huggingface_hub.file_download.time", quick)
    monkeypatch.setattr("huggingface_hub.utils._http.time", quick, raising=False)
    for timeout in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):  # this machine may be busy
        monkeypatch.setattr(constants, timeout, 200)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    disable_progress_bars()
    yield server
    enable_progress_bars()


@pytest.fixture(autouse=True)
def _forget():
    remote._fetched.cache_clear()
    yield
    remote._fetched.cache_clear()


@pytest.fixture(scope="module")
def atto():
    """A backbone in timm's layout, as a repository of timm's has it."""
    from safetensors.torch import save

    from nextdetr.models.convnextv2 import SIZES
    from nextdetr.weights.layouts.convnext_timm import to_timm
    from tests.weights.layouts_of_original import original

    state = to_timm(original(*SIZES["atto"][:2], classes=None))
    config = {
        "architecture": "convnextv2_atto",
        "num_classes": 0,
        "pretrained_cfg": {"tag": "fcmae", "license": "cc-by-nc-4.0"},
    }
    return {
        "README.md": b"---\nlicense: cc-by-nc-4.0\n---\n", "config.json": json.dumps(config).encode(),
        "model.safetensors": save({name: tensor.contiguous() for name, tensor in state.items()}),
    }  # fmt: skip
