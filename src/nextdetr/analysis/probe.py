"""Quality of a backbone: a linear classifier on its frozen features, and full fine-tuning, on images sorted into folders.

Linear probing and fine-tuning are the measures of pre-training in "Masked Autoencoders Are Scalable Vision Learners", arXiv
2111.06377, section 4, and "ConvNeXt V2", arXiv 2301.00808. The linear classifier is solved exactly: features are the last
stage's mean over positions, standardised over the training images, and L2-regularised logistic regression has a unique
optimum, which L-BFGS finds in a second. The penalty is chosen on a fifth of the training images.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW

from nextdetr.config import ProbeConfig
from nextdetr.data.classes import ClassFolders, read_class_folders
from nextdetr.data.raw import plural
from nextdetr.data.unlabelled import random_crop
from nextdetr.engine.optim import rate_factor, set_rate, undecayed
from nextdetr.layers.normalize import imagenet_statistics
from nextdetr.models.convnextv2 import ConvNeXtV2
from nextdetr.preprocess import load_image
from nextdetr.tensors import choose_device, resize_to_tensor
from nextdetr.weights.backbone import open_encoder

__all__ = ["ProbeResult", "Score", "confusion", "fit_linear", "probe"]

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
BACKBONE_FACTOR = 0.25  # of the head's rate; the head starts from random weights, the backbone does not


@dataclass(frozen=True, slots=True)
class Score:
    """Classification of the held-out images.

    Attributes:
        accuracy: fraction that is correct, 0 to 1.
        confusion: C rows, the true classes, of C counts, the predicted ones.
    """

    accuracy: float
    confusion: list[list[int]]


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Result of ``probe``; ``fine_tuned`` is None if it was skipped."""

    weights: str
    folder: str
    classes: list[str]
    train_images: int
    held_out_images: int
    linear: Score
    fine_tuned: Score | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the JSON result of the command."""
        return {"command": "probe", **asdict(self)}


def probe(
    weights: str | Path, folder: str | Path, config: ProbeConfig, *, tell: Callable[[str], None] = lambda line: None
) -> ProbeResult:
    """Evaluate a backbone by classification.

    Args:
        weights: a file of any known layout, or ``convnextv2-atto`` etc. for random weights.
        folder: images in one subfolder per class; see :func:`nextdetr.data.classes.read_class_folders`.
        config: the settings.
        tell: prints a line for the user.

    Raises:
        DataError: the images cannot be used.
        WeightsError: the file cannot be read or has no ConvNeXt backbone.
    """
    started = time.perf_counter()
    device = choose_device(config.device)
    torch.manual_seed(config.seed)
    data = read_class_folders(folder, held_out=config.held_out, seed=config.seed)
    for line in data.skipped:
        tell(f"left out: {line}")
    classes, images = plural(len(data.classes), "class"), plural(len(data.train), "image")
    tell(f"{classes}, {images} to learn from, {len(data.held_out)} held out")
    truth = torch.tensor([label for _, label in data.held_out])
    encoder = open_encoder(weights).to(device).eval()
    train, held_out = (_features(encoder, part, config, device) for part in (data.train, data.held_out))
    labels = torch.tensor([label for _, label in data.train])
    linear = _score(fit_linear(train, labels, len(data.classes), config.seed)(held_out), truth)
    tell(f"linear: accuracy {linear.accuracy:.4f}")
    tuned = None
    if config.fine_tune:
        model = open_encoder(weights, num_classes=len(data.classes), drop_path=config.drop_path).to(device)
        _fine_tune(model, data, config, device, tell)
        logits = torch.cat([model(batch.to(device)).cpu() for batch in _batches(data.held_out, config)])
        tuned = _score(logits, truth)
        tell(f"fine-tuned: accuracy {tuned.accuracy:.4f}")
    seconds = round(time.perf_counter() - started, 2)
    return ProbeResult(
        str(weights), str(folder), data.classes, len(data.train), len(data.held_out), linear, tuned, seconds
    )  # fmt: skip


def fit_linear(features: Tensor, labels: Tensor, classes: int, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """Fit logistic regression.

    Args:
        features: [N, D].
        labels: [N], 0 to ``classes`` - 1.
        classes: number of classes (K).
        seed: seed for the fifth of the images that chooses the penalty.

    Returns:
        A function from features [M, D] to logits [M, K].
    """
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0).clamp_min(1e-6)

    def scaled(x: Tensor) -> Tensor:
        return ((x - mean) / deviation).double()

    x = scaled(features)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
    inner, outer = order[len(x) // 5 :], order[: len(x) // 5]
    best = PENALTIES[2]
    if len(outer):
        losses = {}
        for penalty in PENALTIES:
            weight, bias = _solve(x[inner], labels[inner], classes, penalty)
            losses[penalty] = float(cross_entropy(x[outer] @ weight.T + bias, labels[outer]))
        best = min(losses, key=lambda penalty: losses[penalty])
    weight, bias = _solve(x, labels, classes, best)
    return lambda other: scaled(other) @ weight.T + bias


def _solve(x: Tensor, labels: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Minimise cross-entropy + penalty / 2 * |weight|^2 over weight [K, D] and bias [K]."""
    weight = torch.zeros(classes, x.shape[1], dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(x @ weight.T + bias, labels) + penalty / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> list[list[int]]:
    """Count pairs of true (rows) and predicted (columns) classes, both [N]."""
    counts = torch.bincount(truth * classes + predicted, minlength=classes * classes)
    rows: list[list[int]] = counts.view(classes, classes).tolist()
    return rows


def _score(logits: Tensor, truth: Tensor) -> Score:
    predicted = logits.argmax(dim=1)
    return Score(float((predicted == truth).double().mean()), confusion(predicted, truth, logits.shape[1]))


def _normalised(images: Tensor) -> Tensor:
    mean, std = imagenet_statistics()
    return (images - mean) / std


def _batches(part: Sequence[tuple[Path, int]], config: ProbeConfig) -> Any:
    """Yield the images in order, uncropped and normalised, [B, 3, S, S]."""
    for first in range(0, len(part), config.batch_size):
        chosen = part[first : first + config.batch_size]
        yield _normalised(torch.stack([resize_to_tensor(load_image(path), config.image_size) for path, _ in chosen]))


@torch.no_grad()
def _features(encoder: ConvNeXtV2, part: Sequence[tuple[Path, int]], config: ProbeConfig, device: torch.device) -> Tensor:
    found = [encoder(batch.to(device))[-1].mean(dim=(2, 3)).float().cpu() for batch in _batches(part, config)]
    return torch.cat(found)  # [N, C]


def _fine_tune(
    model: ConvNeXtV2, data: ClassFolders, config: ProbeConfig, device: torch.device, tell: Callable[[str], None]
) -> None:
    """Train the whole classifier; leaves it in evaluation mode without gradients."""
    optimizer = AdamW(_groups(model, config), betas=(0.9, 0.999))
    per_epoch = math.ceil(len(data.train) / config.batch_size)
    total, step = config.epochs * per_epoch, 0
    for epoch in range(config.epochs):
        model.train()
        losses = []
        order = np.random.default_rng((config.seed, epoch)).permutation(len(data.train))
        for first in range(0, len(order), config.batch_size):
            chosen = order[first : first + config.batch_size]
            images, labels = _augmented(data, chosen, config, epoch)
            # The middle of the step, so that the first step moves, and the only one of a short run is halfway down.
            set_rate(optimizer, rate_factor((step + 0.5) / total, step, warmup=0.1, flat=0.0))
            loss = cross_entropy(model(images.to(device)), labels.to(device), label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            step += 1
        tell(f"fine-tuning: epoch {epoch + 1}/{config.epochs}  loss {sum(losses) / len(losses):.4f}")
    model.eval().requires_grad_(False)


def _augmented(data: ClassFolders, chosen: Any, config: ProbeConfig, epoch: int) -> tuple[Tensor, Tensor]:
    crops = []
    for index in chosen:
        generator = np.random.default_rng((config.seed, epoch, int(index)))
        image = load_image(data.train[int(index)][0])
        crops.append(random_crop(image, config.image_size, generator, crop_min=config.crop_min))
    return _normalised(torch.stack(crops)), torch.tensor([data.train[int(index)][1] for index in chosen])


def _groups(model: ConvNeXtV2, config: ProbeConfig) -> list[dict[str, Any]]:
    spared = undecayed(model)
    groups = []
    for head in (False, True):
        for exempt in (False, True):
            rate = config.learning_rate * (1.0 if head else BACKBONE_FACTOR)
            parameters = [
                parameter
                for name, parameter in model.named_parameters()
                if name.startswith(("head.", "norm.")) is head and (id(parameter) in spared) is exempt
            ]
            decay = 0.0 if exempt else config.weight_decay
            groups.append({"params": parameters, "lr": rate, "peak_rate": rate, "weight_decay": decay})
    return groups
