"""The notebooks of ``examples/`` run from top to bottom, on a tiny data set and for seconds."""

from __future__ import annotations

import ast
import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from tests.docs.test_python import wrong_calls

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
# In place of the values in the cell tagged "parameters".
TINY = {
    "train": {"EPOCHS": 1, "IMAGE_SIZE": 64, "IMAGES": 8, "VAL_IMAGES": 2},
    "few_labels": {
        "EPOCHS": 1, "PRETRAIN_EPOCHS": 1, "HEAD_EPOCHS": 1, "IMAGE_SIZE": 64,
        "LABELS": 4, "UNLABELLED": 8, "VAL_IMAGES": 2,
    },
    "export_and_compare": {"EPOCHS": 1, "IMAGE_SIZE": 64, "IMAGES": 4, "VAL_IMAGES": 2},
    "explain_a_detection": {"EPOCHS": 1, "IMAGE_SIZE": 64, "IMAGES": 4, "VAL_IMAGES": 2, "GRID": 3},
}  # fmt: skip


def code_of(cell):
    return "".join(cell["source"])


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_notebook_has_small_settings():
    assert {path.stem for path in NOTEBOOKS} == TINY.keys()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_clean(path):
    book = read(path)
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert not [cell["id"] for cell in code if cell["outputs"] or cell["execution_count"] is not None]
    assert [cell["id"] for cell in code if "parameters" in cell["metadata"].get("tags", [])] == [code[0]["id"]]
    settings = {
        target.id
        for node in ast.parse(code_of(code[0])).body
        for name in node.targets
        for target in ast.walk(name)
        if isinstance(target, ast.Name)
    }
    assert {*TINY[path.stem], "OUTPUT"} <= settings
    assert not [found for cell in code for found in wrong_calls(ast.parse(code_of(cell)))]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
    if not os.environ.get("CI"):
        pytest.importorskip("nbclient", reason="install the extra test")
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # without the user's own start-up files
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    first = next(number for number, cell in enumerate(book.cells) if cell.cell_type == "code")
    values = "\n".join(f"{name} = {value!r}" for name, value in TINY[path.stem].items())
    book.cells.insert(first + 1, nbformat.v4.new_code_cell(values))
    NotebookClient(book, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    said = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
    if os.environ.get("CI") or find_spec("ipywidgets"):
        assert "Warning" not in said
    assert "{}" not in said
    shown = {kind for output in outputs for kind in output.get("data", {})}
    assert "image/png" in shown
    assert "text/html" in shown or "DataFrame" not in path.read_text(encoding="utf-8")  # tables
