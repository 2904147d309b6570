"""``export --format web`` as a whole: a true detector, and what is written and said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import expect

from nextdetr import Detector
from nextdetr.cli.main import main
from nextdetr.config import ExportConfig, build_config
from nextdetr.errors import ConfigError
from nextdetr.export.web import runtime, serve_folder, single
from nextdetr.inference.header import read_metadata
from tests.browser import chromium
from tests.export.helpers import needs_runtimes
from tests.export.web_helpers import assert_as_python, picture, served


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["RTDETRDecoder", "DFINEDecoder"])
def test_a_detector_finds_the_same_in_the_browser(compact, decoder, tmp_path, capsys):
    needs_runtimes()
    folder, source = tmp_path / "out", tmp_path / "cells" / "best.safetensors"
    source.parent.mkdir()
    shutil.copy(compact[decoder], source)
    with pytest.raises(SystemExit) as ended:
        main(["export", str(source), "--format", "web", "--single-file", "--output", str(folder), "--images", "2"])
    said = capsys.readouterr().out
    report = json.loads((folder / "report.json").read_text())
    assert (ended.value.code, report["passed"], report["web"]["runtime"]) == (0, True, f"onnxruntime-web {runtime.VERSION}")
    loaded = [folder / "index.html", folder / "detector.json", folder / "model.onnx",
              *(folder / "runtime").glob("ort*"), *(folder / "page").iterdir()]  # fmt: skip
    assert report["web"]["bytes"] == sum(path.stat().st_size for path in loaded)
    assert f"{report['web']['bytes'] / 1e6:.1f} MB" in said
    assert f"python {folder / 'serve.py'}" in said
    assert (folder / "runtime" / "LICENSE").read_text().startswith("MIT License")
    assert "ThirdPartyNotices" in (folder / "runtime" / "NOTICE").read_text()
    terms = read_metadata(folder / "model.onnx")
    assert json.loads((folder / "detector.json").read_text())["name"] == "cells"
    assert [terms[name] for name in ("portable", "input_type", "layout", "outputs")] == ["yes", "uint8", "nhwc", "raw"]

    files = {f"{width}.jpg": picture((width, 300), "JPEG", seed=width, quality=92) for width in (128, 450)}
    with chromium() as browser, served(folder) as address:
        for place in (address, (folder / "cells.html").as_uri()):  # after the run, not its file
            page = browser.new_page()
            page.goto(place)
            expect(page.locator("#runtime")).to_contain_text("thread")
            assert_as_python(page, folder / "model.onnx", files, tmp_path)


def test_the_export_fails_before_any_work_where_the_runtime_cannot_be_had(compact, tmp_path):
    (tmp_path / "own").mkdir()
    with pytest.raises(ConfigError, match="does not hold ort"):
        Detector(compact["DFINEDecoder"]).export("web", runtime_dir=tmp_path / "own", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"half": True}, "leave --half out"),
        ({"dynamic": True}, "leave --dynamic out"),
        ({"layout": "nhwc"}, "leave --input-type and --layout out"),
        ({"winograd": True}, "--winograd is for"),
        ({"format": "onnx", "single_file": True}, "are for --format web"),
        ({"format": "openvino", "runtime_dir": "somewhere"}, "are for --format web"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        build_config(ExportConfig, {"format": "web", **given})


def test_the_folder_serves_itself_with_the_headers(tmp_path):
    (tmp_path / "a.mjs").write_text("export {};")
    script = tmp_path / "serve.py"
    script.write_text(Path(serve_folder.__file__).read_text())
    with subprocess.Popen([sys.executable, "-I", script, "0"], stdout=subprocess.PIPE, text=True, cwd="/") as process:
        address = process.stdout.readline().strip()
        with urllib.request.urlopen(f"{address}/a.mjs", timeout=30) as answer:
            headers = answer.headers
        process.terminate()
    assert headers["Content-Type"] == "text/javascript"
    assert (headers["Cross-Origin-Opener-Policy"], headers["Cross-Origin-Embedder-Policy"]) == (
        "same-origin",
        "require-corp",
    )


def test_serving_the_folder_says_what_is_wrong_in_a_sentence(tmp_path, capsys):
    with served(tmp_path) as address:
        port = address.rstrip("/").rpartition(":")[2]
        assert serve_folder.main([port], tmp_path) == serve_folder.main(["http"], tmp_path) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"port {port} cannot be used (")
    assert said[1:] == ["the port is a number, 0 to 65535: python serve.py 8000"]


def test_modules_stand_after_those_that_they_import():
    scripts = {"a.js": "import { b } from './b.js';\nimport * as c from '../runtime/c.mjs';\n",
               "b.js": "import { c } from './c.mjs';\n", "c.mjs": "import { x } from './nowhere.js';\n"}  # fmt: skip
    assert single.in_order("a.js", scripts) == ["c.mjs", "b.js", "a.js"]
    with pytest.raises(AssertionError, match="circle"):
        single.in_order("a.js", {**scripts, "b.js": "import { a } from './a.js';\n"})
