from __future__ import annotations

import stat

import pytest

from nextdetr.files import append_line, atomic_write, new_directory, write_text_atomic


def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "a" / "größe.json"
    write_text_atomic(target, "old")

    def fail():
        with atomic_write(target) as temporary:
            temporary.write_text("half of the ne")
            raise OSError("no space left on the disk")

    with pytest.raises(OSError, match="disk"):
        fail()
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_write_replaces_whole_file_with_ordinary_permissions(tmp_path):
    target = tmp_path / "x.txt"
    write_text_atomic(target, "long content")
    write_text_atomic(target, "ß")
    assert target.read_bytes() == "ß".encode()
    assert stat.S_IMODE(target.stat().st_mode) & 0o600 == 0o600


def test_temporary_file_keeps_the_suffix(tmp_path):
    with atomic_write(tmp_path / "x.png") as temporary:
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"1")


def test_new_directory_counts_on(tmp_path):
    names = [new_directory(tmp_path / "run").name for _ in range(3)]
    assert names == ["run", "run-2", "run-3"]


def test_append_line(tmp_path):
    append_line(tmp_path / "log", "a")
    append_line(tmp_path / "log", "b")
    assert (tmp_path / "log").read_text() == "a\nb\n"
