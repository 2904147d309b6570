"""Parse model files: YAML text to plain values with line numbers; nothing is evaluated.

The dialect is that of users' RT-DETR files: ``nc``, ``scales``, rows ``[from, repeats, name, arguments]``.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from nextdetr.errors import ModelFileError

__all__ = ["ModelFile", "Row", "available_models", "load_model_file", "parse_model_text", "shipped_name"]

KEYS = ("nc", "scales", "scale", "backbone", "head", "normalize", "batch_norm_eps", "image_size", "licence")
PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map")}
LARGEST = 1 << 16  # characters; a model file has a few thousand, and parsing takes time


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the file.

    Attributes:
        number: position among all rows, from 0, starting with the backbone's.
        line: line of the file, from 1.
        sources: indices of the input maps; negative ones count backwards.
        repeats: number of repeats of the layer.
        name: name of the layer.
        arguments: plain values.
    """

    number: int
    line: int
    sources: tuple[int, ...]
    repeats: int
    name: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A parsed model file.

    Attributes:
        text: the YAML.
        source: origin, for messages and relative paths.
        mapping: its top-level values.
        rows: its rows, backbone before head.
    """

    text: str
    source: str
    mapping: Mapping[str, Any]
    rows: tuple[Row, ...]

    def error(self, message: str, row: Row | None = None) -> ModelFileError:
        """Return an error with file, row and line."""
        where = "" if row is None else f", row {row.number} ({row.name}, line {row.line})"
        return ModelFileError(f"{self.source}{where}: {message}")


def available_models() -> list[str]:
    """Return the names of the shipped model files."""
    folder = resources.files("nextdetr") / "configs"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def shipped_name(text: str) -> str | None:
    """Return the shipped model whose file has this text, or None."""
    folder = resources.files("nextdetr") / "configs"
    for name in available_models():
        if (folder / f"{name}.yaml").read_text(encoding="utf-8") == text:
            return name
    return None


def load_model_file(name_or_path: str | Path | ModelFile) -> ModelFile:
    """Read a shipped model by its name, or a model file by its path.

    Raises:
        ModelFileError: there is neither; the message has the closest shipped name.
    """
    if isinstance(name_or_path, ModelFile):
        return name_or_path
    name = str(name_or_path)
    shipped = available_models()
    if name in shipped:
        text = (resources.files("nextdetr") / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
        return parse_model_text(text, f"{name}.yaml")
    path = Path(name)
    if not _is_file(path):
        if path.name != name and "\0" not in name:  # a path: the list of names would hide the reason
            raise ModelFileError(
                f"{name}: there is no such file or folder; give the folder of a run, a checkpoint (*.safetensors), a model "
                "YAML, or a shipped name such as nextdetr-atto."
            )
        close = difflib.get_close_matches(path.stem, shipped, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ModelFileError(
            f"{name}: neither a file nor a shipped model{hint}; shipped are {', '.join(shipped)}; "
            "a checkpoint ends in .safetensors."
        )
    try:
        if path.stat().st_size > 4 * LARGEST:  # a character has at most four bytes
            raise ModelFileError(f"{name}: {path.stat().st_size:,} bytes are too many for a model file.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{name}: the file cannot be read as text ({error}).") from error
    return parse_model_text(text, name, trained=False)


def _is_file(path: Path) -> bool:
    """Path.is_file, but False for impossible names (too long, for example)."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def parse_model_text(text: str, source: str, *, trained: bool = True) -> ModelFile:
    """Parse the text of a model file.

    Args:
        text: YAML.
        source: origin, for messages.
        trained: whether weights come with it, in which case a useless ``scale`` has done no harm.

    Raises:
        ModelFileError: not YAML, tags or anchors in it, not a mapping, unknown or repeated keys, a ``scale`` without
            ``scales``, or malformed rows.
    """
    if len(text) > LARGEST:
        raise ModelFileError(f"{source}: {len(text):,} characters are too many for a model file.")
    root = _compose(text, source)
    if not isinstance(root, yaml.MappingNode):
        raise ModelFileError(f"{source}: a model file is a mapping with the keys backbone and head, not {_kind(root)}.")
    mapping = _value(root, source)
    for key, (key_node, _) in zip(mapping, root.value, strict=True):
        if key not in KEYS:
            close = difflib.get_close_matches(str(key), KEYS, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(KEYS)}."
            raise ModelFileError(f"{source}, line {_line(key_node)}: there is no key {key!r}; {hint}")
        if key == "scale" and mapping.get("scales") is None and not trained:
            raise ModelFileError(
                f"{source}, line {_line(key_node)}: scale chooses one of scales, which the file does not have: add "
                f"scales: {{{mapping[key]}: [depth, width, max_channels]}}, or take scale out."
            )
    rows: list[Row] = []
    sections = {key.value: node for key, node in root.value}
    for section in ("backbone", "head"):
        node = sections.get(section)
        if not isinstance(node, yaml.SequenceNode):
            raise ModelFileError(f"{source}: the section {section} is missing or is not a list of rows.")
        rows += [_row(item, len(rows) + number, source) for number, item in enumerate(node.value)]
    if not rows:
        raise ModelFileError(f"{source}: there are no rows.")
    return ModelFile(text, source, mapping, tuple(rows))


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = _line(event)
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise ModelFileError(
                    f"{source}, line {line}: anchors and aliases (& and *) are not allowed in a model file."
                )
            tag = getattr(event, "tag", None)
            if tag:
                raise ModelFileError(f"{source}, line {line}: tags ({tag}) are not allowed in a model file.")
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        problem = getattr(error, "problem", None) or str(error)
        raise ModelFileError(f"{source}{where}: not valid YAML ({' '.join(str(problem).split())}).") from error
    except RecursionError as error:
        raise ModelFileError(f"{source}: nested too deeply for a model file.") from error


def _kind(node: yaml.Node | None) -> str:
    if node is None:
        return "empty"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"


def _line(part: yaml.Event | yaml.Node) -> int:
    """Line number in the file, from 1."""
    return 1 if part.start_mark is None else part.start_mark.line + 1


def _value(node: yaml.Node, source: str) -> Any:
    """Convert a node to plain values; other scalars (such as dates) are refused."""
    line = _line(node)
    if node.tag not in PLAIN_TAGS:
        raise ModelFileError(f"{source}, line {line}: {node.value!r} is neither text nor a number; put it in quotes.")
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, source) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        result: dict[Any, Any] = {}
        for key_node, item in node.value:
            key = _value(key_node, source)
            if isinstance(key, (list, dict)) or key in result:
                line = _line(key_node)
                raise ModelFileError(f"{source}, line {line}: the key {key!r} is repeated or is not a name.")
            result[key] = _value(item, source)
        return result
    constructor = yaml.SafeLoader("")
    try:
        return constructor.construct_object(node)
    except ValueError as error:  # 0b_ looks like a number; so do 5,000 digits
        raise ModelFileError(f"{source}, line {line}: {str(node.value)[:40]!r} cannot be read as a number.") from error
    finally:
        constructor.dispose()


def _row(node: yaml.Node, number: int, source: str) -> Row:
    line = _line(node)
    where = f"{source}, row {number} (line {line})"
    value = _value(node, source)
    if not isinstance(value, list) or len(value) != 4:
        raise ModelFileError(f"{where}: a row has four parts, [from, repeats, name, arguments]; this one is {value!r}.")
    origin, repeats, name, arguments = value
    origins = origin if isinstance(origin, list) else [origin]
    if not origins or not all(_is_int(item) for item in origins):
        raise ModelFileError(f"{where}: from must be a whole number or a list of them, not {origin!r}.")
    if not _is_int(repeats) or repeats < 1:
        raise ModelFileError(f"{where}: repeats must be a whole number of at least 1, not {repeats!r}.")
    if not isinstance(name, str):
        raise ModelFileError(f"{where}: the third part must be the name of a layer, not {name!r}.")
    if not isinstance(arguments, list):
        raise ModelFileError(f"{where}: the arguments must be a list, not {arguments!r}.")
    return Row(number, line, tuple(origins), repeats, name, tuple(_plain(item) for item in arguments))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """Replace the dialect's words for Python constants by these constants."""
    words = {"None": None, "True": True, "False": False}
    return words.get(value, value) if isinstance(value, str) else value
