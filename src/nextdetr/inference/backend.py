"""What runs a detector, as prediction and scoring see it: arrays in, arrays out, whatever computes in between; no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from numpy.typing import NDArray

from nextdetr.postprocess import Outputs
from nextdetr.preprocess import resize_to_planes

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from nextdetr.inference.feature_map import FeatureMap

__all__ = ["Backend", "Seen"]


@dataclass(frozen=True, slots=True)
class Seen:
    """What came out of a batch, and what was seen on the way.

    Attributes:
        outputs: logits and boxes of the B images.
        maps: of each image, if features are recorded.
        vectors: [B, C], the pooled last map of the backbone, if requested.
    """

    outputs: Outputs
    maps: list[list[FeatureMap]] | None = None
    vectors: NDArray[np.float32] | None = None


class Backend(ABC):
    """A detector that is ready to run; several threads may call it at once.

    Attributes:
        device: where it runs: ``cpu``, ``cuda:0``, …
    """

    device: str = "cpu"

    def check_size(self, height: int, width: int | None = None) -> None:  # noqa: B027 - a backend may take any size
        """Check that it takes images of this size: ``--image-size``, or height and width, in pixels.

        Raises:
            ConfigError: it does not; the message says what it takes.
        """

    def prepare(self, image: Image.Image, size: int) -> NDArray[np.float32]:
        """Resize an upright RGB image to its input, [3, size, size], 0 to 1."""
        return resize_to_planes(image, size)

    @abstractmethod
    def __call__(self, images: NDArray[np.float32], *, queries: int | None = None) -> Outputs:
        """Detect.

        Args:
            images: [B, 3, S, S] float32 RGB, 0 to 1.
            queries: number of object queries, where it is not the detector's own.
        """

    def look(
        self, images: NDArray[np.float32], *, queries: int | None = None, streams: Sequence[Hashable] | None = None
    ) -> Seen:
        """Detect, and keep what is to be seen on the way.

        Args:
            images: see ``__call__``.
            queries: likewise.
            streams: for each image, the key of its stream; for a fixed camera.
        """
        return Seen(self(images, queries=queries))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Be in evaluation mode for a while, and then as before; an exported file is in no other."""
        yield
