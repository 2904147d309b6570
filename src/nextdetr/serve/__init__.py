"""The server: detectors over HTTP, with batching across requests, and a page to try them; no torch of its own."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nextdetr.serve.app import create_app
    from nextdetr.serve.run import Running, serve, start

__all__ = ["Running", "create_app", "serve", "start"]

_HOMES = {"create_app": "nextdetr.serve.app"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'nextdetr.serve' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "nextdetr.serve.run")), name)
