"""Record in an exported file in which runtimes it passed its gate, which is only known after opening it there."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from nextdetr.files import atomic_write
from nextdetr.inference.header import SECTION

__all__ = ["stamp_passed"]

ENTRY = "passed_runtimes"


def stamp_passed(path: Path, passed: Sequence[str]) -> None:
    """Write the names of the runtimes into an ONNX file or OpenVINO model atomically; programs cannot store them."""
    text = " ".join(passed)
    if path.suffix == ".onnx":
        import onnx

        model = onnx.load(str(path))
        entries = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, {**entries, ENTRY: text})
        with atomic_write(path) as temporary:
            onnx.save(model, str(temporary))
    elif path.suffix == ".xml":
        tree = ElementTree.parse(path)
        section = tree.getroot().find(f"./rt_info/{SECTION}")
        assert section is not None  # save_openvino wrote it
        entry = section.find(ENTRY)
        entry = ElementTree.SubElement(section, ENTRY) if entry is None else entry
        entry.set("value", text)
        with atomic_write(path) as temporary:
            tree.write(temporary, encoding="utf-8", xml_declaration=True)
