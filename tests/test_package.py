"""What `make dist` builds: a wheel and an sdist with all they need, installed and run where nothing else is."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import nextdetr
from tests.export.handmade import handmade, terms

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def run(*command, cwd, **environment):
    """Run a command away from this clone and its environment; return what it printed."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "PIP_REQUIRE"))
    }
    done = subprocess.run(
        [str(word) for word in command], check=False, cwd=cwd, env=clean | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The folder of the wheel, which was built from the sdist beside it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def clean(dist, tmp_path_factory):
    """The programs of an environment into which nothing but the wheel was installed."""
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    (wheel,) = dist.glob("*.whl")
    run(folder / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel, cwd=folder)
    return folder / "venv" / "bin"


def test_the_wheel_has_every_file_of_the_package_and_no_other(dist):
    (wheel,) = dist.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(
        ["git", "ls-files", "src"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    assert names == {name.removeprefix("src/") for name in tracked}


def test_the_sdist_has_what_building_and_testing_need(dist):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "pyproject.toml", "README.md", "README.zh-CN.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile",
        "tests/conftest.py", "docs/index.md", "website/mkdocs.yml", "src/nextdetr/py.typed",
    } <= names  # fmt: skip
    assert not [name for name in names if name.endswith((".safetensors", ".pyc"))]


def test_the_metadata_is_whole(dist):
    (wheel,) = dist.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    (path,) = [name for name in archive.namelist() if name.endswith("METADATA")]
    metadata = email.message_from_bytes(archive.read(path))
    assert metadata["Version"] == nextdetr.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert {url.partition(",")[0] for url in metadata.get_all("Project-URL")} == {
        "Source",
        "Documentation",
        "Changelog",
        "Issues",
    }
    links = re.findall(r"\]\(([^)]+)\)", metadata.get_payload(decode=True).decode())
    assert len(links) > 20
    assert not [link for link in links if not link.startswith("https://")]  # PyPI has no files beside the page


def test_the_program_runs_in_a_clean_environment(clean, tmp_path):
    assert run(clean / "nextdetr", "--version", cwd=tmp_path).strip() == nextdetr.__version__
    assert "quickstart" in run(clean / "nextdetr", "--help", cwd=tmp_path)
    assert run(clean / "python", "-c", "import nextdetr; print(nextdetr.Detector.__name__)", cwd=tmp_path) == "Detector\n"


def test_an_exported_detector_predicts_in_a_clean_environment(clean, tmp_path):
    handmade(
        tmp_path / "model.onnx", replace(terms(passed_runtimes=("onnxruntime",)), classes=["a", "b"]), labels=(0, 1, 1, 0)
    )
    Image.new("RGB", (140, 90), "teal").save(tmp_path / "photo.png")
    assert '"detections"' in run(clean / "nextdetr", "predict", "model.onnx", "photo.png", "--json", cwd=tmp_path)
