"""Folders of exports: exports with different options never share one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

from nextdetr.config import ExportConfig
from nextdetr.detector_files import detector_name, own_folder
from nextdetr.errors import ConfigError, ModelFileError
from nextdetr.inference.contract import Contract
from nextdetr.inference.header import read_metadata
from nextdetr.weights.remote import public_names

__all__ = ["NAMES", "REPORT", "export_folder", "float_beside"]

NAMES = {"onnx": "model.onnx", "openvino": "model.xml", "pt2": "model.pt2", "web": "model.onnx"}
REPORT = "report.json"

#: Metadata entries determined by options.
OPTIONS = (
    "source", "source_weights", "image_size", "queries", "decoder_layers", "input_type", "layout", "outputs", "dynamic",
    "portable", "precision", "winograd", "calibrated_on",
)  # fmt: skip


def export_folder(source: str, config: ExportConfig, contract: Contract, weights: str = "none") -> Path:
    """Return the folder of an export: a new one, or that of an export of the same detector with the same options.

    Args:
        source: source as given by the user.
        config: the settings; the name contains those that differ from the defaults.
        contract: contract of the graph.
        weights: as in ``ExportResult``.

    Raises:
        ConfigError: the folder given by the user holds a different export.
    """
    if config.output is not None:
        found = _difference(config.output, source, config, contract, weights)
        if found is not None:
            raise ConfigError(f"{config.output}: it holds a different export: {found}. Give --output another folder.")
        return config.output
    own = own_folder(source) if Path(source).is_file() else None
    # Elsewhere, the name of the file may say too little: in the Hub's cache all are called model.safetensors
    name = "_".join((detector_name(source) if own is None else Path(source).stem, *_tags(config)))
    parent = own or Path("runs") / "export"
    numbered = itertools.chain((name,), (f"{name}-{number}" for number in itertools.count(2)))
    places = (parent / free for free in numbered)
    return next(place for place in places if _difference(place, source, config, contract, weights) is None)


def float_beside(file: Path) -> Path | None:
    """Return the float32 export of the same detector, format and options in a folder beside an 8-bit file's, if any."""
    may_differ = ("precision", "winograd", "calibrated_on")
    terms, own = read_metadata(file), _exported_from(file.parent / REPORT)
    for other in sorted(file.parent.parent.glob(f"*/{file.name}")):
        try:
            found = read_metadata(other)
        except ModelFileError:
            continue
        names = [name for name in (*OPTIONS, "classes") if name not in may_differ]
        same = all(_stated(found, name) == _stated(terms, name) for name in names)
        pairs = zip(own, _exported_from(other.parent / REPORT), strict=True)  # "best.safetensors" is a file of every run
        same = same and all(a is None or b is None or Path(a).resolve() == Path(b).resolve() for a, b in pairs)
        if same and found.get("precision") == "float32":
            return other
    return None


def _tags(config: ExportConfig) -> list[str]:
    """Build the folder's name: the format, and each option that differs from the default."""
    said = {
        config.precision: config.precision != "float32", "dynamic": config.dynamic, "portable": config.portable,
        "raw": config.raw and not config.portable, f"{config.image_size}px": config.image_size is not None,
        f"{config.queries}queries": config.queries is not None,
        f"{config.decoder_layers}layers": config.decoder_layers is not None,
        config.input_type: config.input_type != "float32",
        config.layout: config.layout != "nchw", "direct": config.winograd is False and config.can_winograd,
    }  # fmt: skip
    return [config.format, *(tag for tag, unusual in said.items() if unusual)]


def _difference(folder: Path, source: str, config: ExportConfig, contract: Contract, weights: str) -> str | None:
    """Return how an export in ``folder`` differs, as part of a sentence; None if there is none, or it does not."""
    file = folder / NAMES[config.format]
    if not file.exists():
        return None
    try:
        old, new = read_metadata(file), contract.to_metadata()
    except ModelFileError:
        return f"{file.name} cannot be read"
    for name in OPTIONS:  # entries missing in files of earlier versions are not compared
        if name in old and _stated(old, name) != new.get(name, ""):
            return f"its {name} is {_stated(old, name)}, not {new.get(name, 'given')}"
    model, given = _exported_from(folder / REPORT)
    if model is not None and Path(model).resolve() != Path(source).resolve():
        return f"it was made from {model}"
    if given is not None and given != weights:  # the file itself has their names only
        return f"it was made from the weights {given}, not {weights}"
    return None


def _stated(metadata: Mapping[str, str], name: str) -> str | None:
    """Return a metadata entry; files of earlier versions have the whole paths of the weights."""
    value = metadata.get(name)
    return public_names(value) if name == "source_weights" and value is not None else value


def _exported_from(report: Path) -> tuple[str | None, str | None]:
    """Return the model of an export, and the weights that were given beside it; None for what the report does not say."""
    try:
        found = json.loads(report.read_text(encoding="utf-8"))
        model, weights = found["model"], found.get("weights")
    except (OSError, ValueError, LookupError, TypeError):
        return None, None
    return str(model), None if weights is None else str(weights)
