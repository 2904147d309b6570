"""An export to the web into the folder of an earlier one replaces it: its files go, the user's stay."""

from __future__ import annotations

import hashlib
import shutil
import subprocess

import pytest

from nextdetr.export.web.runtime import FILES
from nextdetr.export.web.sums import SUMS, replace_sums
from nextdetr.inference.contract import Contract
from tests.export.handmade import CLASSES, FOUND, SIDE


def exported(folder, name, *, single):
    """The page around a file that is no graph, with a runtime that is none."""
    from nextdetr.export.web.folder import write_folder

    runtime = folder.parent / "runtime-given"
    runtime.mkdir(exist_ok=True)
    for file in FILES:
        (runtime / file).write_text("export const x = 1;\n")
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(name.encode())
    details = {"source": "toy", "licence": "Apache-2.0", "weights_licence": "none"}
    contract = Contract(CLASSES, SIDE, FOUND, raw=True, portable=True, details=details)
    return write_folder(folder / "model.onnx", contract, {file: runtime / file for file in FILES}, name, single=single)


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_earlier_page_is_replaced_and_the_users_files_stay(tmp_path):
    folder = tmp_path / "page"
    exported(folder, "first", single=True)
    (folder / "page" / "old.js").write_text("// of an earlier version\n")
    replace_sums(folder, files_of(folder) - {SUMS})
    (folder / "notes.html").write_text("mine\n")
    (folder / "page" / "mine.js").write_text("// mine\n")
    exported(folder, "second", single=True)
    expected = tmp_path / "new"
    exported(expected, "second", single=True)
    assert files_of(folder) - files_of(expected) == {"notes.html", "page/mine.js"}
    assert {"second.html", SUMS} <= files_of(expected) <= files_of(folder)


def test_an_earlier_file_that_was_changed_stays(tmp_path):
    folder = tmp_path / "page"
    exported(folder, "toy", single=True)
    (folder / "toy.html").write_text("edited\n")
    exported(folder, "toy", single=False)
    assert (folder / "toy.html").read_text() == "edited\n"


def test_without_the_option_an_earlier_single_file_goes(tmp_path):
    folder = tmp_path / "page"
    exported(folder, "toy", single=True)
    exported(folder, "toy", single=False)
    assert not (folder / "toy.html").exists()
    assert (folder / "index.html").is_file()


def write_list(folder, lines, first="# Files of nextdetr export --format web"):
    (folder / SUMS).write_text(f"{first}\n{lines}")


@pytest.mark.parametrize(("first", "stays"), [("# Files of nextdetr export --format web", False), ("# My files", True)])
def test_only_the_list_of_an_export_removes_files(tmp_path, first, stays):
    (tmp_path / "old.js").write_text("old\n")
    write_list(tmp_path, f"{hashlib.sha256(b'old' + bytes([10])).hexdigest()}  old.js\n", first)
    replace_sums(tmp_path, [])
    assert (tmp_path / "old.js").exists() == stays


@pytest.mark.parametrize("place", ["../outside.txt", "{parent}/outside.txt", "link.txt"])
def test_a_list_removes_nothing_outside_its_folder(tmp_path, place):
    folder, outside = tmp_path / "page", tmp_path / "outside.txt"
    folder.mkdir()
    outside.write_text("keep\n")
    (folder / "link.txt").symlink_to(outside)
    checksum = hashlib.sha256(b"keep\n").hexdigest()
    write_list(folder, f"{checksum}  {place.format(parent=tmp_path)}\nno line of a list\n")
    replace_sums(folder, [])
    assert outside.read_text() == "keep\n"
    assert (folder / "link.txt").is_symlink()


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="a program of GNU coreutils")
def test_the_list_is_one_that_sha256sum_checks(tmp_path):
    folder = tmp_path / "page"
    exported(folder, "toy", single=True)
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder, check=True, capture_output=True)
    listed = {line.split("  ", 1)[1] for line in (folder / SUMS).read_text().splitlines()[1:]}
    assert listed == files_of(folder) - {SUMS}
