from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

SHARED = Path(os.environ.get("NEXTDETR_SHARED", Path(__file__).parents[2] / "shared"))


def pytest_collection_modifyitems(items):
    """Real-data tests skip, with the reason, where the photographs are absent; in CI that is a failure instead."""
    if (SHARED / "data").is_dir() or os.environ.get("CI"):
        return
    skip = pytest.mark.skip(reason=f"the photographs are not in {SHARED / 'data'}")
    for item in items:
        if item.get_closest_marker("shared_data"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    return SHARED / "data"


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    return SHARED / "reference"


def pytest_fixture_setup(fixturedef):
    """Fixtures shared by several tests start from the same seed, too, whichever test comes first."""
    if fixturedef.scope != "function":
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def browser():
    """Chromium; playwright is imported only by tests that use it."""
    from tests.browser import chromium

    with chromium() as browser:
        yield browser
