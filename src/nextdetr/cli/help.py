"""``--help``: options under titles, the common ones of a long command; ``--help-all`` shows every option.

Cyclopts hands over what it knows about each option; the groups, and what is shown as a default, are in ``options.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from nextdetr.cli.options import CHOSEN, PLACEHOLDERS, grouped, is_common

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions
    from rich.table import Table

__all__ = ["HELP_ALL", "HelpFormatter", "default_text", "label", "showing_all"]

HELP_ALL = "--help-all"

showing_all: ContextVar[bool] = ContextVar("showing_all", default=False)

_WIDEST = 26  # columns of an option and its placeholder, before the text beside them becomes too narrow


class HelpFormatter:
    """Prints the panels of one command's help.

    Args:
        command: its name, as ``options.py`` has it; empty for the list of commands.
        summaries: a line for each command, in place of the first sentence of its own help.
    """

    def __init__(self, command: str, summaries: Mapping[str, str] | None = None) -> None:
        self.command = command
        self.summaries = summaries or {}
        self._later: list[HelpEntry] = []  # arguments given by their place alone, whose panel comes first

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        """Print the line that shows how the command is written."""
        console.print(f"Usage: {usage}", highlight=False, markup=False)

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print a panel of commands or of options."""
        if panel.format == "command":
            rows = [(" ".join(entry.names + entry.shorts), self._about(entry)) for entry in panel.entries]
            _print(console, [(str(panel.title), rows)])
            return
        named = {option_name(entry.names): entry for entry in panel.entries if not entry.positional_label}
        if not named:
            self._later = list(panel.entries)
            return
        places, self._later = [entry for entry in panel.entries if entry.positional_label] + self._later, []
        shown = [name for name in named if showing_all.get() or is_common(self.command, name)]
        sections = [("Arguments", [_row(entry) for entry in places])]
        sections += [
            (title, [_row(named[name], chosen=name in CHOSEN.get(self.command, ())) for name in names])
            for title, names in grouped(self.command, shown)
        ]
        _print(console, sections)
        if len(shown) < len(named):
            more = f"{len(named) - len(shown)} more options: nextdetr {self.command} {HELP_ALL}"
            console.print(f"\n{more}", highlight=False, markup=False)

    def _about(self, entry: HelpEntry) -> Any:
        return self.summaries.get(next(iter(entry.names), ""), entry.description)


def _row(entry: HelpEntry, *, chosen: bool = False) -> tuple[str, Any]:
    """Return an option and the text beside it."""
    from rich.text import Text

    if entry.positional_label:
        if entry.choices:
            entry.description.append(Text(f"[one of {', '.join(entry.choices)}]", "dim"))
        return entry.positional_label, entry.description
    shown, choices = label(entry.names, entry.metavar, entry.choices, on=chosen or entry.default != "False")
    default = default_text(entry.default)
    note = "chosen from the data" if chosen else f"default: {default}" if default else ""
    for text in (choices, note, "required" if entry.required else ""):
        if text:
            entry.description.append(Text(f"[{text}]", "dim"))
    return shown, entry.description


def _print(console: Console, sections: Sequence[tuple[str, Sequence[tuple[str, Any]]]]) -> None:
    """Print titles with their rows, all in the same two columns."""
    from rich.text import Text

    labels = [shown for _, rows in sections for shown, _ in rows]
    width = max((len(shown) for shown in labels if len(shown) <= _WIDEST), default=_WIDEST)
    for title, rows in sections:
        if rows:
            console.print(Text(title, "bold"))
            console.print(_table(rows, width))


def _table(rows: Sequence[tuple[str, Any]], width: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=2 + width, overflow="fold")
    table.add_column(ratio=1)
    for shown, text in rows:
        if len(shown) > width:
            shown = shown.replace(" ", "\n    ", 1)  # the value below the option
        table.add_row(Text(f"  {shown}", "cyan"), text)
    return table


def option_name(names: Sequence[str]) -> str:
    """Return the name of a setting, ``image_size``, for its option, ``--image-size``."""
    return names[0].lstrip("-").replace("-", "_") if names else ""


def label(
    names: Sequence[str], placeholder: str | None, choices: Sequence[str] | None, *, on: bool = False
) -> tuple[str, str]:
    """Return an option as the help shows it, and its choices if they are too long to be part of it.

    Args:
        names: such as ``--report`` and ``--no-report``.
        placeholder: of its value; None for a switch.
        choices: the values that it takes, if they are counted.
        on: whether a switch may be on by itself, so that the label shows how to turn it off.
    """
    first = names[0]
    if placeholder is None:
        return (f"--[no-]{first[2:]}" if on and any(name.startswith("--no-") for name in names) else first), ""
    end = "..." if placeholder.endswith("...") else ""
    own = PLACEHOLDERS.get(option_name(names))
    if own is not None and ("STR" in placeholder or "|" in placeholder):
        return f"{first} {own}{'' if own.endswith('...') else end}", ""
    listed = "|".join(choices or ())
    if "CHOICE" in placeholder and len(f"{first} {listed}{end}") > _WIDEST:
        return f"{first} CHOICE{end}", f"one of {', '.join(choices or ())}"
    kinds = {"CHOICE": listed, "FLOAT": "X", "INT": "N", "STR": first.rpartition("-")[2].upper()}
    return f"{first} {re.sub('CHOICE|FLOAT|INT|STR', lambda kind: kinds[kind[0]], placeholder)}", ""


def default_text(default: str | None) -> str:
    """Return a default as people write it: ``images`` for ``('images',)``, ``on`` for True; empty where it says nothing."""
    if default is None or default in ("False", "()", "[]", "", '""'):
        return ""
    if default == "True":
        return "on"
    if default[0] in "([":
        return " ".join(part.strip("' ") for part in default.strip("()[]").split(",") if part.strip())
    return default
