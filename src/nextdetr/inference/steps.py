"""A prediction step by step, for a program that forms batches of its own, such as the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from nextdetr.confidence import AUTO
from nextdetr.inference._supervision import sv
from nextdetr.inference.predictor import Predictor
from nextdetr.postprocess import postprocess
from nextdetr.preprocess import resize_to_tensor
from nextdetr.structures import DetectorOutput

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

    def prepare(self, image: Image.Image) -> Tensor:
        """Return the model's input for an upright RGB image: [3, S, S] float32, 0 to 1."""
        return resize_to_tensor(image, self.predictor.image_size)

    @torch.inference_mode()
    def compute(self, inputs: Sequence[Tensor]) -> list[DetectorOutput]:
        """Run the model on a batch of inputs [3, S, S]; return logits [1, Q, C] and boxes [1, Q, 4] of each.

        Raises:
            ModelFileError: the runtime fails, or returns what is no detection.
        """
        output = self.predictor.model(torch.stack(list(inputs)).to(self.predictor.device))
        logits, boxes = output.logits.cpu(), output.boxes.cpu()
        return [DetectorOutput(logits[i : i + 1], boxes[i : i + 1]) for i in range(len(inputs))]

    @torch.inference_mode()
    def finish(
        self,
        output: DetectorOutput,
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
