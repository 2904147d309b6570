"""Weights by name at every place that takes weights: read, trained, taught with, converted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nextdetr import Detector
from nextdetr.cli.main import run
from nextdetr.config import TrainConfig
from nextdetr.engine.resume import Contract
from nextdetr.engine.setup import prepare_teacher
from nextdetr.engine.teacher import open_teacher
from nextdetr.engine.train import train
from nextdetr.errors import ConfigError, WeightsError
from nextdetr.models.graph import build_model
from nextdetr.weights import remote
from nextdetr.weights.backbone import open_encoder, open_features
from nextdetr.weights.checkpoint import read_detector_metadata, save_detector
from nextdetr.weights.layouts.classes import COCO
from nextdetr.weights.load import open_weights
from nextdetr.weights.remote import locate
from tests.helpers import squares, tiny_model
from tests.weights.hub_server import CARD, Repository


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


def test_a_detector_with_a_model_of_its_own_by_name(hub, tmp_path):
    model = build_model(tiny_model(tmp_path), num_classes=2)
    file = save_detector(
        tmp_path / "t.safetensors", model.state_dict(), model_text=model.text, classes=["square", "bar"], image_size=64
    )
    hub.repositories["owner/own"] = Repository({"main": {"README.md": CARD, "model.safetensors": file.read_bytes()}})
    config = TrainConfig(
        data=str(squares(tmp_path / "data", 3)), weights="owner/own", output=tmp_path / "run", epochs=1, batch_size=2,
        workers=0, device="cpu",
    )  # fmt: skip
    metadata = read_detector_metadata(train(config, quiet=True).checkpoint)
    assert metadata["model"] == model.text
    assert (metadata["source_weights"], metadata["weights_licence"]) == (locate("owner/own").name, "mit")


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


def test_what_a_download_left_that_broke_off_says_nothing_of_the_repository(hub):
    hub.repositories["owner/name"].cut = 0
    with pytest.raises(WeightsError, match=r"the download of model\.safetensors broke off"):
        locate("owner/name")
    hub.down = True
    with pytest.raises(WeightsError, match=r"^owner/name: no such folder here, and the Hub cannot"):
        Detector.from_pretrained("owner/name")


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin", "yolos.safetensors"])
def test_weights_of_an_unknown_model_are_not_downloaded(hub, weights):
    files = {"config.json": b'{"model_type": "yolos"}', weights: b"perhaps many gigabytes"}
    hub.repositories["owner/name"].revisions["main"] = files
    told = r"^owner/name@[0-9a-f]{40}: its config\.json says YOLOS \(yolos\), which NextDETR cannot open; with a config"
    for opens in (open_weights, open_teacher):
        with pytest.raises(WeightsError, match=told):
            opens("owner/name")
    assert not [asked for asked in hub.asked if asked.endswith(weights)]
    files["config.json"] = b"[damaged"  # the reader reports it
    remote._fetched.cache_clear()
    with pytest.raises(WeightsError, match="a text file, not weights"):
        open_weights("owner/name")


def test_the_only_weights_of_a_repository_are_described_by_its_config(hub, atto):
    files = {"config.json": b'{"model_type": "yolos"}', "atto.safetensors": atto["model.safetensors"]}
    hub.repositories["owner/name"].revisions["main"] = files
    with pytest.raises(WeightsError, match=r"^owner/name@[0-9a-f]{40}: its config\.json says YOLOS"):
        open_weights("owner/name")
    assert open_weights("owner/name/atto.safetensors")[1].kind == "convnextv2-timm"  # a file that is named is read as it is
    files["config.json"] = atto["config.json"]
    remote._fetched.cache_clear()
    assert open_weights("owner/name")[1].without_labels  # which only the config says
