"""The quickstart: generate the coins, train a small model on them, score it, and test it on the original photograph."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextdetr.config import QuickstartConfig, TrainConfig, ValConfig
from nextdetr.errors import ConfigError, Interrupted
from nextdetr.files import atomic_write, exclusive, latest_directory, new_directory_if_used
from nextdetr.installation import to_paste

if TYPE_CHECKING:
    from nextdetr.engine.log import Display
    from nextdetr.engine.result import TrainResult

__all__ = ["EPOCHS", "IMAGE_SIZE", "QuickstartResult", "quickstart"]

# The length is in steps: a slow or busy machine takes longer and gets the same detector. Small images and batches, since
# the number of steps counts. The composites vary enough; strong augmentation would only cost time.
MODEL = "nextdetr-zepto"
EPOCHS = 20  # of 80 steps
IMAGE_SIZE = 224
BATCH_SIZE = 4
CONFIDENCE = 0.5
ENLARGED = 3  # the photograph is small; labels need space
PICTURE = "coins.png"

# What a newcomer reads while it runs.
MAKING = "Step 1 of 3: make images to train on: coins cut out of a photograph and pasted onto other backgrounds, in {data}"
KEPT = "Step 1 of 3: the images to train on are there already, in {data}"
TRAINING = f"""Step 2 of 3: train {MODEL}, the smallest model, for {{epochs}} epochs (passes over train images), {{limit}}
  The loss should fall; AP50 and AP, which say from 0 to 1 how well it finds the coins of the val images, should rise."""
TESTING = (
    "Step 3 of 3: find coins in the test images, whose coins and backgrounds are new to it, and in the photograph itself"
)


@dataclass(frozen=True, slots=True)
class QuickstartResult:
    """Result of the quickstart; the fields of the JSON result.

    Attributes:
        output, epochs, seconds, images_per_second, best, checkpoint: as in ``train``.
        metrics: COCO metrics on held-out composites, whose coins were not trained on and which chose no checkpoint.
        photograph: ``found`` of ``coins`` (matched one to one at IoU 0.5 or more), the number of ``detections`` of at least
            0.5 confidence, and the ``picture``.
    """

    output: str
    epochs: int
    seconds: float
    images_per_second: float
    best: dict[str, Any]
    checkpoint: str
    metrics: dict[str, float | None]
    photograph: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON result of the command."""
        return {"command": "quickstart", **asdict(self)}


def quickstart(config: QuickstartConfig, *, quiet: bool = False) -> QuickstartResult:
    """Run the quickstart; one that was interrupted continues where it stopped.

    Raises:
        ConfigError: scikit-image, which contains the photographs, is not installed, or the folder holds another run.
        Interrupted: it was asked to stop while training.
    """
    wanted = Path("runs") / "quickstart"
    known = config.output or _stopped(wanted, config.seed)
    with new_directory_if_used(wanted) if known is None else nullcontext(known) as output:
        return _quickstart(config, output, quiet=quiet)


def _stopped(wanted: Path, seed: int) -> Path | None:
    """Return the latest folder of quickstarts, if that one was interrupted and no other process is using it."""
    latest = latest_directory(wanted)
    if latest is None or not _is_stopped(latest, seed):
        return None
    try:
        with exclusive(latest / PICTURE):
            return latest
    except ConfigError:
        return None


def _is_stopped(output: Path, seed: int) -> bool:
    """Whether a folder has a quickstart's images, but not yet the photograph of its last step."""
    from nextdetr.data.coins import holds_coins

    return holds_coins(output / "data", image_size=IMAGE_SIZE, seed=seed) and not (output / PICTURE).exists()


def _quickstart(config: QuickstartConfig, output: Path, *, quiet: bool) -> QuickstartResult:
    from nextdetr.data.coins import make_coins
    from nextdetr.engine.log import Display
    from nextdetr.engine.validate import score_detector
    from nextdetr.weights.checkpoint import open_model
    from nextdetr.weights.folder import RUN_FILES

    display = Display(enabled=not quiet)
    stopped = _is_stopped(output, config.seed)
    if not stopped and any((output / name).exists() for name in ("last.ckpt", *RUN_FILES)):
        raise ConfigError(f"{output}: holds a run already; choose another --output.")
    display.line((KEPT if stopped else MAKING).format(data=output / "data"))
    data = make_coins(output / "data", image_size=IMAGE_SIZE, seed=config.seed)
    with exclusive(output / PICTURE):  # until all is done, so that no other quickstart takes this one for a stopped one
        result = _train(config, output, data, display, resume=stopped and (output / "last.ckpt").exists(), quiet=quiet)
        display.line(TESTING)
        opened = open_model(result.checkpoint)
        scores = score_detector(opened, ValConfig(data=str(data), split="test"), quiet=quiet, describe=False)
        photograph = look_at_photograph(Path(result.checkpoint), output / PICTURE)
    trained = {name: value for name, value in asdict(result).items() if name not in ("profile", "speed")}
    return QuickstartResult(**trained, metrics=scores.metrics, photograph=photograph)


def _train(
    config: QuickstartConfig, output: Path, data: Path, display: Display, *, resume: bool, quiet: bool
) -> TrainResult:
    """Train on the images, or continue the training in ``output``."""
    from nextdetr.engine.train import train

    if resume:
        settings = TrainConfig(resume=output, data=(str(data),))
    else:
        settings = TrainConfig(
            data=(str(data),), model=MODEL, epochs=EPOCHS, image_size=IMAGE_SIZE, batch_size=BATCH_SIZE,
            strong_until=0.0, seed=config.seed, output=output, start="none",
            optimizer="adamw",  # with which its epochs were measured
        )  # fmt: skip
    limit = f"at most {config.minutes:g} minute{'s' * (config.minutes != 1)}"
    display.line(TRAINING.format(epochs=EPOCHS, limit=limit))
    try:
        return train(settings, quiet=quiet, limit=config.minutes)
    except Interrupted as error:
        names = [name for name in ("minutes", "seed", "output") if name in config.model_fields_set]
        given = [word for name in names for word in (f"--{name}", str(getattr(config, name)))]
        command = to_paste(["nextdetr", "quickstart", *given])
        raise Interrupted(f"stopped while training; continue with: {command}") from error


def look_at_photograph(checkpoint: Path, picture: Path) -> dict[str, Any]:
    """Draw the detections in the original photograph, and count the coins found.

    A coin is found when a detection overlaps it with an IoU of at least 0.5; each detection counts for one coin.
    """
    import numpy as np
    import torch
    from scipy.optimize import linear_sum_assignment
    from torchvision.ops import box_iou

    from nextdetr.data.coins import photograph
    from nextdetr.detector import Detector
    from nextdetr.inference.drawing import draw_detections

    image, boxes = photograph()
    detector = Detector(checkpoint)
    detections = detector.predict(image, confidence=CONFIDENCE)[0]
    number = len(detections)
    truth = torch.as_tensor(np.asarray(boxes), dtype=torch.float32)
    overlap = box_iou(torch.as_tensor(detections.xyxy, dtype=torch.float32).reshape(-1, 4), truth).numpy()
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    found = int((overlap[rows, columns] >= 0.5).sum())
    size = (image.width * ENLARGED, image.height * ENLARGED)
    detections.xyxy = detections.xyxy * ENLARGED
    with atomic_write(picture) as temporary:
        draw_detections(image.resize(size), detections, detector.classes).save(temporary)
    return {"found": found, "coins": len(truth), "detections": number, "picture": str(picture)}
