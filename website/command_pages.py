"""The pages of the command line, written by the program itself."""

from __future__ import annotations

import re

from nextdetr.cli.commands import app

INTRODUCTION = """# Command line

```console
nextdetr COMMAND [OPTIONS]
```

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
IDLE = ("default: False", "default: ()", "default: ")  # defaults that say nothing
LISTS = re.compile(r"(?:^\* `.*\n)+", re.MULTILINE)


def command_pages() -> dict[str, str]:
    """Return the text of ``index.md`` and of one page a command."""
    text = app.generate_docs(heading_level=1)
    pages, rows = {}, []
    for part in re.split(r"^(?=## nextdetr \S+$)", text, flags=re.MULTILINE)[1:]:
        name = re.match(r"## nextdetr (\S+)", part)[1]
        part = re.sub(r"^#(#+ nextdetr)", r"\1", part, flags=re.MULTILINE)
        pages[f"{name}.md"] = LISTS.sub(_table, part)
        rows.append(f"| [`{name}`]({name}.md) | {_sentence(part)} |\n")
    return {"index.md": INTRODUCTION + "".join(rows), **pages}


def _table(match: re.Match[str]) -> str:
    """Turn a list of options, which Cyclopts writes as one paragraph each, into a table."""
    rows = [ITEM.match(line) for line in match[0].splitlines()]
    if not all(rows):
        return match[0]
    lines = "".join(f"| {_code(row[1])} | {_cell(row[2] + _notes(row[3]))} |\n" for row in rows)
    return "| | |\n|---|---|\n" + lines


def _code(names: str) -> str:
    return "<br>".join(f"`{name}`" for name in names.split(", ") if not name.startswith("--empty-"))


def _notes(text: str) -> str:
    """Keep what is required, which values there are, and defaults that say something."""
    notes = [
        note for note in re.findall(r"\[([^\]]*)\]", text) if note not in ("default: False", "default: ()", "default: ")
    ]
    return "".join(f" *{note[0].upper()}{note[1:]}.*" for note in notes)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _sentence(page: str) -> str:
    """Return the first paragraph that is neither heading nor usage."""
    plain = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    return next(" ".join(part.split()) for part in plain.split("\n\n") if part.strip() and not part.strip().startswith("#"))
