"""Completion scripts for shells: those of Cyclopts, with what these need to be found and to complete files."""

from __future__ import annotations

import re
from typing import Literal

from cyclopts import App

__all__ = ["completion_script"]

#: The functions that Cyclopts' scripts define, by shell.
_FUNCTIONS = {"bash": r"^(_\w+)\(\) \{", "zsh": r"^(_\w+)\(\) \{", "fish": r"^function (__fish_\w+_using_command)$"}
#: Files are completed where there is nothing else: MODEL, --data and others take names of files, and not only these.
_BASH = "complete -o bashdefault -o default -F {function} {name}\n"
#: zsh calls a file of ``fpath`` under the file's own name for each completion; one that is sourced has to register itself.
_ZSH = """\
{function}_or_files() {{
  {function} "$@"
  if (( ! compstate[nmatches] )); then
    compset -P '--*='
    _files
  fi
}}

if (( $+compstate )); then
  {function}_or_files "$@"
elif (( $+functions[compdef] )); then
  compdef {function}_or_files {name}
fi
"""
#: fish completes files by itself; where the name of a command is to follow, they are in the way.
_FISH = "complete -c {name} -n '{function}{words}' -f\n"


def completion_script(app: App, shell: Literal["bash", "zsh", "fish"]) -> str:
    """Return the script that completes commands, options, values and files in a shell."""
    script, name = app.generate_completion(shell=shell), app.name[0]
    found = re.search(_FUNCTIONS[shell], script, re.MULTILINE)
    if found is None:
        return script
    if shell == "fish":
        groups = [command for command in app if not command.startswith("-") and _commands(app[command])]
        words = ["", *(f" {command}" for command in groups)]
        return script + "".join(_FISH.format(name=name, function=found[1], words=word) for word in words)
    return script + "\n" + {"bash": _BASH, "zsh": _ZSH}[shell].format(name=name, function=found[1])


def _commands(app: App) -> list[str]:
    """Return the names of an app's own commands."""
    return [name for name in app if not name.startswith("-")]
