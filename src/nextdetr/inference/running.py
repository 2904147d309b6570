"""From a detector to what runs it: the one place where prediction and scoring ask for torch, if a network needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nextdetr.inference.backend import Backend

if TYPE_CHECKING:
    import torch

    from nextdetr.inference.pytorch.backend import Network

__all__ = ["backend_of"]


def backend_of(model: Backend | Network, device: str | torch.device | None = None, **looking: Any) -> Backend:
    """Return what runs a detector.

    Args:
        model: a network of torch, or what runs already: an exported file is such a one.
        device: where a network is to run; by default the best there is.
        looking: what looks on at a network: see ``TorchBackend``.

    Raises:
        ConfigError: there is no such device.
    """
    if isinstance(model, Backend):
        return model
    from nextdetr.inference.pytorch.backend import TorchBackend

    return TorchBackend(model, device, **looking)
