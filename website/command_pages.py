"""The pages of the command line, written by the program itself."""

from __future__ import annotations

import re

from nextdetr.cli.commands import app
from nextdetr.cli.help import default_text, label, option_name
from nextdetr.cli.options import CHOSEN, grouped
from nextdetr.cli.other_tools import COMMANDS, OPTIONS, Other

INTRODUCTION = """# Command line

```console
nextdetr COMMAND [OPTIONS]
```

`nextdetr` alone shows the way from images to a running detector, and `nextdetr COMMAND --help` the common options of a
command; `--help-all` has all of them, as these pages do. `nextdetr completion SHELL` prints a script that completes them.
[Names of other tools](../other-tools-options.md), such as `--imgsz`, are understood or answered with the right one.

Every command takes `--json`, which prints one JSON object on standard output and everything else on standard error, and
`--verbose`, which shows where an error comes from. Commands end with one of these codes:

| code | meaning |
|---|---|
| 0 | done |
| 1 | failed while running |
| 2 | wrong usage, or input that cannot be used |
| 3 | a check was not met: an exported file differs, `doctor` found something serious, `calibrate` cannot give its bound |
| 130 | interrupted |

| command | what it does |
|---|---|
"""


ITEM = re.compile(r"^\* `([^`]+)`: (.*?)((?: *\*+\[[^\]]*\]\*+)*)$")
LISTS = re.compile(r"(?:\*\*(?:Arguments|Parameters)\*\*:\n\n)?((?:^\* `.*\n)+)", re.MULTILINE)
TABLE = "\n| | |\n|---|---|\n"


def command_pages() -> dict[str, str]:
    """Return the text of ``index.md`` and of one page a command."""
    text = app.generate_docs(heading_level=1)
    pages, rows = {}, []
    for part in re.split(r"^(?=## nextdetr \S+$)", text, flags=re.MULTILINE)[1:]:
        name = re.match(r"## nextdetr (\S+)", part)[1]
        part = re.sub(r"^#(#+ nextdetr)", r"\1", part, flags=re.MULTILINE)
        part = part.replace(f"nextdetr {name} {name} ", f"nextdetr {name} ")  # a usage of our own has the name, too
        pages[f"{name}.md"] = LISTS.sub(lambda match, name=name: _tables(match, name), part)
        rows.append(f"| [`{name}`]({name}.md) | {_sentence(part)} |\n")
    return {"index.md": INTRODUCTION + "".join(rows), **pages}


def other_tools() -> str:
    """Return the tables of ``docs/reference/other-tools-options.md``: what the command line understands of other tools."""
    same = "".join(f"| {_names(entry.names)} | `--{entry.ours}` | {_where(entry)} |\n" for entry in OPTIONS if entry.ours)
    other = "".join(
        f"| {_names(entry.names)} | {_marked(entry.answer)} | {_where(entry)} |\n" for entry in OPTIONS if not entry.ours
    )
    typed: dict[str, list[str]] = {}
    for word, ours in COMMANDS.items():
        typed.setdefault(ours, []).append(word)
    commands = "".join(f"| {_names(' '.join(words), '')} | `{ours}` |\n" for ours, words in typed.items())
    return (
        f"## Accepted: the same meaning and unit\n\n| typed | is | in |\n|---|---|---|\n{same}"
        f"\n## Answered: another meaning or unit\n\n| typed | answer | in |\n|---|---|---|\n{other}"
        f"\n## Commands\n\n| typed | answer |\n|---|---|\n{commands}"
    )


def _names(names: str, hyphens: str = "--") -> str:
    return ", ".join(f"`{hyphens}{name}`" for name in names.split())


def _where(entry: Other) -> str:
    return ", ".join(f"`{name}`" for name in entry.commands.split()) or ("all that have it" if entry.ours else "all")


def _marked(answer: str) -> str:
    return _cell(re.sub(r"(--[a-z][a-z0-9-]*)", r"`\1`", answer))


def _tables(match: re.Match[str], command: str) -> str:
    """Turn a list of options, which Cyclopts writes as one paragraph each, into a table for each group."""
    rows = [ITEM.match(line) for line in match[1].splitlines()]
    if not all(rows):
        return match[0]
    places = [row for row in rows if not row[1].startswith("-")]
    named = {option_name([row[1].split(",")[0].split(" ")[0]]): row for row in rows if row[1].startswith("-")}
    tables = [("Arguments", [_row(row[1].split(",")[0], row[2], row[3]) for row in places])] if places else []
    tables += [
        (title, [_option(named[name], chosen=name in CHOSEN.get(command, ())) for name in names])
        for title, names in grouped(command, named)
    ]
    return "\n".join(f"**{title}**\n{TABLE}{''.join(lines)}" for title, lines in tables)


def _option(row: re.Match[str], *, chosen: bool) -> str:
    """Return the row of an option: its name as the help has it, its text, and what it is by default."""
    names = [part.split(" ")[0] for part in row[1].split(", ")]
    placeholder = row[1].split(", ")[0].partition(" ")[2] or None
    notes = dict(note.partition(": ")[::2] for note in re.findall(r"\[([^\]]*)\]", row[3]))
    choices = notes.get("choices", "").split(", ") if "choices" in notes else None
    default = notes.get("default")
    shown, listed = label(names, placeholder, choices, on=chosen or default != "False")
    known = "chosen from the data" if chosen else default and default_text(default) and f"default: {default_text(default)}"
    return _row(
        shown, row[2], "".join(f"[{note}]" for note in (listed, known, "required" if "required" in notes else "") if note)
    )


def _row(name: str, text: str, notes: str) -> str:
    kept = [note for note in re.findall(r"\[([^\]]*)\]", notes) if note != "required" or name.startswith("-")]
    said = "".join(f" *{note[0].upper()}{note[1:]}.*" for note in kept)
    return f"| `{name.replace('|', chr(92) + '|')}` | {_cell(text + said)} |\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _sentence(page: str) -> str:
    """Return the first paragraph that is neither heading nor usage."""
    plain = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    return next(" ".join(part.split()) for part in plain.split("\n\n") if part.strip() and not part.strip().startswith("#"))
