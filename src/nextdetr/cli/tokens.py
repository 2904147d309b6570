"""The words of a command line, before Cyclopts reads them: what other tools write is understood or answered here.

- an option of another tool becomes ours, or is answered in a sentence (``other_tools.py``);
- ``imgsz=640`` is answered with the command line as it is written here;
- a list of known values ends where they end: ``--save images json PICTURE`` leaves the picture alone;
- ``--line -10,20,30,40`` is a value, no option.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from nextdetr.cli.other_tools import find, suggested_command
from nextdetr.errors import ConfigError
from nextdetr.installation import to_paste

__all__ = ["prepare"]

_NUMBERS = re.compile(r"-?[\d.]+(,-?[\d.]+)+")
_STDIN = "-"
_PAIR = re.compile(r"([A-Za-z][A-Za-z0-9_]*)=(.+)", re.DOTALL)
_TASKS = ("detect", "segment", "classify", "pose", "obb")  # yolo TASK MODE
_SOURCES = ("predict", "embed")  # take images after the model


def prepare(tokens: Sequence[str]) -> list[str]:
    """Return the words of a command line as Cyclopts is to read them.

    Raises:
        ConfigError: a word of another tool means something else here, or there is no such command.
    """
    from nextdetr.cli.commands import SUMMARIES

    end = next((place for place, token in enumerate(tokens) if token == "--"), len(tokens))
    words, rest = list(tokens[:end]), list(tokens[end:])
    first = next((place for place, word in enumerate(words) if word not in ("--json", "--verbose")), 0)
    words = words[first:] + words[:first]  # ``nextdetr --json train``: of every command, and so often written first
    if not words or words[0].startswith("-"):
        return list(tokens)
    _pairs(words)
    if words[0] not in SUMMARIES:
        hint = suggested_command(words[0], list(SUMMARIES))
        raise ConfigError(f"there is no command {words[0]!r}: {hint or 'nextdetr --help lists them.'}")
    words = _lists(_source(_options(words)))
    ends = [place + 1 for place, word in enumerate(words) if word == "--data" and words[0] == "train"]
    if any(not _following(words, end) for end in ends):  # Cyclopts takes no value for an empty list
        raise ConfigError(f'Command "{words[0]}" parameter --data requires an argument. See nextdetr {words[0]} --help.')
    return [_value(word) for word in words] + rest


def _value(token: str) -> str:
    """Return an argument as it is, but numbers in a row and standard input so that they are no option."""
    return f" {token}" if token == _STDIN or (token[:1] == "-" and _NUMBERS.fullmatch(token)) else token


@cache
def _known(command: str) -> dict[str, Any]:
    """Return the type of each option of a command, by its names."""
    from nextdetr.cli.commands import app

    try:
        arguments = app[command].assemble_argument_collection(parse_docstring=False)
    except ValueError:  # a command with commands of its own
        return {}
    return {name: argument.hint for argument in arguments for name in argument.names if name.startswith("--")}


def _options(words: list[str]) -> list[str]:
    """Put our options in the place of other tools'."""
    command, found = words[0], words[:1]
    for word in words[1:]:
        name, equals, value = word.partition("=")
        other = find(name[2:], command) if word.startswith("--") else None
        known = _known(command) if other is not None else {}
        if other is None or name.replace("_", "-") in known:
            found.append(word)
        elif other.ours:
            found.append(f"--{other.ours}{equals}{value}" if f"--{other.ours}" in known else word)
        else:
            raise ConfigError(f"{name}: {other.answer}. See nextdetr {command} --help.")
    return found


def _source(words: list[str]) -> list[str]:
    """Move the images after ``--source``, and a model that is given as ``--model`` or ``--weights``, to their places."""
    if words[0] not in _SOURCES:
        return words
    left = list(words)
    images, model = _taken(left, "--source", several=True), _taken(left, "--model")
    if images and not model and (len(left) < 2 or left[1].startswith("-")):
        model = _taken(left, "--weights")  # as YOLOv5 calls it
        if not model:
            raise ConfigError(f"the model comes first: nextdetr {words[0]} MODEL {to_paste(images)}.")
    if not images and not model:
        return words
    return [words[0], *(model or left[1:2]), *images, *left[1 if model else 2 :]]


def _taken(words: list[str], option: str, *, several: bool = False) -> list[str]:
    """Take an option out of the words and return its value or values; empty where it is not there."""
    for place, word in enumerate(words):
        if word.startswith(f"{option}="):
            del words[place]
            return [word.partition("=")[2]]
        if word == option:
            values = _following(words, place + 1)[: None if several else 1]
            if values:
                del words[place : place + 1 + len(values)]
            return values
    return []


def _lists(words: list[str]) -> list[str]:
    """Move what a list of values cannot take to before the options, where files are given."""
    found: list[str] = []
    moved: list[str] = []
    place = 0
    while place < len(words):
        word, place = words[place], place + 1
        found.append(word)
        values = _following(words, place)
        if not word.startswith("--") or "=" in word or len(values) < 2:
            continue
        kept = _kept(word, values, _known(words[0]).get(word.replace("_", "-")))
        moved += values[kept:]
        found += values[:kept]
        place += len(values)
    first = next((at for at, word in enumerate(found) if word.startswith("--")), len(found))
    return found[:first] + moved + found[first:]


def _following(words: Sequence[str], start: int) -> list[str]:
    """Return the words from a place to the next option."""
    end = next(
        (at for at in range(start, len(words)) if words[at].startswith("-") and _value(words[at]) == words[at]),
        len(words),
    )
    return list(words[start:end])


def _kept(option: str, values: Sequence[str], hint: Any) -> int:
    """Return how many of the words after an option are values of it; all of them where that cannot be seen."""
    item = _item(hint)
    if item is None:
        return len(values)
    if get_origin(item) is Literal:
        known = get_args(item)
        fits = [all(part.strip() in known for part in value.split(",")) or _is_typo(value, known) for value in values]
    elif item in (int, float):
        fits = [re.fullmatch(r"[\d.,-]+", value) is not None for value in values]
    elif _NUMBERS.fullmatch(values[0]):
        fits = [_NUMBERS.fullmatch(value) is not None for value in values]
    elif option == "--classes":
        fits = [not _is_file(value) for value in values]
    else:
        return len(values)
    return next((at for at in range(1, len(values)) if not fits[at]), len(values))


def _item(hint: Any) -> Any:
    """Return the type of an element of a tuple or list; None for what is neither."""
    if get_origin(hint) in (tuple, list):
        item = get_args(hint)[0]
        return _bare(item)
    return next((found for part in get_args(hint) if (found := _item(part)) is not None), None)


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if hasattr(hint, "__metadata__") else hint


def _is_typo(value: str, known: Sequence[str]) -> bool:
    import difflib

    return bool(difflib.get_close_matches(value, known, n=1, cutoff=0.7)) and not Path(value).exists()


def _is_file(value: str) -> bool:
    """Whether a word is a file, a pattern or an address, and not a class's name."""
    return "*" in value or "://" in value or (("/" in value or "." in value) and Path(value).exists())


def _pairs(words: Sequence[str]) -> None:
    """Answer ``TASK MODE name=value …`` with the command line as it is written here.

    Raises:
        ConfigError: there is such a pair.
    """
    from nextdetr.cli.commands import SUMMARIES

    start = 1 if words[0] in _TASKS and len(words) > 1 and words[1] in SUMMARIES else 0
    command = words[start]
    if command not in SUMMARIES or command in ("serve", "weights", "analyze"):  # serve takes NAME=FILE
        return
    pairs = [(word, match[1], match[2]) for word in words[start + 1 :] if (match := _PAIR.fullmatch(word))]
    known = _known(command) if pairs else {}
    pairs = [
        (word, name, value) for word, name, value in pairs
        if not Path(word).exists() and (
            f"--{_option(name)}" in known or name in ("source", "mode", "task") or find(name, command) is not None
        )
    ]  # fmt: skip
    if not pairs and not start:
        return
    said = {word for word, _, _ in pairs}
    rest = [word for word in words[start + 1 :] if word not in said]
    line, answers = _line(command, [(name, value) for _, name, value in pairs], rest)
    reasons = "".join(f" {answer}." for answer in answers)
    raise ConfigError(f"options are written as --name value: {line}.{reasons}")


def _line(command: str, pairs: Sequence[tuple[str, str]], rest: Sequence[str]) -> tuple[str, list[str]]:
    """Return a command line for pairs of another tool, and answers to those that mean something else here."""
    known = _known(command)
    places: list[str] = []
    options: list[str] = []
    answers: list[str] = []
    for name, value in pairs:
        other = find(name, command)
        own = f"--{_option(name)}"
        if name in ("mode", "task"):
            continue
        if name == "source" or (
            own == "--model" and command in ("predict", "val", "export", "benchmark", "embed", "report")
        ):
            places.insert(0 if own == "--model" else len(places), value)
        elif own not in known and other is not None and not other.ours:
            answers.append(f"{name}: {other.answer}")
        else:
            option = own if own in known or other is None else f"--{other.ours}"
            options += _switch(option, value, known.get(option))
    return to_paste(["nextdetr", command, *places, *rest, *options]), answers


def _switch(option: str, value: str, hint: Any) -> list[str]:
    """Return an option with its value; a switch has none."""
    if hint is bool or bool in get_args(hint):
        return [option if value.lower() in ("true", "1", "yes") else f"--no-{option[2:]}"]
    return [option, value]


def _option(name: str) -> str:
    return name.replace("_", "-")
