"""Weights by name, fetched by the real client of the Hugging Face Hub from a server on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from nextdetr import Detector
from nextdetr.cli.main import run
from nextdetr.config import TrainConfig
from nextdetr.engine.resume import Contract
from nextdetr.engine.setup import prepare_teacher
from nextdetr.engine.teacher import open_teacher
from nextdetr.engine.train import train
from nextdetr.errors import ConfigError, WeightsError
from nextdetr.models.graph import build_model
from nextdetr.models.modelfile import available_models
from nextdetr.weights import remote
from nextdetr.weights.backbone import open_encoder, open_features
from nextdetr.weights.checkpoint import read_detector_metadata, save_detector
from nextdetr.weights.layouts.classes import COCO
from nextdetr.weights.load import open_weights
from nextdetr.weights.published import all_published, find_published, listed_weights
from nextdetr.weights.remote import is_pinned, locate, parse_name
from tests.helpers import squares, tiny_model
from tests.weights.hub_server import Repository, serving

CARD = b"---\nlicense: mit\n---\n# A model\n"
WEIGHTS = bytes(range(256)) * 64  # 16 KiB, which nothing but the reader looks into
FOLDER = {
    "README.md": CARD,
    "config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"old",
    "tf_model.h5": b"x",
}


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


def again(source):
    """Locate once more as another process would, which has not asked yet."""
    remote._fetched.cache_clear()
    return locate(source)


def refused(source, *parts):
    with pytest.raises(WeightsError) as caught:
        locate(source)
    message = str(caught.value)
    assert message.startswith(f"{source}: ")
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


def downloads(hub):
    return sorted(asked.rsplit("/", 1)[-1] for asked in hub.asked if asked.startswith("GET /owner"))


def blobs(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and not path.is_symlink()]


def test_a_whole_download_and_then_offline(hub, capsys, monkeypatch):
    found = locate("owner/name")
    assert (found.path / "model.safetensors").read_bytes() == WEIGHTS
    assert found.name == f"owner/name@{hub.repositories['owner/name'].commit('main')}"
    assert is_pinned(found.name)
    assert found.card == {"licence": "mit"}
    assert downloads(hub) == ["README.md", "config.json", "model.safetensors"]  # and no more than that
    told = capsys.readouterr().err
    assert "downloading model.safetensors" in told
    assert "licence of the weights: mit" in told
    hub.asked.clear()
    assert locate("owner/name") is found  # a process asks once
    assert not hub.asked
    assert again("owner/name") == found
    assert not downloads(hub)
    hub.down = True
    assert again("owner/name") == found
    assert "from the cache, as the Hub cannot be reached" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert again("owner/name") == found
    assert again(found.name).path == found.path  # by its commit


def test_a_revision(hub):
    repository = hub.repositories["owner/name"]
    repository.revisions["v1"]["model.safetensors"] = b"first"
    assert (locate("owner/name@v1").path / "model.safetensors").read_bytes() == b"first"
    assert locate("owner/name@v1").name == f"owner/name@{repository.commit('v1')}"
    assert (locate(f"owner/name@{repository.commit('main')}").path / "model.safetensors").read_bytes() == WEIGHTS
    refused("owner/name@v9", "no revision v9")


def test_a_file_of_a_repository(hub):
    hub.repositories["owner/name"].revisions["main"]["more/dfine.pth"] = b"official"
    found = locate("owner/name/more/dfine.pth")
    assert found.path.read_bytes() == b"official"
    assert found.name.startswith("owner/name/more/dfine.pth@")
    assert downloads(hub) == ["README.md", "dfine.pth"]
    hub.down = True
    assert again("owner/name/more/dfine.pth") == found
    refused("owner/name", "cannot be reached")  # of which the cache has the card alone
    hub.down = False
    refused("owner/name/other.pth", "no file other.pth; it has model.safetensors, more/dfine.pth, pytorch_model.bin")


def test_which_file_is_taken(hub):
    hub.repositories["owner/name"].revisions["main"] = {
        "timm.safetensors": b"a",
        "x.bin": b"b",
        "onnx/model.safetensors": b"c",
    }
    assert locate("owner/name").path.read_bytes() == b"a"
    hub.repositories["owner/name"].revisions["main"] = {"a.pth": b"a", "b.pth": b"b"}
    message = refused("owner/name@main", "not clear (a.pth, b.pth); name one: owner/name/a.pth@main")
    assert message.count("owner/name") == 2
    hub.repositories["owner/name"].revisions["main"] = {"model.onnx": b"a"}
    remote._fetched.cache_clear()
    refused("owner/name", "it has none that NextDETR reads")


def test_shards(hub):
    index = {"weight_map": {"a": "one-of-2.safetensors", "b": "two-of-2.safetensors"}}
    files = {"model.safetensors.index.json": json.dumps(index).encode(), "one-of-2.safetensors": b"1", "x.bin": b"x"}
    hub.repositories["owner/name"].revisions["main"] = files
    refused("owner/name", "its index names 'two-of-2.safetensors'")
    files["two-of-2.safetensors"] = b"2"
    found = locate("owner/name")
    assert sorted(path.name for path in found.path.iterdir()) == sorted({*files} - {"x.bin"})
    hub.down = True
    assert again("owner/name") == found
    (found.path / "two-of-2.safetensors").unlink()
    remote._fetched.cache_clear()
    refused("owner/name", "cannot be reached")  # half of a model is none
    hub.down = False
    files["model.safetensors.index.json"] = json.dumps({"weight_map": {"a": "../../x.safetensors"}}).encode()
    refused("owner/name", "unreadable (it names files elsewhere)")


def test_what_is_not_there(hub):
    refused("owner/none", "neither a file here nor a repository on the Hub", "hf auth login")
    refused("nobody/none/x.safetensors", "neither a file here")


def test_a_gated_repository(hub, tmp_path):
    hub.repositories["owner/name"].gated = True
    refused("owner/name", "gated; ask for access", "hf auth login")
    assert not blobs(tmp_path)


def test_without_a_network_the_files_are_named(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refused("owner/name", "model.safetensors, config.json and README.md", f"{hub.address}/owner/name/tree/main")
    place = re.search(r"to (\S+) here, and the same command", message)[1]
    Path(place).mkdir(parents=True)
    (Path(place) / "model.safetensors").write_bytes(WEIGHTS)
    assert locate("owner/name").path == Path(place)  # what is done by hand is found
    refused("some/two/a.pth", f"download {hub.address}/some/two/resolve/main/a.pth to some/two/a.pth here")
    refused("other/name@v1", "/tree/v1 and name where you put it")
    with pytest.raises(WeightsError, match="/PekingU/rtdetr_r50vd/tree/main to PekingU/rtdetr_r50vd here"):
        locate("rtdetr-r50vd-coco")


def test_a_connection_that_is_cut_is_taken_up_again(hub):
    hub.repositories["owner/name"].cut, hub.repositories["owner/name"].cuts = 5000, 2
    assert (locate("owner/name").path / "model.safetensors").read_bytes() == WEIGHTS
    assert len(hub.ranges) == 2
    assert all(start != "bytes=0-" for start in hub.ranges)


def test_a_connection_that_stays_cut_leaves_nothing(hub, tmp_path):
    hub.repositories["owner/name"].cut = 0
    refused("owner/name", "the download of model.safetensors broke off", "try again, or download model.safetensors")
    assert not any(path.suffix == ".incomplete" or path.read_bytes() == WEIGHTS[:5000] for path in blobs(tmp_path))
    hub.down = True
    remote._fetched.cache_clear()
    refused("owner/name", "cannot be reached")  # and not the half that was there
    hub.down, hub.repositories["owner/name"].cut = False, None
    assert (locate("owner/name").path / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("fault", ["altered", "stated"])
def test_other_bytes_than_the_hub_states_are_not_kept(hub, tmp_path, fault):
    setattr(hub.repositories["owner/name"], fault, True if fault == "altered" else len(WEIGHTS) + 7)
    refused("owner/name", "model.safetensors", "try again")
    assert not any(path.stat().st_size >= len(WEIGHTS) for path in blobs(tmp_path))
    hub.repositories["owner/name"] = Repository({"main": dict(FOLDER)})
    assert (locate("owner/name").path / "model.safetensors").read_bytes() == WEIGHTS


def test_a_path_goes_first_and_a_slip_in_one_asks_nobody(hub):
    Path("owner/name").mkdir(parents=True)
    assert locate("owner/name").path == Path("owner/name")
    assert locate("owner/name@main").path != Path("owner/name")
    hub.asked.clear()
    Path("runs").mkdir()
    for slip in ("runs/best.safetensors", "runs/a/best.safetensors", "other/best.safetensors", "best.pt", "/a/b"):
        assert refused(slip).endswith(": no such file.")
    refused("runs/nextdetr", "runs is a folder here; for the repository of the Hub write runs/nextdetr@main")
    refused(Path("https://huggingface.co/a/b/resolve/v1/c/d.pth"), "not a name of the Hub: write a/b/c/d.pth@v1.")
    refused(Path("https://huggingface.co/a/b/tree/main"), "not a name of the Hub: write a/b.")
    refused("rtdetr-r50", "did you mean rtdetr-r50vd")
    refused("qqqq", "nextdetr weights list")
    assert not hub.asked


def test_names():
    assert parse_name("a/b/c/d.pth@v1.0") == remote.HubName("a/b", "c/d.pth", "v1.0")
    assert parse_name("a/b@refs/pr/1").revision == "refs/pr/1"
    for text in ("a", "a/../b", "a/b/../c.pt", "/a/b", "a/b@../c", "a b/c", "C:/a/b", "a/b/", "a/b@"):
        assert parse_name(text) is None, text


def test_our_list_and_its_licences(hub, capsys):
    entry = find_published("convnextv2-atto-in1k-facebook")
    hub.repositories[entry.repository] = Repository(
        {"main": dict(FOLDER) | {"README.md": b"---\nlicense: apache-2.0\n---\n"}}
    )
    found = locate(entry.name)
    assert found.name.startswith("facebook/convnextv2-atto-1k-224@")
    assert found.card == {"licence": "apache-2.0", "listed": "CC-BY-NC-4.0"}  # which its publishers state
    assert "licence of the weights: CC-BY-NC-4.0" in capsys.readouterr().err
    assert again(entry.repository).card == found.card
    entries = list(all_published())
    assert len({one.name for one in entries}) == len(entries)
    assert all(parse_name(one.repository) and "/" not in one.name for one in entries)
    assert {one.model for one in listed_weights() if one.part == "detector"} <= set(available_models())
    assert run(["weights", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["weights"]
    r50 = next(one for one in listed if one["name"] == "rtdetr-r50vd-coco")
    assert r50["metric"] == {"name": "AP", "value": 0.531}
    assert (r50["model"], r50["parameters"], r50["licence"], r50["bytes"]) == (
        "rtdetr-r50vd", 42_000_000, "Apache-2.0", 172_000_000,
    )  # fmt: skip
    assert run(["weights", "list"]) == 0
    assert "PekingU/rtdetr_r50vd" in capsys.readouterr().out


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


def test_what_is_fetched_is_read_and_its_origin_goes_along(hub, atto, tmp_path, capsys):
    hub.repositories["timm/convnextv2_atto.fcmae"] = Repository({"main": atto})
    file, identity = open_weights("convnextv2-atto-fcmae")
    assert (identity.kind, identity.licence, identity.without_labels) == ("convnextv2-timm", "CC-BY-NC-4.0", True)
    pinned = str(file.path)
    assert re.fullmatch(r"timm/convnextv2_atto\.fcmae@[0-9a-f]{40}", pinned)
    command = ["weights", "inspect", "timm/convnextv2_atto.fcmae", "--model", "nextdetr-atto", "--json"]
    assert run(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["fit"]["fits"], found["weights_licence"]) == (True, "CC-BY-NC-4.0")
    assert run(["weights", "convert", "timm/convnextv2_atto.fcmae@main", "--to", "nextdetr", "--json"]) == 0
    written = Path(json.loads(capsys.readouterr().out)["output"])
    assert written == Path("convnextv2_atto.fcmae-nextdetr.safetensors")
    assert open_weights(written)[0].metadata["source_weights"] == pinned
    hub.repositories["timm/convnextv2_atto.fcmae"].revisions["main"] = {"model.safetensors": b"not weights at all"}
    remote._fetched.cache_clear()
    assert run(["weights", "inspect", "timm/convnextv2_atto.fcmae", "--json"]) == 2


def test_other_doors_take_names_too(hub, atto, tmp_path):
    hub.repositories["timm/convnextv2_atto.fcmae"] = Repository({"main": atto})
    pinned = locate("convnextv2-atto-fcmae").name
    assert open_features("convnextv2-atto-fcmae").metadata["source_weights"] == pinned  # for embed
    assert len(open_encoder(pinned).stages) == 4  # for probe and analyze
    detector = Detector(tiny_model(tmp_path), backbone_weights="timm/convnextv2_atto.fcmae", device="cpu")
    assert detector.load_reports[0].source == pinned
    saved = read_detector_metadata(detector.save_pretrained("saved") / "model.safetensors")
    assert (saved["source_weights"], saved["weights_licence"]) == (pinned, "CC-BY-NC-4.0")
    other = atto | {"config.json": b'{"model_type": "yolos"}'}
    hub.repositories["owner/yolos"] = Repository({"main": other})
    with pytest.raises(
        WeightsError, match=r"^owner/yolos@[0-9a-f]{40}: its config.json says YOLOS \(yolos\), which NextDETR"
    ):
        open_weights("owner/yolos")


def test_a_training_by_name(hub, atto, tmp_path):
    hub.repositories["timm/convnextv2_atto.fcmae"] = Repository({"main": atto})
    config = TrainConfig(
        data=str(squares(tmp_path / "data", 3)), model=str(tiny_model(tmp_path)), output=tmp_path / "run", epochs=1,
        image_size=64, batch_size=2, workers=0, device="cpu", start="convnextv2-atto-fcmae",
    )  # fmt: skip
    checkpoint = train(config, quiet=True).checkpoint
    metadata = read_detector_metadata(checkpoint)
    assert metadata["weights_licence"] == "CC-BY-NC-4.0"
    assert metadata["source_weights"] == locate("convnextv2-atto-fcmae").name
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (stored["backbone_weights"], stored["start"]) == ("convnextv2-atto-fcmae", None)
    assert stored["backbone_rate_factor"] == 1.0  # its timm tag says that it has seen no labels


def test_a_teacher_by_name(hub, tmp_path):
    model = build_model("deimv2-atto", num_classes=80)
    save_detector(
        tmp_path / "t.safetensors", model.state_dict(), model_text=model.text, classes=list(COCO), image_size=320,
        weights_licence="Apache-2.0",
    )  # fmt: skip
    files = {"README.md": CARD, "model.safetensors": (tmp_path / "t.safetensors").read_bytes()}
    hub.repositories["Intellindust/DEIMv2_HGNetv2_ATTO_COCO"] = Repository({"main": files})
    teacher = open_teacher("deimv2-atto-coco")
    assert teacher.opened.classes == list(COCO)
    assert teacher.to_metadata() == {"teacher": "deimv2-atto-coco", "teacher_licence": "Apache-2.0"}
    hub.down = True
    remote._fetched.cache_clear()
    again = prepare_teacher(
        TrainConfig(teacher="deimv2-atto-coco", resume=tmp_path), Contract(list(COCO), teacher=teacher.digest)
    )
    assert again is not None
    with pytest.raises(WeightsError, match="the Hub cannot be reached"):
        open_teacher("deimv2-femto-coco")
    with pytest.raises(ConfigError, match=r"there is no such teacher; give --teacher .* a name of nextdetr weights list"):
        open_teacher("deimv2-atto-coc")


def test_the_command_line_with_hf_endpoint(server, atto, tmp_path):
    server.repositories, server.down = {"timm/convnextv2_atto.fcmae": Repository({"main": atto})}, False
    environment = {
        **os.environ, "HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1",
        "HF_HUB_OFFLINE": "0", "HF_HUB_ETAG_TIMEOUT": "200", "HF_HUB_DOWNLOAD_TIMEOUT": "200",
        "PYTHONIOENCODING": "utf-8",
    }  # fmt: skip
    command = [sys.executable, "-m", "nextdetr", "weights", "inspect", "timm/convnextv2_atto.fcmae", "--json"]
    found = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=250, check=True, encoding="utf-8"
    )
    assert json.loads(found.stdout)["kind"] == "convnextv2-timm"
    assert "downloading model.safetensors" in found.stderr
    assert (tmp_path / "hub" / "models--timm--convnextv2_atto.fcmae").is_dir()
