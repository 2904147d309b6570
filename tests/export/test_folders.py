"""Exports that differ in an option have folders of their own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nextdetr import ConfigError
from nextdetr.config import ExportConfig, build_config
from nextdetr.export.folders import export_folder, float_beside
from nextdetr.export.run import _contract
from nextdetr.weights.checkpoint import open_model
from tests.export.handmade import handmade, terms
from tests.export.helpers import needs_runtimes
from tests.helpers import tiny_model

needs_runtimes()


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "best.safetensors"
    path.write_bytes(b"")
    return str(path)


def written(source, contract, weights="none", **given):
    """Where an export goes, after it went there."""
    folder = export_folder(source, build_config(ExportConfig, given), contract, weights)
    folder.mkdir(exist_ok=True)
    handmade(folder / ("model.xml" if given.get("format") == "openvino" else "model.onnx"), contract)
    (folder / "report.json").write_text(json.dumps({"model": source, "weights": weights}))
    return folder.name


def contract_of(**given):
    details = {"source": "best.safetensors", "decoder_layers": str(given.pop("layers", 3))}
    return replace(terms(), details=details, **given)


def test_each_option_has_a_folder_and_the_same_ones_share_it(source):
    made = [
        written(source, contract_of()),
        written(source, contract_of(), format="openvino"),
        written(source, contract_of(precision="half"), half=True),
        written(source, contract_of(dynamic=True), dynamic=True),
        written(source, contract_of(raw=True), raw=True),
        written(source, contract_of(raw=True, portable=True), portable=True),
        written(source, contract_of(queries=2), queries=2),
        written(source, contract_of(layers=1), decoder_layers=1),
        written(source, contract_of(image_size=96), image_size=96),
        written(source, contract_of(), winograd=False),
    ]
    assert made == [
        "best_onnx", "best_openvino", "best_onnx_half", "best_onnx_dynamic", "best_onnx_raw", "best_onnx_portable",
        "best_onnx_2queries", "best_onnx_1layers", "best_onnx_96px", "best_onnx_direct",
    ]  # fmt: skip
    assert written(source, contract_of(queries=2), queries=2) == "best_onnx_2queries"
    # The name says nothing of these, and the file does.
    assert written(source, contract_of(image_size=128)) == "best_onnx-2"
    assert written(source, contract_of(image_size=128)) == "best_onnx-2"
    assert written(source, contract_of()) == "best_onnx"


def test_calibration_on_other_images_is_another_export(source):
    first, second = (contract_of(precision="int8"), contract_of(precision="int8"))
    first.details["calibrated_on"], second.details["calibrated_on"] = "100 images of bccd", "100 images of coins"
    assert written(source, first, int8=True, data="bccd") == "best_onnx_int8"
    assert written(source, second, int8=True, data="coins") == "best_onnx_int8-2"


def test_the_weights_that_training_started_from_have_no_path_in_the_file(tmp_path):
    """Only their names, as what is exported is passed on."""
    pinned = f"owner/name@{'a' * 40}"
    opened = open_model(tiny_model(tmp_path))
    opened = replace(opened, metadata={"source_weights": f"/home/me/secret/atto.pt and {pinned}"})
    assert _contract(opened, ExportConfig()).details["source_weights"] == f"atto.pt and {pinned}"
    assert _contract(replace(opened, metadata={}), ExportConfig()).details["source_weights"] == "none"


def test_files_with_whole_paths_of_weights_are_of_the_same_export(source):
    """As those of earlier versions."""
    old, new = contract_of(), contract_of()
    old.details["source_weights"] = "/home/me/secret/first.safetensors"
    new.details["source_weights"] = "first.safetensors"
    assert written(source, old) == written(source, new) == "best_onnx"
    new.details["source_weights"] = "second.safetensors"
    assert written(source, new) == "best_onnx-2"


def test_weights_of_one_name_are_another_export(source, tmp_path):
    """All runs have a best.safetensors, and the exported file does not say of which folder."""
    contract = contract_of()
    contract.details["source_weights"] = "best.safetensors"
    first, second = (str(tmp_path / name / "best.safetensors") for name in ("first", "second"))
    assert [written(source, contract, weights) for weights in (first, second, first)] == [
        "best_onnx", "best_onnx-2", "best_onnx",
    ]  # fmt: skip
    output = build_config(ExportConfig, {"output": tmp_path / "best_onnx"})
    with pytest.raises(ConfigError, match=r"it was made from the weights .*first.best\.safetensors, not .*second"):
        export_folder(source, output, contract, second)
    eight = replace(contract, precision="int8")
    name = written(source, eight, second, int8=True, data="coins")
    assert float_beside(tmp_path / name / "model.onnx") == tmp_path / "best_onnx-2" / "model.onnx"


def test_exports_of_a_detector_in_the_hubs_cache_go_to_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "models--someone--cells" / "snapshots" / ("0123456789" * 4) / "model.safetensors"
    source.parent.mkdir(parents=True)
    source.write_bytes(b"")
    assert export_folder(str(source), ExportConfig(), contract_of()) == Path("runs") / "export" / "cells_onnx"


def test_a_folder_that_was_named_is_never_taken_from_another_export(source, tmp_path):
    output = tmp_path / "mine"
    config = build_config(ExportConfig, {"output": output})
    assert export_folder(source, config, contract_of()) == output
    output.mkdir()
    handmade(output / "model.onnx", contract_of())
    (output / "report.json").write_text(json.dumps({"model": source}))
    assert export_folder(source, config, contract_of()) == output
    with pytest.raises(ConfigError, match=r"mine: it holds a different export: its queries is 4, not 3"):
        export_folder(source, config, contract_of(queries=3))
    with pytest.raises(ConfigError, match=r"it was made from .*best\.safetensors"):
        export_folder(str(tmp_path / "elsewhere" / "best.safetensors"), config, contract_of())
    (output / "model.onnx").write_bytes(b"?")
    with pytest.raises(ConfigError, match="cannot be read"):
        export_folder(source, config, contract_of())


def test_the_float_file_beside_one_of_8_bits_is_of_the_same_detector(tmp_path):
    def put(name, model, **given):
        (tmp_path / name).mkdir()
        handmade(tmp_path / name / "model.onnx", contract_of(**given))
        (tmp_path / name / "report.json").write_text(json.dumps({"model": model}))
        return tmp_path / name / "model.onnx"

    cells = put("cells", "runs/cells/best.safetensors")
    int8 = put("faces_int8", "runs/faces/best.safetensors", precision="int8")
    assert float_beside(int8) is None
    faces = put("faces", "runs/faces/best.safetensors")
    assert float_beside(int8) == faces
    handmade(cells, contract_of(classes=["red", "white", "platelet"]))
    for file in (cells, int8, faces):  # where the reports were left behind, the classes still tell
        file.with_name("report.json").unlink()
    assert float_beside(int8) == faces
