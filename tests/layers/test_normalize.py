"""ImageNet's mean and standard deviation are defined in one place."""

from __future__ import annotations

from pathlib import Path

import nextdetr
from nextdetr.layers.normalize import imagenet_statistics


def test_published_values():
    mean, std = imagenet_statistics()
    assert mean.flatten().tolist() == [0.48500001430511475, 0.4560000002384186, 0.4059999883174896]
    assert std.flatten().tolist() == [0.2290000021457672, 0.2240000069141388, 0.22499999403953552]


def test_they_are_written_once():
    source = Path(nextdetr.__file__).parent
    found = [path.relative_to(source).as_posix() for path in source.rglob("*.py") if "0.485" in path.read_text("utf-8")]
    assert found == ["layers/normalize.py"]
