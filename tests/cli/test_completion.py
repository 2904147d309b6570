"""``nextdetr completion``: the scripts, and what bash, zsh and fish complete with their own."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time

import pytest

from nextdetr.cli.main import run

COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_nextdetr
printf '%s\\n' "${COMPREPLY[@]}"
"""


#: Notes what is completed, and, at Ctrl-X, that all of a line is; ``compadd -O``, ``-A`` and ``-D`` add nothing yet.
ZSHRC = """
fpath=("$ZDOTDIR/fpath" $fpath)
autoload -Uz compinit
compinit -u -d "$ZDOTDIR/dump"
[[ -z $SOURCED ]] || source "$SOURCED"
compadd() {
  local -a found
  if [[ ${@[1,(i)(-|--)]} != *-(O|A|D)\\ * ]]; then
    builtin compadd -O found "$@"
    print -rl -- "$found[@]" >> "$ZDOTDIR/found"
  fi
  builtin compadd "$@"
}
finish() { print -r -- END >> "$ZDOTDIR/found"; BUFFER= }
precmd() { print -r -- END >> "$ZDOTDIR/found" }
unsetopt auto_list auto_menu
bindkey '^I' complete-word
zle -N finish
bindkey '^X' finish
"""


def script_of(shell):
    from nextdetr.cli.commands import app
    from nextdetr.cli.completion import completion_script

    return completion_script(app, shell)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "nextdetr"
    path.write_text(script_of("bash"))
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


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_files_where_the_script_has_nothing(script):
    told = subprocess.run(
        ["bash", "-c", 'source "$1"; complete -p nextdetr', "bash", str(script)], check=True, capture_output=True, text=True
    )
    assert told.stdout.split() == ["complete", "-o", "bashdefault", "-o", "default", "-F", "_nextdetr", "nextdetr"]
    assert completed(script, "predict", "pho") == set()


#: What is typed, and what is to be among the completions; ``True`` where nothing else may be.
TYPED = {
    "nextdetr pre": ({"predict", "pretrain"}, True),
    "nextdetr ": ({"train", "predict", "weights", "completion"}, False),
    "nextdetr weights ": ({"inspect", "convert", "list"}, True),
    "nextdetr weights li": ({"list"}, False),
    "nextdetr train --backb": ({"--backbone-weights", "--backbone-rate-factor"}, True),
    "nextdetr train --cache ": ({"auto", "off", "full", "shrunk"}, True),
    "nextdetr completion z": ({"zsh"}, True),
    "nextdetr val --help": ({"--help", "--help-all"}, True),
    "nextdetr predict pho": ({"photo.png"}, True),
    "nextdetr predict photo.png pho": ({"photo.png"}, True),
    "nextdetr train --data pho": ({"photo.png"}, True),
}


def wait_for(file, screen):
    """Wait until the shell has ended what it was asked for, and return it; its screen is read, so that it never waits."""
    end = time.monotonic() + 60
    while "END" not in (text := file.read_text() if file.exists() else ""):
        assert time.monotonic() < end, text
        if select.select([screen], [], [], 0.02)[0]:
            os.read(screen, 1 << 16)
    file.unlink()
    return {line for line in text.splitlines() if line not in ("", "END")}


@pytest.mark.skipif(shutil.which("zsh") is None or sys.platform == "win32", reason="no zsh")
@pytest.mark.parametrize("way", ["on fpath", "sourced"])
def test_zsh_completes_commands_options_values_and_files(tmp_path, way):
    (tmp_path / "fpath").mkdir()
    (tmp_path / ("script" if way == "sourced" else "fpath/_nextdetr")).write_text(script_of("zsh"))
    (tmp_path / ".zshrc").write_text(ZSHRC)
    (tmp_path / "photo.png").touch()
    import pty

    screen, terminal = pty.openpty()
    settings = {"ZDOTDIR": str(tmp_path), "TERM": "dumb", "SOURCED": str(tmp_path / "script") * (way == "sourced")}
    shell = subprocess.Popen(
        ["zsh", "-i"], stdin=terminal, stdout=terminal, stderr=terminal, cwd=tmp_path, env=os.environ | settings,
        start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(tmp_path / "found", screen)
        for line, (expected, only) in TYPED.items():
            os.write(screen, f"{line}\t\x18".encode())
            found = wait_for(tmp_path / "found", screen)
            assert expected <= found, line
            assert found == expected or not only, line
    finally:
        shell.kill()
        shell.wait()
        os.close(screen)
        os.close(terminal)


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish")
def test_fish_completes_commands_options_values_and_files(tmp_path):
    (tmp_path / "script").write_text(script_of("fish"))
    (tmp_path / "photo.png").touch()
    for line, (expected, only) in TYPED.items():
        told = subprocess.run(
            ["fish", "--no-config", "-c", "source script; complete -C $argv", line], check=True, capture_output=True,
            text=True, cwd=tmp_path, env=os.environ | {"HOME": str(tmp_path)},
        )  # fmt: skip
        found = {row.partition("\t")[0] for row in told.stdout.splitlines()}
        assert expected <= found, line
        assert found == expected or not only, line
        assert told.stderr == ""


def test_the_script_is_printed(monkeypatch, capsys):
    from nextdetr.cli.commands import app

    monkeypatch.setattr(type(app), "generate_completion", lambda self, shell: f"# for {shell}")
    assert run(["completion", "fish"]) == 0
    assert capsys.readouterr().out == "# for fish\n"
    assert run(["completion", "zsh", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"command": "completion", "shell": "zsh", "script": "# for zsh"}
    assert run(["completion", "tcsh"]) == 2
    assert "bash" in capsys.readouterr().err
