"""Python blocks of the pages compile, import what exists, and use keywords that the functions know."""

from __future__ import annotations

import ast
import importlib
import inspect

import pytest

import nextdetr
from nextdetr import config
from nextdetr.config_serve import ServeConfig
from nextdetr.hub import upload_folder
from tests.docs.blocks import Block, blocks

# The settings that a method or function takes as keywords, beside its own parameters.
SETTINGS = {
    "train": config.TrainConfig, "val": config.ValConfig, "predict": config.PredictConfig, "export": config.ExportConfig,
    "report": config.ReportConfig, "calibrate": config.CalibrateConfig, "embed": config.EmbedConfig,
    "pretrain": config.PretrainConfig, "graft": config.GraftConfig, "serve": ServeConfig,
    "PredictConfig": config.PredictConfig, "stream": config.PredictConfig, "track": config.PredictConfig,
}  # fmt: skip


def wrong_calls(tree: ast.AST) -> list[str]:
    """Return what is wrong with imports and calls of ours."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "nextdetr":
            module = importlib.import_module(node.module)
            found += [f"{node.module} has no {name.name}" for name in node.names if not hasattr(module, name.name)]
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            known = keywords(name)
            if known:
                found += [f"{name} has no {word.arg}" for word in node.keywords if word.arg and word.arg not in known]
    return found


def keywords(name: str) -> set[str]:
    """Return the keywords of a method of Detector, a public function or a class of settings; empty for what is not ours."""
    if name == "push_to_hub":
        return set(inspect.signature(upload_folder).parameters)
    known = set(SETTINGS[name].model_fields) if name in SETTINGS else set()
    home = (
        nextdetr.Detector if name == "Detector" else getattr(nextdetr.Detector, name, None) or nextdetr.__dict__.get(name)
    )
    if home is None and name in nextdetr.__all__:
        home = getattr(nextdetr, name)
    return known | (set(inspect.signature(home).parameters) if callable(home) else set())


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_of_pages(block: Block) -> None:
    assert not wrong_calls(ast.parse(block.text, block.page))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Detector('a').train(data='b', minute=3)", ["train has no minute"]),
        ("nextdetr.pretrain('photos', modle='x')", ["pretrain has no modle"]),  # codespell:ignore
        ("Detector(weigths='x')", ["Detector has no weigths"]),  # codespell:ignore
        ("from nextdetr import Detektor", ["nextdetr has no Detektor"]),
        ("Detector('a').train(data='b', minutes=3)", []),
    ],
)
def test_a_wrong_call_is_found(text: str, expected: list[str]) -> None:
    assert wrong_calls(ast.parse(text)) == expected
