"""A network of torch that is called with arrays, as an exported file is."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from nextdetr.inference.backend import Backend, Seen
from nextdetr.inference.pytorch.pooled import pooled_maps
from nextdetr.inference.pytorch.recorder import FeatureRecorder
from nextdetr.inference.pytorch.static_camera import StaticCamera
from nextdetr.postprocess import Outputs
from nextdetr.tensors import as_outputs, choose_device, resize_to_tensor

__all__ = ["Network", "TorchBackend"]

#: Called as ``model(images [B, 3, S, S] 0..1)``, with ``queries=`` where asked for; returns a ``DetectorOutput``.
Network: TypeAlias = nn.Module


class TorchBackend(Backend):
    """Runs a network, in evaluation mode, and lets others look on.

    Args:
        model: the network, which is moved to ``device``.
        device: by default the best there is.
        recorder: looks on, so that there are ``maps``.
        camera: runs in the place of ``model``, which it has inside.
        pooled: whether to return the pooled last map of the backbone.

    Raises:
        ConfigError: there is no such device.
    """

    def __init__(
        self,
        model: Network,
        device: str | torch.device | None = None,
        *,
        recorder: FeatureRecorder | None = None,
        camera: StaticCamera | None = None,
        pooled: bool = False,
    ) -> None:
        place = choose_device(device)
        self.device = str(place)
        self.model = (model if camera is None else camera).to(place)
        self._recorder, self._camera, self._pooled = recorder, camera, pooled

    def check_size(self, height: int, width: int | None = None) -> None:
        """Check that the network takes images of this size."""
        check = getattr(self.model, "check_size", None)  # any callable will do as a network
        if check is not None:
            check(height, width)

    def prepare(self, image: Image.Image, size: int) -> NDArray[np.float32]:
        """Resize an image as in training."""
        return resize_to_tensor(image, size).numpy()

    def __call__(self, images: NDArray[np.float32], *, queries: int | None = None) -> Outputs:
        """Detect."""
        return self.look(images, queries=queries).outputs

    @torch.inference_mode()
    def look(
        self, images: NDArray[np.float32], *, queries: int | None = None, streams: Sequence[Hashable] | None = None
    ) -> Seen:
        """Detect, and keep what is to be seen on the way."""
        if self.model.training:  # a training may have used the model since
            self.model.eval()
        settings: dict[str, Any] = {} if queries is None else {"queries": queries}
        if self._camera is not None:
            settings["streams"] = streams
        with ExitStack() as watching:
            pooled = watching.enter_context(pooled_maps(self.model)) if self._pooled else None
            maps = None if self._recorder is None else watching.enter_context(self._recorder.watch())
            output = self.model(torch.from_numpy(np.asarray(images)).to(self.device), **settings)
        return Seen(as_outputs(output), maps, None if pooled is None else pooled[0])

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the network in evaluation mode for a while."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            yield
        finally:
            for module, training in modes:  # one by one: parts may be frozen in evaluation mode
                module.training = training
