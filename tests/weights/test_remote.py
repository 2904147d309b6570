"""Weights by name, fetched by the real client of the Hugging Face Hub from a server on this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import constants

from nextdetr.cli.main import run
from nextdetr.errors import WeightsError
from nextdetr.models.modelfile import available_models
from nextdetr.weights import remote
from nextdetr.weights.published import all_published, find_published, listed_weights
from nextdetr.weights.remote import is_pinned, locate, parse_name
from tests.weights.hub_server import FOLDER, WEIGHTS, Repository


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


def test_a_repository_without_a_card_has_no_licence(hub, capsys):
    Path("README.md").write_bytes(b"---\nlicense: gpl-3.0\n---\n# Of the working folder\n")
    hub.repositories["owner/name"].revisions["main"] = {"model.safetensors": WEIGHTS}
    found = locate("owner/name")
    assert found.card == {}
    assert "licence of the weights: not stated by its card" in capsys.readouterr().err
    hub.down = True
    assert again("owner/name") == found


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
