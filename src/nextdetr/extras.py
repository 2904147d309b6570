"""Which packages are installed, and the contents of the extra ``train``, needed by everything that uses PyTorch."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from nextdetr.errors import ConfigError, missing_extra

__all__ = ["TRAIN", "explained", "is_installed", "require_train"]

#: Packages of the extra ``train``: import names, and names for pip.
TRAIN = {
    "torch": "torch", "torchvision": "torchvision", "lightning_fabric": "lightning-fabric", "safetensors": "safetensors",
    "huggingface_hub": "huggingface-hub",
}  # fmt: skip


def require_train(purpose: str, *, instead: str = "") -> None:
    """Refuse an operation that needs PyTorch if it is not installed, before anything is imported.

    Args:
        purpose: what the user wanted, as a noun phrase ("training a detector").
        instead: see ``missing_extra``.

    Raises:
        ConfigError: a package is missing; the message says how to install it.
    """
    missing = [package for module, package in TRAIN.items() if not is_installed(module)]
    if missing:
        raise missing_extra(missing[0], "train", purpose, instead=instead)


def explained(error: BaseException, purpose: str) -> ConfigError | None:
    """Return the error for an import that failed without the extra ``train``; None for other errors."""
    if not isinstance(error, ModuleNotFoundError):
        return None
    package = TRAIN.get((error.name or "").partition(".")[0])
    return None if package is None else missing_extra(package, "train", purpose)


def is_installed(module: str) -> bool:
    """Whether a package can be imported, by its module's name; a mere folder, as left by W&B, does not count."""
    try:
        found = find_spec(module)
        return found is not None and found.origin is not None
    except ValueError:  # a module set by hand in sys.modules; None blocks the import
        return sys.modules.get(module) is not None
