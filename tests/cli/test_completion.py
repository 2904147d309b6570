"""``nextdetr completion``: the scripts, and what bash completes with its own."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from nextdetr.cli.main import run

COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_nextdetr
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    from nextdetr.cli.commands import app

    path = tmp_path_factory.mktemp("completion") / "nextdetr"
    path.write_text(app.generate_completion(shell="bash"))
    return path


def completed(script, *words):
    done = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", str(script), "nextdetr", *words], check=True, capture_output=True, text=True
    )
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_options_and_values(script):
    assert {"train", "predict", "completion"} <= completed(script, "")
    assert completed(script, "pre") == {"predict", "pretrain"}
    assert completed(script, "weights", "li") == {"list"}
    assert completed(script, "train", "--backb") == {
        "--backbone-weights",
        "--backbone-rate-factor",
    }  # every option, not few
    assert {"full", "shrunk"} <= completed(script, "train", "--cache", "")
    assert completed(script, "completion", "z") == {"zsh"}
    assert "--help-all" in completed(script, "val", "--help")


def test_the_script_is_printed(monkeypatch, capsys):
    from nextdetr.cli.commands import app

    monkeypatch.setattr(type(app), "generate_completion", lambda self, shell: f"# for {shell}")
    assert run(["completion", "fish"]) == 0
    assert capsys.readouterr().out == "# for fish\n"
    assert run(["completion", "zsh", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"command": "completion", "shell": "zsh", "script": "# for zsh"}
    assert run(["completion", "tcsh"]) == 2
    assert "bash" in capsys.readouterr().err
