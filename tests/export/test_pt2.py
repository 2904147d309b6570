"""A torch.export program on a disk without space: torch's own writer would end the process, so that it gets no disk."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
