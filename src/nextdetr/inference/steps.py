"""A prediction step by step, for a program that forms batches of its own, such as the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nextdetr.confidence import AUTO
from nextdetr.inference.objects import Objects
from nextdetr.inference.predictor import Predictor
from nextdetr.postprocess import Outputs, postprocess

if TYPE_CHECKING:
    from nextdetr.confidence import Confidence

__all__ = ["Looked", "Steps"]


@dataclass(frozen=True, slots=True)
class Looked:
    """What the model gives for one image.

    Attributes:
        outputs: logits [1, Q, C] and boxes [1, Q, 4].
        unlikeness: as of a ``Prediction``; None where it is not known.
    """

    outputs: Outputs
    unlikeness: float | None = None


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
        return self.predictor.backend.prepare(image, self.predictor.image_size)

    def compute(self, inputs: Sequence[NDArray[np.float32]]) -> list[Looked]:
        """Run the model on a batch of inputs [3, S, S]; return what it gives for each.

        Raises:
            ModelFileError: the runtime fails, or returns what is no detection.
        """
        seen, known = self.predictor.backend.look(np.stack(inputs)), self.predictor.familiarity
        unlike: list[float | None] = [None] * len(inputs)
        if known is not None and seen.vectors is not None:
            unlike = known.unlikeness(seen.vectors).tolist()
        logits, boxes = seen.outputs.logits, seen.outputs.boxes
        return [Looked(Outputs(logits[i : i + 1], boxes[i : i + 1]), unlike[i]) for i in range(len(inputs))]

    def finish(
        self,
        looked: Looked,
        size: tuple[int, int],
        *,
        confidence: Confidence = AUTO,
        classes: Sequence[int] | None = None,
        max_detections: int = 300,
        merge_iou: float | None = None,
    ) -> Objects:
        """Return what the model finds in one image.

        Args:
            looked: one of those that ``compute`` returned.
            size: width and height of the image in pixels.
            confidence: see ``Predictor.stream``.
            classes: only these, by index.
            max_detections: most detections.
            merge_iou: see ``Predictor.stream``.
        """
        width, height = size
        (found,) = postprocess(looked.outputs, [(height, width)], max_detections=max_detections, classes=classes)
        return self.predictor.as_objects(found, self.predictor.least_scores(confidence), merge_iou)
