"""Messages about missing packages name a command that works for this installation."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

from nextdetr.errors import missing_extra
from nextdetr.installation import install_command, to_paste


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Have the package installed as ``direct_url.json`` says; None for an index."""
    (tmp_path / "my clone").mkdir()
    (tmp_path / "nextdetr-1-py3-none-any.whl").touch()
    found = tmp_path / "site" / "nextdetr-1.dist-info"
    found.mkdir(parents=True)
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: nextdetr\nVersion: 1\n")
    monkeypatch.syspath_prepend(str(found.parent))

    def install(noted):
        if noted is not None:
            text = noted if isinstance(noted, str) else json.dumps(noted).replace("PLACE", tmp_path.as_uri())
            (found / "direct_url.json").write_text(text)
        importlib.invalidate_caches()
        install_command.cache_clear()
        return tmp_path

    yield install
    install_command.cache_clear()


@pytest.mark.parametrize(
    ("noted", "expected"),
    [
        (None, "'nextdetr[train]'"),
        ({"url": "PLACE/my%20clone", "dir_info": {"editable": True}}, "-e '{place}/my clone[train]'"),
        ({"url": "PLACE/my%20clone", "dir_info": {}}, "'{place}/my clone[train]'"),
        (
            {"url": "PLACE/nextdetr-1-py3-none-any.whl", "archive_info": {"hash": "sha256=0"}},
            "'{place}/nextdetr-1-py3-none-any.whl[train]'",
        ),
        ({"url": "PLACE/gone.whl", "archive_info": {}}, "'nextdetr[train]'"),
        ({"url": "https://a.b/nextdetr-1.whl", "archive_info": {}}, "'nextdetr[train] @ https://a.b/nextdetr-1.whl'"),
        (
            {"url": "https://a.b/c", "vcs_info": {"vcs": "git", "commit_id": "0", "requested_revision": "main"}},
            "'nextdetr[train] @ git+https://a.b/c@main'",
        ),
        (
            {"url": "PLACE/my%20clone", "vcs_info": {"vcs": "git", "commit_id": "0"}, "subdirectory": "sub"},
            "'nextdetr[train] @ git+file://{quoted}/my%20clone#subdirectory=sub'",
        ),
        ("no JSON", "'nextdetr[train]'"),
        ({"url": None}, "'nextdetr[train]'"),
        ([], "'nextdetr[train]'"),
    ],
)
def test_an_extra_is_installed_where_the_package_came_from(installed, noted, expected):
    place = installed(noted)
    command = "pip install " + expected.format(place=place, quoted=place.as_uri().removeprefix("file://"))
    assert install_command("train") == command
    assert str(missing_extra("torch", "train", "training")).endswith(f"which is not installed: {command}.")


def test_the_packages_own_dependencies_have_no_extra(installed):
    assert install_command() == install_command("")
    installed(None)
    assert install_command() == "pip install nextdetr"


def test_commands_on_windows_have_double_quotes(installed, monkeypatch):
    """A backslash needs none, and for cmd.exe a single quote is a letter of the path."""
    monkeypatch.setattr(sys, "platform", "win32")
    assert to_paste(["nextdetr", "train", "--resume", r"C:\runs\train"]) == r"nextdetr train --resume C:\runs\train"
    assert to_paste(["nextdetr", "predict", r"my runs\a.safetensors"]) == r'nextdetr predict "my runs\a.safetensors"'
    installed(None)
    assert install_command("train") == "pip install nextdetr[train]"
