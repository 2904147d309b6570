"""Trainings end with an empty page here: drawing the real one, which tests/report looks at, takes longer than they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _empty_report(monkeypatch):
    def write(target: Path, *arguments: Any, **options: Any) -> None:
        target.write_text("", encoding="utf-8")

    monkeypatch.setattr("nextdetr.engine.report.write_page", write)
