"""A detector for the batcher."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from nextdetr.confidence import CALIBRATED
from nextdetr.inference.predictor import Prediction, select_classes
from nextdetr.inference.steps import Steps
from nextdetr.preprocess import Reading
from nextdetr.serve.batcher import Job
from nextdetr.serve.decode import decode
from nextdetr.serve.errors import ServeError

__all__ = ["DetectorEngine"]

JPEG_SIDE = 65_500  # maximum side of a JPEG in pixels
JPEG_QUALITY = 90


class DetectorEngine:
    """Decodes, computes and finishes, with the results of ``nextdetr predict``.

    Args:
        steps: the detector.
        reading: how images are read, and their maximum size.
    """

    def __init__(self, steps: Steps, reading: Reading) -> None:
        self.steps, self.reading = steps, reading

    def prepare(self, job: Job) -> Any:
        """Decode the job's image; return the model's input [3, S, S].

        Raises:
            ServeError: it is not an image, damaged, or too large.
        """
        image = decode(job.content, job.name, self.reading)
        job.size = image.size
        if job.draw is not None:
            job.image = image
        return self.steps.prepare(image)

    def compute(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run the model."""
        return self.steps.compute(inputs)

    def finish(self, job: Job, output: Any) -> tuple[dict[str, Any], bytes | None]:
        """Return the image's part of the answer, and the annotated image if requested."""
        found = self.steps.finish(output, job.size, **job.settings)
        result = Prediction(job.name, *job.size, found, unlikeness=output.unlikeness).to_json()
        result = {"name": result.pop("path"), **result}
        return result, None if job.image is None else _drawn(job, found)

    def class_indices(self, names: Sequence[str] | None) -> list[int] | None:
        """Return the indices of classes given by name or number; None for all.

        Raises:
            DataError: there is no such class.
        """
        return None if names is None else select_classes(self.steps.classes, names)

    def check_confidence(self, confidence: Any) -> None:
        """Check that the detector supports a confidence setting.

        Raises:
            ServeError: it is ``calibrated``, but the detector is not (422).
        """
        if confidence == CALIBRATED and self.steps.predictor.calibrated is None:
            raise ServeError(
                422, "confidence: the model has none that is calibrated (nextdetr calibrate): ask for auto, or a number.",
            )  # fmt: skip

    def warm_up(self) -> None:
        """Run the model once, so that the first request does not wait for lazy initialisation."""
        self.steps.compute([self.steps.prepare(Image.new("RGB", (64, 64)))])


def _drawn(job: Job, found: Any) -> bytes:
    from nextdetr.inference.drawing import draw_detections

    assert job.image is not None
    picture = draw_detections(job.image, found)
    file = BytesIO()
    if job.draw == "PNG" or max(picture.size) > JPEG_SIDE:
        picture.save(file, "PNG", compress_level=3)
    else:
        picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
