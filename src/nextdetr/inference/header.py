"""The metadata of an exported file, read without its runtime and without torch, for ``info`` and before it is opened."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from nextdetr.confidence import confidence_facts, confidence_lines
from nextdetr.errors import ModelFileError
from nextdetr.inference.contract import UNJUDGED, Contract
from nextdetr.weights.folder import EXPORT_FILES, is_export

__all__ = [
    "PROGRAM_METADATA",
    "SECTION",
    "exported_file",
    "is_exported",
    "read_metadata",
    "summarize_export",
    "summary_lines",
]

#: What a folder of a run, or of a saved detector, holds; an export beside it is meant where it is named.
CHECKPOINTS = ("best.safetensors", "last.safetensors", "model.safetensors")
FORMATS = {".onnx": "onnx", ".xml": "openvino", ".pt2": "pt2"}
SECTION = "nextdetr"  # of an OpenVINO model's rt_info
PROGRAM_METADATA = "nextdetr.json"  # a .pt2 file's extra file
LARGEST = 1 << 26  # bytes of metadata that are read
_GRAPH, _ENTRIES = 7, 14  # fields of ONNX's ModelProto


def is_exported(source: str | Path) -> bool:
    """Whether a name is that of an exported file, or of a folder that holds one and no checkpoint beside it."""
    path = Path(source)
    if any((path / name).is_file() for name in CHECKPOINTS):
        return False
    return path.suffix in FORMATS or (path.is_dir() and is_export(path))


def exported_file(source: str | Path) -> Path:
    """Return the exported file that is meant: ``source``, or what the folder of that name holds.

    Raises:
        ModelFileError: the folder holds none.
    """
    path = Path(source)
    if not path.is_dir():
        return path
    present = [path / name for name in EXPORT_FILES if (path / name).is_file()]
    if not present:
        raise ModelFileError(f"{path}: the folder holds no exported detector ({' or '.join(EXPORT_FILES)}).")
    return present[0]


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of an exported file by name; empty where it has none.

    Raises:
        ModelFileError: there is no such file, or it is damaged.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: there is no such exported file.")
    try:
        if path.suffix == ".onnx":
            return dict(_onnx_entries(path))
        if path.suffix == ".xml":
            section = ElementTree.parse(path).getroot().find(f"./rt_info/{SECTION}")
            return {} if section is None else {entry.tag: entry.get("value", "") for entry in section}
        return _program_metadata(path)
    except (ValueError, ElementTree.ParseError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"{path}: cannot open it as an exported file ({error}); is the file complete?") from error


def _program_metadata(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        found = [entry for entry in archive.infolist() if entry.filename.endswith(f"/{PROGRAM_METADATA}")]
        if not found or found[0].file_size > LARGEST:
            return {}
        content = json.loads(archive.read(found[0]))
    if not isinstance(content, dict):
        raise ValueError(f"{PROGRAM_METADATA} is not a table")
    return {str(name): str(value) for name, value in content.items()}


def _onnx_entries(path: Path) -> Iterator[tuple[str, str]]:
    """Names and values of ``metadata_props``; the graph, a field of the same message, is skipped unread."""
    end = path.stat().st_size
    with path.open("rb") as file:
        graph = False
        for field, length in _fields(file, end):
            graph = graph or field == _GRAPH
            if field != _ENTRIES:
                continue
            if length > LARGEST:
                raise ValueError("its metadata is too large")
            entry, stop = {1: "", 2: ""}, file.tell() + length
            for part, size in _fields(file, stop):
                entry[part] = file.read(size).decode()
            yield entry[1], entry[2]
        if not graph:
            raise ValueError("it holds no ONNX graph")


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
    """Number and length of each field of a protobuf message that has a length; the file stands at its content then."""
    while (place := file.tell()) < end:
        key = _varint(file)
        kind, number = key & 7, key >> 3
        if kind == 0:
            _varint(file)
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"no protobuf field at byte {place:,}")
        length = _varint(file) if kind == 2 else 8 if kind == 1 else 4
        start = file.tell()
        if start + length > end:
            raise ValueError(f"a field of {length:,} bytes at byte {place:,} ends behind the file")
        if kind == 2:
            yield number, length
        file.seek(start + length)


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it ends in the middle of a number")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("a number in it has no end")


def summarize_export(source: str | Path) -> dict[str, Any]:
    """Say what an exported file is, takes and gives, and where it comes from, without opening it in a runtime.

    Args:
        source: ``*.onnx``, ``*.xml``, ``*.pt2``, or a folder with one of the first two.

    Raises:
        ModelFileError: the file is missing or damaged, or NextDETR did not export it.
    """
    path = exported_file(source)
    metadata = read_metadata(path)
    contract = Contract.from_metadata(metadata, str(source))
    texts = contract.describe()
    weights = path.with_suffix(".bin")
    size = path.stat().st_size + (weights.stat().st_size if path.suffix == ".xml" and weights.is_file() else 0)
    return {
        "kind": "export", "format": FORMATS[path.suffix], "bytes": size,
        "producer": f"nextdetr {metadata.get('nextdetr_version', '(unknown version)')}",
        "classes": contract.classes, "image_size": contract.image_size, "queries": contract.queries,
        "precision": contract.precision, "dynamic": contract.dynamic,
        "inputs": {name: texts[name] for name in contract.input_names},
        "outputs": {name: texts[name] for name in contract.output_names},
        "passed_runtimes": None if contract.passed_runtimes is None else list(contract.passed_runtimes),
        "source": metadata.get("source", "unknown"), "weights_licence": metadata.get("weights_licence", "unknown"),
        "source_weights": metadata.get("source_weights", "unknown"),
        "thresholds": None,
        **confidence_facts(metadata, contract.classes),
    }  # fmt: skip


def summary_lines(found: dict[str, Any]) -> list[str]:
    """Return what ``summarize_export`` found as lines for the terminal."""
    classes, passed = found["classes"], found["passed_runtimes"]
    named = ", ".join(classes[:20]) + (", …" if len(classes) > 20 else "")
    judged = "not said" if passed is None else ", ".join(passed) or "none: its gate was not met"
    if passed == [UNJUDGED]:
        judged = "not judged, as its export was broken off: export it again"
    ports = {**{f"input {name}": text for name, text in found["inputs"].items()},
             **{f"output {name}": text for name, text in found["outputs"].items()}}  # fmt: skip
    return [
        f"an export to {found['format']} by {found['producer']} of {found['source']}, {found['precision']}, "
        f"{found['bytes'] / 1e6:.1f} MB",
        f"  classes: {len(classes)} ({named})",
        f"  image size {found['image_size']}{' (others too)' if found['dynamic'] else ''}, {found['queries']} queries",
        *(f"  {name}: {text}" for name, text in ports.items()),
        f"  passed its gate in: {judged}",
        f"  licence of the weights: {found['weights_licence']}; started from: {found['source_weights']}",
        *(f"  {line}" for line in confidence_lines(found)),
    ]
