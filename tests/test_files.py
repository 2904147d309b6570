"""Files are complete or untouched after any failure; leftovers of killed processes go; one process writes at a time."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from nextdetr import files
from nextdetr.detector_files import check_not_cached, detector_name, own_folder
from nextdetr.errors import ConfigError, DataError, WriteError, out_of_memory
from nextdetr.files import (
    atomic_write,
    check_writable,
    exclusive,
    make_directory,
    new_directory,
    new_directory_if_used,
    optional_file,
    write_text_atomic,
)

NO_SPACE = os.strerror(errno.ENOSPC)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(files, "_swept", set())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(errno.ENOSPC, NO_SPACE), NO_SPACE),
        (OSError("encoder error -2 when writing image file"), "encoder error -2"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), "unexpected pos"),
    ],
)
def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path, error, cause):
    target = tmp_path / "a" / "größe.json"
    write_text_atomic(target, "old")

    def fail():
        with atomic_write(target) as temporary:
            temporary.write_text("half of the ne")
            raise error

    with pytest.raises(WriteError, match=r"größe\.json: cannot be written") as raised:
        fail()
    assert cause in str(raised.value)
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_errors_that_have_nothing_to_do_with_writing_pass(tmp_path):
    for error in (DataError("an image"), MemoryError(), TypeError("a mistake"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as raised, atomic_write(tmp_path / "x"):
            raise error
        assert raised.value is error
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of a file")
def test_every_library_names_the_systems_own_reason(tmp_path):
    import resource

    values = torch.rand(300, 300)
    picture = Image.fromarray((np.random.default_rng(0).random((300, 300, 3)) * 255).astype(np.uint8))
    writers = {
        "a.ckpt": lambda path: torch.save(values, path),
        "a.safetensors": lambda path: save_file({"x": values}, path),
        "a.png": picture.save,
        "a.jpg": lambda path: picture.save(path, quality=100),
        "a.txt": lambda path: path.write_bytes(bytes(200_000)),
    }

    def write(name):
        with atomic_write(tmp_path / name) as temporary:
            writers[name](temporary)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        for name in writers:
            with pytest.raises(WriteError, match=os.strerror(errno.EFBIG)):
                write(name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not names(tmp_path)


def test_an_optional_file_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with optional_file():
        write_text_atomic(tmp_path / "file" / "curves.png", "x")
    assert "file is a file" in caplog.text
    assert "continues" in caplog.text


def test_a_check_before_a_write_leaves_nothing(tmp_path):
    (tmp_path / "old.html").write_text("old")
    for name in ("old.html", "new.html", "a/b/new.html"):
        check_writable(tmp_path / name)
    assert names(tmp_path) == ["old.html"]
    assert (tmp_path / "old.html").read_text() == "old"
    with pytest.raises(WriteError, match=r"old\.html is a file"):
        check_writable(tmp_path / "old.html" / "a" / "new.html")
    assert names(tmp_path) == ["old.html"]


def test_write_replaces_whole_file_with_ordinary_permissions(tmp_path):
    target = tmp_path / "x.txt"
    write_text_atomic(target, "long content")
    write_text_atomic(target, "ß")
    assert target.read_bytes() == "ß".encode()
    mask = os.umask(0o022)
    os.umask(mask)
    if sys.platform != "win32":
        assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask


def test_files_are_flushed_through_a_handle_for_writing(tmp_path, monkeypatch):
    """Windows refuses to flush any other."""
    handles, flush = [], os.fsync

    def watched(handle):
        import fcntl

        handles.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE)
        flush(handle)

    monkeypatch.setattr(os, "fsync", watched)
    write_text_atomic(tmp_path / "x", "x")
    assert handles == [os.O_RDWR, os.O_RDONLY]  # the file, and on systems that can the folder


@pytest.mark.parametrize("name", ["x.png", "中" * 83 + ".png", "a." + "b" * 240, ".hidden", "no-suffix"])
def test_temporary_file_keeps_the_suffix(tmp_path, name):
    with atomic_write(tmp_path / name) as temporary:
        assert temporary.suffix == (".png" if name.endswith("png") else temporary.suffix)
        assert files._TEMPORARY.fullmatch(temporary.name)
        temporary.write_bytes(b"1")
    assert names(tmp_path) == [name]


def test_leftovers_of_dead_processes_go_and_nothing_else(tmp_path):
    code = (
        "import os, sys\nfrom nextdetr.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as temporary:\n    temporary.write_text('half')\n    os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "last.ckpt")], check=False, timeout=60)
    (dead,) = names(tmp_path)
    assert dead.endswith(".partial.ckpt")
    kept = [
        ".a.b.partial.ckpt",
        f".last.{files._machine()}-{os.getppid()}-00000000.partial.ckpt",  # a living process
        ".last.00000000-1-00000000.partial.ckpt",  # of another machine, a moment ago
    ]
    old = ".last.00000000-2-00000000.partial.ckpt"
    for name in (*kept, old):
        (tmp_path / name).write_text("")
    os.utime(tmp_path / old, (time.time() - 7200,) * 2)
    with atomic_write(tmp_path / "last.ckpt") as temporary:
        files._swept.clear()
        write_text_atomic(tmp_path / "other.txt", "x")
        assert temporary.exists()  # of this process
    assert names(tmp_path) == sorted([*kept, "last.ckpt", "other.txt"])


def test_new_directory_counts_on(tmp_path):
    made = [new_directory(tmp_path / "run").name for _ in range(3)]
    assert made == ["run", "run-2", "run-3"]


def test_the_working_folder_has_a_name_too(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert new_directory(".") == tmp_path / "run-2"
    assert new_directory("../run") == Path("../run-3")
    for folder in (".", ".."):
        with pytest.raises(WriteError, match="is a folder; name a file"), atomic_write(folder):
            pass


def test_a_new_directory_goes_where_nothing_came_of_it(tmp_path):
    def fail(*, used: bool) -> None:
        with new_directory_if_used(tmp_path / "runs" / "predict") as folder:
            if used:
                (folder / "part").write_text("")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail(used=False)
    assert names(tmp_path) == []
    with pytest.raises(ValueError, match="no"):
        fail(used=True)
    with new_directory_if_used(tmp_path / "runs" / "predict"):
        pass
    assert names(tmp_path / "runs") == ["predict", "predict-2"]


def test_what_stands_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "runs").symlink_to(tmp_path / "gone")
    (tmp_path / "file").write_text("")
    for make in (new_directory, make_directory):
        with pytest.raises(WriteError, match=r"runs is a link to .*gone, which does not exist"):
            make(tmp_path / "runs" / "a")
        with pytest.raises(WriteError, match="file is a file"):
            make(tmp_path / "file" / "a")
    assert new_directory(tmp_path / "file").name == "file-2"


HOLD = """
import sys, time
from nextdetr.files import exclusive
with exclusive(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["run", "all.parquet"])
def test_one_process_at_a_time_until_it_dies(tmp_path, name):
    target = tmp_path / name
    if name == "run":
        target.mkdir()
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(target)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another process is writing there"), exclusive(target):
            pass
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    for _ in range(2):
        with exclusive(target, wait=5):
            pass


def test_memory_that_ran_out_is_known_by_what_each_library_says():
    said = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    for error in (MemoryError(), RuntimeError(said), RuntimeError("std::bad_alloc"), OSError(errno.ENOMEM, "")):
        assert out_of_memory(error)
    for error in (RuntimeError("shapes differ"), OSError(errno.ENOSPC, NO_SPACE), ValueError("out of memory")):
        assert not out_of_memory(error)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("runs/cells/best.safetensors", "cells"), ("runs/v1.5/last.safetensors", "v1.5"), ("runs/v1.5", "v1.5"),
        ("pretrain/detector.safetensors", "pretrain"), ("exports/cells/model.onnx", "cells"),
        ("exports/cells.onnx", "cells"), ("nextdetr-atto", "nextdetr-atto"), ("files/model.yaml", "model"),
    ],
)  # fmt: skip
def test_a_detector_is_called_after_its_run_or_its_file(source, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "v1.5").mkdir(parents=True)
    assert detector_name(source) == name


def test_files_made_from_a_detector_go_beside_its_file(tmp_path):
    file = tmp_path / "best.safetensors"
    file.write_bytes(b"")
    assert own_folder(file) == own_folder(tmp_path) == tmp_path
    assert own_folder(tmp_path / "missing.safetensors") is own_folder("someone/cells@main") is None
    check_not_cached(file, "calibrate")


@pytest.mark.parametrize(("repository", "name"), [("models--someone--cells-v2", "cells-v2"), ("models--cells", "cells")])
def test_a_detector_in_the_hubs_cache_is_called_after_its_repository(repository, name, tmp_path, monkeypatch):
    folder = tmp_path / repository
    snapshot = folder / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir()
    (folder / "blobs" / "abc").write_bytes(b"")
    for file in ("model.safetensors", "night.safetensors"):
        (snapshot / file).symlink_to("../../blobs/abc")
    assert detector_name(snapshot / "model.safetensors") == detector_name(snapshot) == name
    assert detector_name(snapshot / "night.safetensors") == "night"
    assert own_folder(snapshot / "model.safetensors") is own_folder(snapshot) is None
    with pytest.raises(ConfigError, match=r"calibrate writes .* save it elsewhere first"):
        check_not_cached(snapshot / "model.safetensors", "calibrate")
    monkeypatch.chdir(snapshot)
    assert detector_name("model.safetensors") == detector_name(".") == name


def test_names_that_are_not_utf8_do_not_keep_a_file_from_being_written(tmp_path):
    write_text_atomic(tmp_path / "x.json", json.dumps("m\udcfcnze", ensure_ascii=False))
    assert (tmp_path / "x.json").read_bytes() == b'"m\\udcfcnze"'
    assert json.loads((tmp_path / "x.json").read_text()) == "m\udcfcnze"
