"""``torch.export`` programs, for deployment with torch's own tools (AOTInductor, ExecuTorch).

Programs are written, but never opened from untrusted sources: reading one unpickles.
"""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import torch

from nextdetr.export.graph import Traced
from nextdetr.files import atomic_write
from nextdetr.inference.contract import Contract
from nextdetr.inference.header import PROGRAM_METADATA
from nextdetr.inference.session import Arrays, Session

__all__ = ["ProgramModel", "write_program"]


def write_program(traced: Traced, contract: Contract, path: Path) -> Path:
    """Write the program atomically, with its contract as the extra file ``nextdetr.json``."""
    terms = json.dumps(contract.to_metadata(), ensure_ascii=False)
    content = io.BytesIO()  # torch aborts the process when it writes to a full disk itself
    with warnings.catch_warnings():
        # About weights off the CPU. These are on it, and the gate opens the file and compares its boxes.
        warnings.filterwarnings("ignore", message="No complete tensor found")
        torch.export.save(traced.program, content, extra_files={PROGRAM_METADATA: terms})
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getbuffer())
    return path


class ProgramModel(Session):
    """A program just written by this process, opened for the gate.

    Args:
        path: the file.
        contract: its contract.
    """

    name = "torch.export"

    def __init__(self, path: Path, contract: Contract) -> None:
        self.source = str(path)
        self._module = torch.export.load(path).module()
        self._outputs = contract.output_names

    def _run(self, inputs: Arrays) -> Arrays:
        with torch.no_grad():
            results = self._module(*(torch.from_numpy(value) for value in inputs.values()))
        return {name: value.numpy() for name, value in zip(self._outputs, results, strict=True)}
