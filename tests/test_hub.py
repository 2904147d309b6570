from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub import errors as hub_errors
from safetensors.torch import save_file

from nextdetr import Detector
from nextdetr.errors import ConfigError, WeightsError
from nextdetr.hub_card import CardFacts, card_licence, model_card
from nextdetr.models.graph import build_model, parse_model_text
from nextdetr.weights.checkpoint import read_detector_metadata, save_detector
from tests.helpers import TINY_MODEL

CLASSES = ["a|b <b>", "Katze\n# x", "yes"]
METRICS = {"AP": 0.25, "AP50": 0.5, "AP75": float("nan"), "AP_small": None}


@pytest.fixture
def checkpoint(tmp_path):
    text = TINY_MODEL.replace("nc: 2", "nc: 3")
    model = build_model(parse_model_text(text, "tiny.yaml"))
    return save_detector(
        tmp_path / "best.safetensors", model.state_dict(), model_text=text, classes=CLASSES, image_size=64,
        metrics=METRICS, weights_licence="CC-BY-NC-4.0", source_weights="/home/me/secret/atto.pt", data="cells",
    )  # fmt: skip


@pytest.fixture
def detector(checkpoint):
    return Detector(checkpoint, device="cpu")


def test_a_folder_there_and_back(detector, tmp_path):
    folder = detector.save_pretrained(tmp_path / "cells")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = Detector.from_pretrained(folder, device="cpu")
    assert again.classes == CLASSES
    assert again.opened.image_size == 64
    torch.testing.assert_close(again.opened.model.state_dict(), detector.opened.model.state_dict(), rtol=0, atol=0)
    image = np.random.default_rng().integers(0, 256, (70, 90, 3), dtype=np.uint8)
    first, second = (d.predict(image, confidence=0)[0] for d in (detector, again))
    np.testing.assert_array_equal(first.xyxy, second.xyxy)
    config = json.loads((folder / "config.json").read_text())
    assert (config["classes"], config["image_size"], config["model"]) == (CLASSES, 64, "custom")
    detector.save_pretrained(folder)  # over its own


def test_the_licence_and_the_origin_go_along(detector, tmp_path):
    folder = detector.save_pretrained(tmp_path / "cells")
    metadata = read_detector_metadata(folder / "model.safetensors")
    assert metadata["weights_licence"] == "CC-BY-NC-4.0"
    assert metadata["source_weights"] == "atto.pt"
    assert metadata["data"] == "cells"
    assert not any(b"secret" in path.read_bytes() for path in folder.iterdir())
    assert Detector.from_pretrained(folder).opened.metadata["weights_licence"] == "CC-BY-NC-4.0"


def test_the_card(detector, tmp_path):
    card = ModelCard.load(detector.save_pretrained(tmp_path / "cells", data="Cells 3") / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "nextdetr"
    assert data["pipeline_tag"] == "object-detection"
    assert data["license"] == "cc-by-nc-4.0"
    assert data["weights_licence"] == "CC-BY-NC-4.0"
    assert data["source_weights"] == "atto.pt"
    assert {r.metric_type: r.metric_value for r in card.data.eval_results} == {"ap": 0.25, "ap50": 0.5}
    assert card.data.eval_results[0].dataset_name == "Cells 3"
    for part in ("Trained on Cells 3", "| 2 | yes |", "| AP50 | 0.5000 |", "no commercial use", "from_pretrained("):
        assert part in card.text
    assert "AP75" not in card.text
    assert "\n# x" not in card.text
    assert "<b>" not in card.text
    assert "| 0 | a\\|b &lt;b&gt; |" in card.text


def test_a_card_that_has_little_to_say():
    text = model_card(CardFacts("mine", "custom", ["x"], 64, 10))
    data = yaml.safe_load(text.split("---")[1])
    assert "license" not in data
    assert "model-index" not in data
    assert "has not been scored" in text
    assert "random weights" in text


@pytest.mark.parametrize(
    ("weights", "stated", "wanted"),
    [
        ("none", None, {}),
        ("none", "MIT", {"license": "mit"}),
        ("AGPL-3.0", None, {"license": "agpl-3.0"}),
        ("AGPL-3.0", "agpl-3.0", {"license": "agpl-3.0"}),
        ("Apache-2.0", None, {"license": "apache-2.0"}),
        ("Apache-2.0", "MIT", {"license": "mit"}),
        ("unknown", None, {"license": "other", "license_name": "unknown"}),
        ("AGPL-3.0 and CC-BY-NC-4.0", None, {"license": "other", "license_name": "agpl-3.0-cc-by-nc-4.0"}),
        ("Apache-2.0 and CC-BY-NC-4.0", None, {"license": "cc-by-nc-4.0"}),
    ],
)
def test_licences(weights, stated, wanted):
    assert card_licence(weights, stated) == wanted


@pytest.mark.parametrize("weights", ["AGPL-3.0", "CC-BY-NC-4.0", "unknown", "Apache-2.0 and CC-BY-NC-4.0"])
def test_a_licence_that_the_weights_do_not_allow(weights):
    with pytest.raises(ConfigError, match="leave the licence out"):
        card_licence(weights, "MIT")


def test_nothing_of_somebody_elses_is_overwritten(detector, tmp_path):
    (tmp_path / "README.md").write_text("# My thesis")
    with pytest.raises(ConfigError, match="another folder"):
        detector.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    with pytest.raises(ConfigError, match="is a file"):
        detector.save_pretrained(tmp_path / "README.md")
    with pytest.raises(ConfigError, match="licence"):
        detector.save_pretrained(tmp_path / "new", licence="MIT")
    assert not (tmp_path / "new").exists()


def test_from_the_hub(detector, tmp_path, monkeypatch):
    stored = detector.save_pretrained(tmp_path / "stored")
    asked = {}

    def download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(stored)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    again = Detector.from_pretrained("owner/cells", revision="v1", device="cpu")
    assert again.classes == CLASSES
    assert (asked["repo_id"], asked["revision"]) == ("owner/cells", "v1")
    assert "model.safetensors" in asked["allow_patterns"]
    assert "README.md" in asked["allow_patterns"]  # for its licence
    assert not any("*" in pattern for pattern in asked["allow_patterns"])  # nothing else is wanted from a stranger


@pytest.mark.parametrize("kind", ["rt_detr", "yolos"])
def test_what_another_program_wrote_is_not_downloaded(tmp_path, monkeypatch, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    asked = []

    def download(repo_id, *, allow_patterns, **_):
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(WeightsError, match=rf"^owner/name: it is no NextDETR detector but transformers' .*{kind}"):
        Detector.from_pretrained("owner/name")
    assert asked == [["config.json"]]  # and not the weights, perhaps of gigabytes


def response(status: int):
    library = __import__(hub_errors.HTTPError.__module__.split(".")[0])
    return library.Response(status, request=library.Request("GET", "https://huggingface.co/x"))


def connection_failed() -> Exception:
    return __import__(hub_errors.HTTPError.__module__.split(".")[0]).ConnectError("no route")


FAILURES = {
    "missing": (lambda: hub_errors.RepositoryNotFoundError("?", response=response(404)), "neither a folder here nor"),
    "gated": (lambda: hub_errors.GatedRepoError("?", response=response(403)), "gated"),
    "revision": (lambda: hub_errors.RevisionNotFoundError("?", response=response(404)), "no revision v9"),
    "offline": (lambda: hub_errors.OfflineModeIsEnabled("HF_HUB_OFFLINE is set"), "cannot be reached"),
    "uncached": (lambda: hub_errors.LocalEntryNotFoundError("not in the cache"), "cannot be reached"),
    "connection": (connection_failed, "cannot be reached"),
    "server": (lambda: hub_errors.HfHubHTTPError("?", response=response(500)), r"error \(500\)"),
    "login": (lambda: hub_errors.HfHubHTTPError("?", response=response(401)), "hf auth login"),
    "token": (lambda: hub_errors.LocalTokenNotFoundError("?"), "hf auth login"),
    "name": (lambda: hub_errors.HFValidationError("?"), "owner/name"),
}


def raising(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("kind", FAILURES)
def test_what_the_hub_answers_is_one_sentence(kind, monkeypatch):
    make, message = FAILURES[kind]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raising(make()))
    with pytest.raises(WeightsError, match=message) as caught:
        Detector.from_pretrained("owner/cells", revision="v9")
    assert str(caught.value).startswith("owner/cells: ")
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_not_the_hubs_fault(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raising(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        Detector.from_pretrained("owner/cells")


def test_offline_with_the_real_library(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="owner/cells: no such folder here, and the Hub cannot be reached"):
        Detector.from_pretrained("owner/cells")


def test_a_repository_without_a_detector(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    gone = hub_errors.EntryNotFoundError
    kind = gone if issubclass(gone, hub_errors.HfHubHTTPError) else hub_errors.RemoteEntryNotFoundError
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", raising(kind("?", response=response(404))))
    with pytest.raises(WeightsError, match=r"holds no model\.safetensors"):
        Detector.from_pretrained("owner/cells")


def test_folders_that_are_none_of_ours(detector, tmp_path):
    with pytest.raises(WeightsError, match="no such folder"):
        Detector.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="no such folder"):
        Detector.from_pretrained("nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(WeightsError, match=r"holds no model\.safetensors"):
        Detector.from_pretrained(empty)
    (empty / "best.safetensors").touch()
    with pytest.raises(WeightsError, match=r"the folder of a run: open it with Detector\('.*empty'\)"):
        Detector.from_pretrained(empty)
    save_file({"x": torch.zeros(1)}, empty / "model.safetensors")
    with pytest.raises(WeightsError, match="not a NextDETR detector"):
        Detector.from_pretrained(empty)
    (empty / "config.json").write_text('{"model_type": "rt_detr"}')
    with pytest.raises(WeightsError, match=r"transformers' rt_detr.*weights="):
        Detector.from_pretrained(empty)
    folder = detector.save_pretrained(tmp_path / "cells")
    with pytest.raises(ConfigError, match="no revision"):
        Detector.from_pretrained(folder, revision="v1")
    with pytest.raises(WeightsError, match="is a file"):
        Detector.from_pretrained(folder / "model.safetensors")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match="complete"):
        Detector.from_pretrained(folder)


def test_push(detector, tmp_path, monkeypatch):
    calls = []

    class Api:
        def __init__(self, **options):
            calls.append(("login", options))

        def create_repo(self, repo_id, **options):
            calls.append(("create", {"repo_id": repo_id, **options}))

        def upload_folder(self, *, folder_path, **options):
            shutil.copytree(folder_path, tmp_path / "uploaded")
            calls.append(("upload", options))
            return SimpleNamespace(commit_url="https://huggingface.co/owner/cells/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    address = detector.push_to_hub("owner/cells", private=True, revision="main", message="first", token="t")
    assert address == "https://huggingface.co/owner/cells/commit/1"
    assert [name for name, _ in calls] == ["login", "create", "upload"]
    options = dict(calls)
    assert options["login"]["token"] == "t"
    assert options["create"] == {"repo_id": "owner/cells", "private": True, "exist_ok": True}
    assert options["upload"] == {"repo_id": "owner/cells", "revision": "main", "commit_message": "first"}
    assert Detector.from_pretrained(tmp_path / "uploaded").classes == CLASSES
    card = ModelCard.load(tmp_path / "uploaded" / "README.md")
    assert 'from_pretrained("owner/cells")' in card.text
    assert "# cells" in card.text


@pytest.mark.parametrize("kind", ["missing", "connection", "login", "server"])
def test_push_that_fails(detector, kind, monkeypatch):
    make, _ = FAILURES[kind]
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", raising(make()))
    with pytest.raises(WeightsError, match="owner/cells: ") as caught:
        detector.push_to_hub("owner/cells")
    assert "folder here" not in str(caught.value)
    with pytest.raises(ConfigError, match="owner/name"):
        detector.push_to_hub("cells")


def test_info_and_inspect_show_the_licence(checkpoint, capsys):
    from nextdetr.cli.main import run

    for command in (["info", str(checkpoint), "--image-size", "64"], ["weights", "inspect", str(checkpoint)]):
        assert run(command) == 0
        assert "licence of the weights: CC-BY-NC-4.0" in capsys.readouterr().out
        assert run([*command, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["weights_licence"] == "CC-BY-NC-4.0"


def tiny(path, **facts):
    """The file of a detector of two classes."""
    model = build_model(parse_model_text(TINY_MODEL, "tiny.yaml"))
    return save_detector(
        path, model.state_dict(), model_text=TINY_MODEL, classes=["a", "b"], image_size=64, **facts
    )  # fmt: skip


@pytest.mark.parametrize(
    ("weights", "stated", "metadata", "card"),
    [
        ("Apache-2.0", "CC-BY-NC-4.0", "cc-by-nc-4.0 and Apache-2.0", {"license": "cc-by-nc-4.0"}),
        ("Apache-2.0", "MIT", "mit and Apache-2.0", {"license": "other", "license_name": "mit-apache-2.0"}),
        ("none", "MIT", "mit", {"license": "mit"}),
        ("none", "My Terms", "myterms", {"license": "other", "license_name": "myterms"}),
    ],
)
def test_an_owners_licence_survives_publishing_again(tmp_path, weights, stated, metadata, card):
    file = tiny(tmp_path / "a.safetensors", weights_licence=weights)
    first = Detector(file, device="cpu").save_pretrained(tmp_path / "alice", licence=stated)
    bob = Detector.from_pretrained(first, device="cpu")
    second = bob.save_pretrained(tmp_path / "bob")
    third = Detector.from_pretrained(second, device="cpu").save_pretrained(tmp_path / "carol")
    for folder in (second, third, bob.save_pretrained(first)):
        data = ModelCard.load(folder / "README.md").data.to_dict()
        assert {key: data[key] for key in ("license", "license_name") if key in data} == card
        assert data["weights_licence"] == metadata
        assert read_detector_metadata(folder / "model.safetensors")["weights_licence"] == metadata
        assert "started from `none`" not in (folder / "README.md").read_text()
    assert read_detector_metadata(bob.save(tmp_path / "copy.safetensors"))["weights_licence"] == metadata
    if stated not in ("MIT",):
        bob.save_pretrained(tmp_path / "again", licence=stated)
        with pytest.raises(ConfigError, match="the licence MIT cannot be stated"):
            bob.save_pretrained(tmp_path / "mit", licence="MIT")


def test_a_readme_beside_another_file_is_no_card(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: agpl-3.0\n---\n# My thesis\n")
    file = tiny(tmp_path / "best.safetensors", weights_licence="MIT")
    assert Detector(file, device="cpu").opened.metadata["weights_licence"] == "MIT"


def test_a_teacher_is_on_the_card(tmp_path):
    taught = {"teacher": "big.safetensors", "teacher_licence": "AGPL-3.0"}
    folder = Detector(tiny(tmp_path / "a.safetensors", extra=taught), device="cpu").save_pretrained(tmp_path / "first")
    again = Detector.from_pretrained(folder, device="cpu").save_pretrained(tmp_path / "second")
    for path in (folder, again):
        card = ModelCard.load(path / "README.md")
        assert {key: card.data.to_dict()[key] for key in taught} == taught
        assert "from the predictions of `big.safetensors`; licence of those weights: **AGPL-3.0**" in card.text
        metadata = read_detector_metadata(path / "model.safetensors")
        assert {key: metadata[key] for key in taught} == taught


@pytest.mark.parametrize("inside", ["model.safetensors", "more/dfine.pth"])
def test_a_start_in_the_hubs_cache_has_its_name_there(tmp_path, inside):
    cached = f"/home/me/.cache/huggingface/hub/models--alice--big-cells/snapshots/{'a' * 40}/{inside}"
    file = tiny(tmp_path / "a.safetensors", source_weights=f"{cached} and /home/me/atto.pt")
    folder = Detector(file, device="cpu").save_pretrained(tmp_path / "cells")
    name = "alice/big-cells" if inside == "model.safetensors" else f"alice/big-cells/{inside}"
    stated = read_detector_metadata(folder / "model.safetensors")["source_weights"]
    assert stated == f"{name}@{'a' * 40} and atto.pt"


def test_info_shows_a_teacher(tmp_path, capsys):
    from nextdetr.cli.main import run

    taught = {"teacher": "big.pt", "teacher_licence": "AGPL-3.0"}
    command = ["info", str(tiny(tmp_path / "a.safetensors", extra=taught)), "--image-size", "64"]
    assert run(command) == 0
    assert "taught by: big.pt; licence of those weights: AGPL-3.0" in capsys.readouterr().out
    assert run([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {key: found[key] for key in taught} == taught
