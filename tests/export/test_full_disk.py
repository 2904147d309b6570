"""Exports to a full disk end with one sentence about it, and keep the earlier export."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

from nextdetr import files
from nextdetr.errors import WriteError
from nextdetr.export.openvino import save_openvino

SCRIPT = """
import resource, sys, types
from pathlib import Path
import torch
from nextdetr.errors import WriteError
from nextdetr.export.pt2 import write_program

program = torch.export.export(torch.nn.Linear(64, 64), (torch.ones(1, 64),))
traced, terms = types.SimpleNamespace(program=program), types.SimpleNamespace(to_metadata=lambda: {"a": "b"})
path = Path(sys.argv[1])
write_program(traced, terms, path)
before = path.read_bytes()
assert torch.export.load(path).module()(torch.zeros(1, 64)).shape == (1, 64)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
try:
    write_program(traced, terms, path)
except WriteError as error:
    print(error)
assert path.read_bytes() == before
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_disk_ends_in_a_sentence_and_leaves_the_earlier_program(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "model.pt2")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "model.pt2: cannot be written (File too large); an earlier file of that name is untouched." in done.stdout


def test_why_openvino_could_not_write_is_asked_while_its_files_are_there(tmp_path, monkeypatch):
    """OpenVINO says "iostream error" only; without its half-written weights the disk would have room again."""
    openvino = pytest.importorskip("openvino")

    def save_model(model, path, **options):
        Path(path).write_bytes(b"half")
        Path(path).with_suffix(".bin").write_bytes(b"half")
        raise RuntimeError("basic_ios::clear: iostream error")

    def cause(error, temporary):
        seen.append(sorted(path.name for path in tmp_path.glob(".writing*")))
        return "No space left on device"

    seen: list[list[str]] = []
    monkeypatch.setattr(openvino, "save_model", save_model)
    monkeypatch.setattr(files, "_cause", cause)
    model = types.SimpleNamespace(set_friendly_name=lambda name: None, set_rt_info=lambda value, place: None)
    terms = types.SimpleNamespace(to_metadata=dict, precision="float32")
    for name in ("model.xml", "model.bin"):
        (tmp_path / name).write_bytes(b"earlier")
    with pytest.raises(WriteError, match=r"cannot be written .No space left"):
        save_openvino(model, terms, tmp_path / "model.xml")
    assert len(seen[0]) == 2
    assert all(files._TEMPORARY.fullmatch(name) for name in seen[0])  # what a killed process leaves is removed later
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "model.xml": b"earlier",
        "model.bin": b"earlier",
    }
