"""A prediction step by step, for a program that forms batches of its own, such as the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nextdetr.confidence import AUTO
from nextdetr.inference._supervision import sv
from nextdetr.inference.predictor import Predictor
from nextdetr.postprocess import Outputs, postprocess
from nextdetr.preprocess import resize_to_planes

if TYPE_CHECKING:
    from nextdetr.confidence import Confidence

__all__ = ["Steps"]


class Steps:
    """The steps that ``Predictor.stream`` takes one after the other, with the same results.

    Several threads may call them at once.

    Args:
        predictor: model, image size and classes.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.classes = predictor.classes

    def prepare(self, image: Image.Image) -> NDArray[np.float32]:
        """Return the model's input for an upright RGB image: [3, S, S] float32, 0 to 1."""
        return resize_to_planes(image, self.predictor.image_size)

    def compute(self, inputs: Sequence[NDArray[np.float32]]) -> list[Outputs]:
        """Run the model on a batch of inputs [3, S, S]; return logits [1, Q, C] and boxes [1, Q, 4] of each.

        Raises:
            ModelFileError: the runtime fails, or returns what is no detection.
        """
        output = self.predictor.backend(np.stack(inputs))
        return [Outputs(output.logits[i : i + 1], output.boxes[i : i + 1]) for i in range(len(inputs))]

    def finish(
        self,
        output: Outputs,
        size: tuple[int, int],
        *,
        confidence: Confidence = AUTO,
        classes: Sequence[int] | None = None,
        max_detections: int = 300,
    ) -> sv.Detections:
        """Turn the output for one image into detections.

        Args:
            output: one of those that ``compute`` returned.
            size: width and height of the image in pixels.
            confidence: see ``Predictor.stream``.
            classes: only these, by index.
            max_detections: most detections.
        """
        width, height = size
        (found,) = postprocess(output, [(height, width)], max_detections=max_detections, classes=classes)
        return self.predictor.as_detections(found, self.predictor.least_scores(confidence))
