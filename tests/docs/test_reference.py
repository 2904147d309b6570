"""The Python reference has what the public names return."""

from __future__ import annotations

import ast
import importlib
import inspect
import re

import nextdetr
from nextdetr.inference import objects
from nextdetr.inference.prediction import Prediction
from tests.docs.blocks import ROOT

PAGE = (ROOT / "docs/reference/python.md").read_text(encoding="utf-8")
SHOWN = set(re.findall(r"^::: (\S+)", PAGE, re.MULTILINE))


def classes_of(module: str, annotation: str) -> set[str]:
    """Return our classes in an annotation of a module, also those that only type checkers import, by their full names."""
    source = importlib.import_module(module)
    homes = {
        name.asname or name.name: (node.module, name.name)
        for node in ast.walk(ast.parse(inspect.getsource(source)))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("nextdetr")
        for name in node.names
    }
    names = set(re.findall(r"\w+", annotation))
    found = [getattr(source, name, None) for name in names - homes.keys()]
    found += [getattr(importlib.import_module(homes[name][0]), homes[name][1]) for name in names & homes.keys()]
    return {
        f"{each.__module__}.{each.__name__}" for each in found if inspect.isclass(each) and "nextdetr" in each.__module__
    }


def test_what_is_shown_exists():
    for full in SHOWN - {"nextdetr.errors"}:
        module, _, name = full.rpartition(".")
        assert hasattr(importlib.import_module(module), name), full


def test_all_that_is_returned_is_shown():
    public = [getattr(nextdetr, name) for name in nextdetr.__all__ if name != "__version__"]
    functions = [value for value in public if inspect.isfunction(value)]
    functions += [value for name, value in inspect.getmembers(nextdetr.Detector) if name[0] != "_" and callable(value)]
    returned = [(function.__module__, str(inspect.signature(function).return_annotation)) for function in functions]
    assert not {full for module, text in returned for full in classes_of(module, text)} - SHOWN


def test_what_a_streamed_result_holds_is_shown():
    assert Prediction.__annotations__["found"] == "Found"
    found = classes_of(objects.__name__, objects.Found)
    assert found == {"nextdetr.inference.objects.Objects"}
    assert not found - SHOWN
