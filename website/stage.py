"""Put the site's pages together in ``build/docs``: ``docs/``, notebooks, results, community files, and the commands' help.

Pages link to files as they lie in the repository, so that they also work on a forge. Here those links are turned into the
site's. A link to a file that is no page of the site ends the build. Any generator can build what this leaves.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path, PurePosixPath

from command_pages import command_pages

ROOT = Path(__file__).resolve().parent.parent
STAGE = ROOT / "build" / "docs"
RESULTS = "benchmarks/results/"
NOTEBOOKS = "examples/"
COMMUNITY = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
CODE = re.compile(r"^(```.*?^```[ \t]*$)", re.MULTILINE | re.DOTALL)
HIDDEN = "---\nsearch:\n  exclude: true\n---\n\n"  # dated results would bury the pages that explain them


def main() -> None:
    """Write ``build/docs``."""
    shutil.rmtree(STAGE, ignore_errors=True)
    for source, page in sorted(_pages().items()):
        target = STAGE / page
        target.parent.mkdir(parents=True, exist_ok=True)
        path = ROOT / source
        if source == "llms.txt":  # for readers of the site: addresses of pages in place of files
            text = _links(path.read_text(encoding="utf-8"), source, page)
            target.write_text(re.sub(r"(?:(?<=\()index|/index)?\.md\)", "/)", text), encoding="utf-8")
        elif path.suffix == ".ipynb":
            target.write_text(_links(_notebook(path), source, page), encoding="utf-8")
            shutil.copyfile(path, target.with_name(path.name))  # to download
        elif path.suffix == ".md":
            head = HIDDEN if source.startswith(RESULTS) else ""
            target.write_text(head + _links(path.read_text(encoding="utf-8"), source, page), encoding="utf-8")
        else:
            shutil.copyfile(path, target)
    for page, text in command_pages().items():
        target = STAGE / "reference" / "cli" / page
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def _pages() -> dict[str, str]:
    """Return the page, by its path in the site, of each file, by its path in the repository."""
    pages = {name: page for name, page in COMMUNITY.items() if (ROOT / name).exists()}
    for path in (ROOT / "docs").rglob("*"):
        if path.is_file():
            pages[path.relative_to(ROOT).as_posix()] = path.relative_to(ROOT / "docs").as_posix()
    for path in (ROOT / RESULTS).iterdir():
        pages[path.relative_to(ROOT).as_posix()] = f"measured/results/{path.name}"
    for path in (ROOT / NOTEBOOKS).glob("*.ipynb"):
        pages[path.relative_to(ROOT).as_posix()] = f"notebooks/{path.stem}.md"
    pages["website/site.css"] = "stylesheets/site.css"
    pages["llms.txt"] = "llms.txt"
    return pages


def _notebook(path: Path) -> str:
    """Return a notebook as a page: its text, and its code in blocks."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    download = f'<a href="../{path.name}" download>Download this notebook</a>'
    return "\n\n".join([parts[0], download, *parts[1:]]) + "\n"


def _links(text: str, source: str, page: str) -> str:
    """Turn the links of one file into links between pages; code blocks stay as they are."""
    pages = _pages()

    def turn(match: re.Match[str]) -> str:
        address, _, anchor = match[2].partition("#")
        if not address or re.match(r"[a-z]+:", address):
            return match[0]
        file = os.path.normpath(PurePosixPath(source).parent / address)
        if file.startswith("docs/reference/cli/"):
            goal = file.removeprefix("docs/")
        elif file in pages:
            goal = pages[file]
        else:
            sys.exit(f"{source} links to {match[2]}, which is no page of the site: name the file without a link.")
        address = os.path.relpath(goal, PurePosixPath(page).parent)
        return f"{match[1]}{address}{'#' + anchor if anchor else ''}{match[3]}"

    parts = CODE.split(text)
    return "".join(part if part.startswith("```") else LINK.sub(turn, part) for part in parts)


if __name__ == "__main__":
    main()
