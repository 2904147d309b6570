"""Batches of a training run: from settings and records to sampler and loader."""

from __future__ import annotations

from typing import Any

from nextdetr.config import TrainConfig
from nextdetr.data.balance import repeat_factors
from nextdetr.data.cache import cache_bytes
from nextdetr.data.dataset import DetectionDataset
from nextdetr.data.loader import EpochSampler, TrainLoader, build_loader
from nextdetr.data.mix import MixConfig
from nextdetr.data.records import DetectionData
from nextdetr.data.transforms import AugmentConfig, TrainTransform, multi_scale_sizes
from nextdetr.data.unlabelled_views import StudentView, UnlabelledSampler, WithUnlabelled

__all__ = ["AUGMENTATIONS", "SHRINK_FACTOR", "build_training_loader", "shrink_limit", "training_sizes"]

# "mild" is weaker than RT-DETR's ("full": zoom-out up to 4 at 0.5, IoU crop at 0.8, channel permutation), which suits 72
# epochs on 118,000 images. A few hundred images and minutes are too few for it, and colour often distinguishes classes.
AUGMENTATIONS = {
    "mild": AugmentConfig(permute_channels=False, zoom_out=0.3, zoom_range=(1.0, 2.0), iou_crop=0.5),
    "full": AugmentConfig(),
}
LOWEST_SHARE, LOWEST_CELLS = 0.5, 4  # smallest input with --latency, relative to --image-size; cells of the coarsest map
SHRINK_FACTOR = 2  # of the input's side: a crop of half the image still has a pixel for each input pixel


def shrink_limit(image_size: int) -> int:
    """Return the shorter side, in pixels, to which ``--cache shrunk`` reduces images."""
    return SHRINK_FACTOR * image_size


def training_sizes(config: TrainConfig, stride: int) -> tuple[int, ...]:
    """Return the input sizes that a run trains, in pixels, in ascending order; ``image_size`` is among them.

    With ``latency`` they go down to half of it, since any of them may be chosen at the end.
    """
    assert config.image_size is not None
    if not config.multi_scale:
        return (config.image_size,)
    if config.latency is None:
        return multi_scale_sizes(config.image_size, step=stride)
    low = max(LOWEST_SHARE, min(1.0, LOWEST_CELLS * stride / config.image_size))
    return multi_scale_sizes(config.image_size, low, step=stride)


def build_training_loader(
    config: TrainConfig,
    data: DetectionData,
    *,
    stride: int = 32,
    rank: int,
    world: int,
    unlabelled: DetectionData | None = None,
) -> TrainLoader:
    """Build one process's loader.

    Args:
        config: settings with ``image_size`` resolved.
        data: the training split.
        stride: stride of the model; sizes of ``multi_scale`` are multiples of it.
        rank: this process, 0 to ``world`` - 1.
        world: number of processes.
        unlabelled: unlabelled images; the sampler is then an ``UnlabelledSampler``.
    """
    assert config.image_size is not None
    sizes = training_sizes(config, stride) if config.multi_scale else None
    options: dict[str, Any] = {
        "seed": config.seed, "base_size": config.image_size, "multi_scale": sizes, "rank": rank, "world": world,
        "weights": repeat_factors(data.records, len(data.classes)) if config.balance else None,
    }  # fmt: skip
    transform = TrainTransform(
        AUGMENTATIONS[config.augmentation], flip_horizontal=config.flip_horizontal, flip_vertical=config.flip_vertical,
        rotate90=config.rotate90,
    )  # fmt: skip
    dataset = DetectionDataset(
        data, transform, seed=config.seed,
        mix=MixConfig(mosaic=config.mosaic, mixup=config.mixup, copy_paste=config.copy_paste),
        cache_bytes=0 if config.cache == "off" else int(config.cache_gigabytes * 2**30),
        shrink_to=shrink_limit(config.image_size) if config.cache == "shrunk" else None,
    )  # fmt: skip
    images = len(data.records)
    if unlabelled is None:
        return build_loader(dataset, EpochSampler(images, config.batch_size, **options), workers=config.workers)
    assert config.unlabelled_batch is not None  # set by the recipe
    limit = shrink_limit(config.image_size)
    spent = 0 if dataset.cache is None else cache_bytes(((r.width, r.height) for r in data.records), dataset.shrink_to)
    both = WithUnlabelled(
        dataset, unlabelled, StudentView(transform), shrink_to=limit,
        cache_bytes=0 if config.cache == "off" else max(0, int(config.cache_gigabytes * 2**30) - spent),
    )  # fmt: skip
    sampler = UnlabelledSampler(
        images, config.batch_size, unlabelled=len(unlabelled.records), views=config.unlabelled_batch, **options
    )  # fmt: skip
    return build_loader(both, sampler, workers=config.workers)
