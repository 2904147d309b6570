"""This environment with no more than ``pip install nextdetr`` brings: ``python -m tests.light predict model.onnx …``.

Everything outside the dependencies of pyproject.toml, and of the extras in NEXTDETR_EXTRAS, is hidden: as good as not
installed for ``import`` and ``find_spec``, in processes that are started from here, too. ``-c CODE`` runs code.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import os
import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]


def _name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement).group()).lower()


def _brought(requirements: Iterable[str]) -> set[str]:
    """Names of all distributions that these bring, their own requirements included."""
    from packaging.requirements import Requirement

    known: set[tuple[str, str]] = set()
    waiting = [(text, "") for text in requirements]
    while waiting:
        text, extra = waiting.pop()
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in ("", *requirement.extras):
            key = (_name(requirement.name), wanted)
            if key not in known:
                known.add(key)
                try:
                    waiting += [(more, wanted) for more in importlib.metadata.requires(requirement.name) or ()]
                except importlib.metadata.PackageNotFoundError:
                    continue  # of another system
    return {name for name, _ in known}


def hidden() -> set[str]:
    """Top-level names of modules that the light installation does not have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = os.environ.get("NEXTDETR_EXTRAS", "").split()
    wanted = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    there = {"nextdetr", *_brought(wanted)}
    owners = importlib.metadata.packages_distributions()
    return {module for module, names in owners.items() if not there & {_name(name) for name in names}}


class LightFinder:
    """Finds what is left."""

    gone = hidden()

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if path is None and fullname in cls.gone:
            return None
        return importlib.machinery.PathFinder.find_spec(fullname, path, target)

    @classmethod
    def invalidate_caches(cls):
        importlib.machinery.PathFinder.invalidate_caches()

    find_distributions = importlib.machinery.PathFinder.find_distributions


sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = LightFinder
for loaded in [name for name in sys.modules if name.partition(".")[0] in LightFinder.gone]:
    del sys.modules[loaded]

if __name__ == "__main__":
    if sys.argv[1] == "-c":
        exec(sys.argv[2])
    else:
        from nextdetr.cli.main import main

        main(sys.argv[1:])
