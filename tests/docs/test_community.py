"""Files around the code: versions agree, links work, forms and workflows are valid."""

from __future__ import annotations

import os
import re
import tomllib

import pytest
import yaml

import nextdetr
from tests.docs.blocks import PAGES, ROOT

LINK = re.compile(r"(?<=\]\()([^)\s#]+)")


def load(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["hatch"]["version"]["path"] == "src/nextdetr/__init__.py"
    assert load("CITATION.cff")["version"] == nextdetr.__version__
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_address_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    address = project["project"]["urls"]["Source"]
    assert load("CITATION.cff")["repository-code"] == address
    assert all(url.startswith(address) for url in project["project"]["urls"].values())
    hook = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    assert all(address.removeprefix("https://github.com/") in part["replacement"] for part in hook["substitutions"])


@pytest.mark.parametrize("path", [*PAGES, ROOT / "llms.txt"], ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    files = [link for link in LINK.findall(text) if not re.match(r"[a-z]+:", link)]
    made = "docs/reference/cli/"  # by the program, when the site is built
    missing = [
        link for link in files if not (path.parent / link).exists() and made not in os.path.normpath(path.parent / link)
    ]
    assert not missing


def test_issue_forms_have_what_a_forge_asks_for():
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 4
    for form in forms:
        content = load(form.relative_to(ROOT))
        if form.name == "config.yml":
            continue
        assert {"name", "description", "body"} <= content.keys()
        assert all(part["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes") for part in content["body"])
        assert all("label" in part["attributes"] for part in content["body"] if part["type"] != "markdown")


def test_the_release_publishes_by_identity_and_never_by_a_secret():
    text = (ROOT / ".github/workflows/release.yml").read_text()
    workflow = yaml.safe_load(text)
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads the key "on" as a truth value
    assert workflow["permissions"] == {}
    assert workflow["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in text


def test_actions_are_pinned_by_commit():
    for workflow in (ROOT / ".github/workflows").glob("*.yml"):
        used = re.findall(r"uses: (.*)", workflow.read_text(encoding="utf-8"))
        assert used
        assert not [action for action in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+.*", action)]


def test_llms_txt_begins_as_its_convention_asks():
    lines = (ROOT / "llms.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# NextDETR"
    assert lines[2].startswith("> ")


def test_the_chinese_readme_has_the_figures_and_commands_of_the_english_one():
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))

    def commands(text):
        return [
            line.split("#")[0].strip()
            for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
            for line in block.splitlines()
        ]

    def figures(text):
        rows = [line for line in text.splitlines() if line.startswith("|")]
        return [re.findall(r"\d+(?:\.\d+)?", row) for row in rows[2:]]

    assert commands(english) == commands(chinese)
    assert figures(english) == figures(chinese)
    assert len(re.findall("^## ", english, re.MULTILINE)) == len(re.findall("^## ", chinese, re.MULTILINE))


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.zh.md")), ids=lambda page: page.name)
def test_chinese_pages_have_the_commands_of_the_english_ones(page):
    english = page.with_name(page.name.replace(".zh.md", ".md"))

    def commands(path):
        found = re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
        return [line.split("  #")[0].rstrip() for block in found for line in block.splitlines()]

    assert commands(english) == commands(page)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.zh.md")), ids=lambda page: page.name)
def test_chinese_pages_have_the_sections_tables_and_names_of_the_english_ones(page):
    """Options, files and fields are written alike in both languages, so one that is missing in a translation shows."""
    english = page.with_name(page.name.replace(".zh.md", ".md"))

    def content(path):
        prose = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        return {
            "levels of headings": [len(marks) for marks in re.findall(r"^(#+) ", prose, re.MULTILINE)],
            "rows of tables": len(re.findall(r"^\|", prose, re.MULTILINE)),
            "names in code": sorted({" ".join(name.split()) for name in re.findall(r"`([^`]+)`", prose)}),
        }

    assert content(english) == content(page)
