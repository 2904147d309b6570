"""The help: groups, the few common options of a long command, defaults as they are, and what ``nextdetr`` alone shows."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

import nextdetr
from nextdetr.cli.commands import SUMMARIES, app
from nextdetr.cli.help import default_text, label, option_name
from nextdetr.cli.main import run
from nextdetr.cli.options import COMMON, ELSEWHERE, GROUPS, grouped
from nextdetr.cli.welcome import welcome
from nextdetr.config import TrainConfig
from nextdetr.installation import install_command


def options(command):
    """Return the names of a command's options as the tables have them."""
    arguments = app[command].assemble_argument_collection(parse_docstring=False)
    return {option_name([argument.names[0]]) for argument in arguments if argument.show and argument.index is None}


COMMANDS = [name for name in SUMMARIES if name not in ("weights", "analyze")]


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def shown(capsys, *arguments):
    assert run(list(arguments)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_option_is_in_a_group(command):
    known = {name for names in GROUPS.values() for name in names.split()}
    known |= {argument.names[0].lstrip("-") for argument in app[command].assemble_argument_collection()
              if argument.index is not None or not argument.names[0].startswith("--")}  # fmt: skip
    assert not options(command) - known


@pytest.mark.parametrize("command", ["attention"])
def test_the_options_of_a_command_of_analyze_are_in_groups(command, narrow, capsys):
    text = shown(capsys, "analyze", command, "--help")
    assert not re.search(r"^ *MODEL:", text, re.M)
    assert re.findall(r"^  --\S+", text.partition("General\n")[2], re.M) == ["  --json", "  --verbose"]


def test_no_option_is_in_two_groups():
    names = [name for group in GROUPS.values() for name in group.split()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("command", COMMON)
def test_common_options_exist(command):
    assert not set(COMMON[command].split()) - options(command)


def test_options_elsewhere_exist():
    assert not {(command, name) for command, names in ELSEWHERE.items() for name in names if name not in options(command)}


def test_groups_keep_their_order_and_an_unknown_option_is_general():
    assert grouped("train", ["json", "new", "epochs", "data", "batch_size"]) == [
        ("Data", ["data"]), ("Length", ["epochs"]), ("Optimisation", ["batch_size"]), ("General", ["json", "new"]),
    ]  # fmt: skip
    assert grouped("val", ["batch_size"]) == [("Machine", ["batch_size"])]


def test_the_help_of_a_long_command_fits_a_screen(narrow, capsys):
    text = shown(capsys, "train", "--help")
    assert len(text.rstrip().splitlines()) <= 30
    titles = [line for line in text.splitlines() if line in GROUPS]
    assert titles == ["Data", "Model", "Length", "Optimisation", "Augmentation", "Machine", "Output"]
    assert "--layer-decay" not in text
    count = re.search(r"(\d+) more options: nextdetr train --help-all", text)
    assert int(count[1]) == len(options("train")) - len(COMMON["train"].split())


@pytest.mark.parametrize("command", SUMMARIES)
def test_the_help_of_each_command_is_short(command, narrow, capsys):
    text = shown(capsys, command, "--help")
    assert len(text.rstrip().splitlines()) <= 40
    assert text.startswith(f"Usage: nextdetr {command} ")


def test_choices_of_an_argument_are_shown(narrow, capsys):
    assert "[one of bash, zsh, fish]" in shown(capsys, "completion", "--help")


def test_help_all_shows_every_option(narrow, capsys):
    text = shown(capsys, "train", "--help-all")
    listed = {option_name([name.replace("[no-]", "")]) for name in re.findall(r"^  (--\S+)", text, re.MULTILINE)}
    assert listed == options("train")
    assert "more options" not in text
    assert "more options" in shown(capsys, "train", "--help")  # the next one is short again


def test_defaults_are_shown_as_they_are(narrow, capsys):
    text = " ".join(shown(capsys, "train", "--help-all").split())
    assert "--batch-size N Images per step and process. [chosen from the data]" in text
    assert "--[no-]multi-scale" in text
    assert not re.search(r"default: (None|False|True|\(\))", text)


@pytest.mark.parametrize(
    ("default", "text"),
    [
        (None, ""),
        ("False", ""),
        ("True", "on"),
        ("()", ""),
        ("('images', 'json')", "images json"),
        ("(2,)", "2"),
        ("8", "8"),
    ],
)
def test_a_default_is_written_as_people_write_it(default, text):
    assert default_text(default) == text


def test_labels():
    assert label(["--report", "--no-report"], None, None, on=True) == ("--[no-]report", "")
    assert label(["--report", "--no-report"], None, None) == ("--report", "")
    assert label(["--json"], None, None, on=True) == ("--json", "")
    assert label(["--on-bad-data"], "CHOICE", ["warn", "error"]) == ("--on-bad-data warn|error", "")
    assert label(["--format"], "CHOICE", ["a" * 20, "b"]) == ("--format CHOICE", f"one of {'a' * 20}, b")
    assert label(["--unlabelled", "--empty-unlabelled"], "STR...", None) == ("--unlabelled FOLDER...", "")
    assert label(["--images"], "INT", None) == ("--images N", "")


RECIPES = ("recipe.py", "recipe_length.py", "semi_recipe.py")


def test_what_the_recipe_chooses_is_what_the_help_says():
    engine = Path(nextdetr.__file__).parent / "engine"
    trees = [ast.parse((engine / name).read_text(encoding="utf-8")) for name in RECIPES]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    chosen = {
        word.arg for call in calls for word in call.keywords
        if (getattr(call.func, "attr", None) or getattr(call.func, "id", None)) == "choose"
    }  # fmt: skip
    assert chosen - {None} == TrainConfig.chosen | {"minutes"}  # in place of epochs, on a slow processor


def test_the_list_of_commands_begins_with_the_way(narrow, capsys):
    text = shown(capsys, "--help")
    assert [name for name in re.findall(r"^  ([a-z-]+) ", text, re.MULTILINE) if name[0] != "-"] == list(SUMMARIES)
    assert len(text.splitlines()) < 45


def test_nextdetr_alone_shows_what_to_do_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nextdetr.cli.welcome.is_installed", lambda name: True)
    text = shown(capsys)
    ways = re.findall(r"^  nextdetr (\w+)", text, re.MULTILINE)
    assert ways == ["pretrain", "train", "val", "predict", "export", "serve"]
    assert "Next: nextdetr quickstart" in text
    assert json.loads(shown(capsys, "--json"))["text"] == text.rstrip("\n")


def test_after_a_training_predicting_is_next(tmp_path, monkeypatch):
    trained = tmp_path / "my run" / "best.safetensors"
    trained.parent.mkdir()
    trained.touch()
    assert f"Next: nextdetr predict '{trained}' IMAGES" in welcome(tmp_path)
    monkeypatch.setattr("nextdetr.cli.welcome.is_installed", lambda name: False)
    assert install_command("train") in welcome(tmp_path / "none")


def test_a_log_file_has_no_escape_codes(capsys):
    assert "\x1b" not in shown(capsys, "train", "--help-all")
