"""A fixed camera: the backbone is computed only where the image changed.

Each patch of the image is compared with the pixels that its stored maps were computed from, not with the previous frame,
so that slow changes accumulate until they are noticed. Changed patches, and one patch around them, are computed again
(``models/partial.py``); encoder and decoder run in full. If nothing changed, the last result is kept. A frame is computed
in full if too much changed, and at regular intervals in any case: this removes the error of the approximation in the
other patches, and measures it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nextdetr.errors import ConfigError
from nextdetr.inference.camera_report import CameraReport
from nextdetr.layers.sparse import VisiblePatches, patches_of
from nextdetr.models.detection import DetectionModel
from nextdetr.models.partial import StoredBackbone
from nextdetr.structures import DetectorOutput

__all__ = ["StaticCamera"]

#: Mean absolute difference of a small square, 0 to 1, from which its patch counts as changed: above the noise of cameras
#: and of compression.
CHANGED = 8 / 255
#: Patches around those that changed that are computed too, as convolutions and attention of the network see them.
AROUND = 1
#: Small squares along a patch: of 8 pixels, so that a small object is not lost in the mean.
SQUARES = 4
#: Share of patches to compute from which a whole computation is as fast.
MOST = 0.5
#: Numbers of patches are rounded up to this many different ones, as libraries prepare a kernel for each size of input.
STEPS = 25


class StaticCamera(nn.Module):
    """A detector for consecutive frames of one fixed camera; called like the network.

    Args:
        model: the detector, whose first row is a ConvNeXt V2 backbone.
        full_every: at least one frame in this many is computed in full.
        report: counts what was computed.

    Raises:
        ConfigError: the model has another backbone.
    """

    def __init__(self, model: nn.Module, full_every: int = 30, report: CameraReport | None = None) -> None:
        super().__init__()
        if not isinstance(model, DetectionModel):
            raise ConfigError("an exported file cannot compute what has changed alone; name the checkpoint behind it.")
        self.model = model
        self.full_every = full_every
        self.report = CameraReport() if report is None else report
        self._backbone = StoredBackbone(model.backbone)
        self._key: tuple[Hashable, ...] | None = None
        self._reference = torch.empty(0)  # [3, H, W], the pixels that each patch was computed from
        self._computed = torch.empty(0)  # [patches], when
        self._since_full = 0
        self._output: DetectorOutput | None = None

    def check_size(self, height: int, width: int | None = None) -> None:
        """Check that the model takes frames of this size, as ``DetectionModel.check_size`` does."""
        self.model.check_size(height, width)

    @torch.inference_mode()
    def forward(
        self,
        images: Tensor,
        targets: None = None,
        *,
        queries: int | None = None,
        streams: Sequence[Hashable] | None = None,
    ) -> DetectorOutput:
        """Detect.

        Args:
            images: [B, 3, H, W] float RGB, 0 to 1: frames in their order.
            targets: none.
            queries: number of object queries, where it is not the model's own.
            streams: for each frame, the key of its stream; the first frame of another stream is computed in full.

        Returns:
            Logits [B, Q, C] and boxes [B, Q, 4] cxcywh, 0 to 1.
        """
        names: Sequence[Hashable] = [None] * len(images) if streams is None else streams
        outputs = [self._frame(image, queries, name) for image, name in zip(torch.split(images, 1), names, strict=True)]
        return DetectorOutput(torch.cat([o.logits for o in outputs]), torch.cat([o.boxes for o in outputs]))

    def _frame(self, image: Tensor, queries: int | None, stream: Hashable) -> DetectorOutput:
        """Detect in one frame [1, 3, H, W]."""
        self.check_size(*image.shape[-2:])
        key = (stream, tuple(image.shape), queries, image.device)
        self._since_full += 1
        changed = None
        if key == self._key:
            changed = self._changed(image)  # [1, 1, rows, columns]
        if changed is not None and self._since_full < self.full_every and not changed.any() and self._output is not None:
            self.report.add(0.0)
            return self._output
        self._key = key
        self._output = self.model.detect(self._maps(image, changed), queries=queries)
        return self._output

    def _maps(self, image: Tensor, changed: Tensor | None) -> list[Tensor]:
        """Return the backbone's maps of a frame, where it has changed so; None for a first frame."""
        patch = self._backbone.patch
        active = None if changed is None else functional.max_pool2d(changed, 2 * AROUND + 1, stride=1, padding=AROUND)
        share = 1.0 if active is None else self._rounded(int(active.sum())) / active.numel()
        if active is None or share > MOST or self._since_full >= self.full_every:
            # With so much changed no result comes from the stored maps: how far they are off is no error of any.
            before = None if active is None or share > MOST else self._backbone.maps
            maps = self._backbone.full(self.model.normalized(image))
            drift = None if before is None or active is None else largest_drift(before, maps, active == 0)
            self.report.add(1.0, drift)
            self._since_full = 0
            self._reference = image[0].clone()
            self._computed = image.new_zeros(image.shape[-2] // patch * (image.shape[-1] // patch))
            return maps
        visible = self._visible(active)
        maps = self._backbone.update(self.model.normalized(image), visible)
        self.report.add(share)
        places = visible.places()
        patches_of(self._reference[None], patch)[places] = patches_of(image, patch)[places]
        self._computed[visible.ids[0]] = self._since_full
        return maps

    def _changed(self, image: Tensor) -> Tensor:
        """Return 1 for each patch [1, 1, rows, columns] that differs from the pixels that it was computed from, else 0."""
        difference = torch.sub(image[0], self._reference).abs_().mean(dim=0)[None, None]
        side = self._backbone.patch // SQUARES
        largest = functional.max_pool2d(functional.avg_pool2d(difference, side), SQUARES)
        return (largest > CHANGED).to(image.dtype)

    def _rounded(self, count: int) -> int:
        """Return the number of patches to compute if ``count`` have changed."""
        total = len(self._computed)
        step = max(1, total // STEPS)
        return min(total, -(-count // step) * step)

    def _visible(self, active: Tensor) -> VisiblePatches:
        """Return the active patches and, to make their number round, those that were computed longest ago."""
        rank = torch.where(active.flatten() > 0, -1.0, self._computed)
        ids = rank.argsort(stable=True)[: self._rounded(int(active.sum()))].sort().values
        return VisiblePatches(ids[None], (active.shape[2], active.shape[3]))


def largest_drift(before: Sequence[Tensor], maps: Sequence[Tensor], where: Tensor) -> float | None:
    """Return how far stored maps were from computed ones, at most: of a patch, root mean square, relative to the map's.

    Args:
        before: the stored maps, each [1, C, H, W].
        maps: the computed ones.
        where: bool [1, 1, rows, columns], the patches that are compared.

    Returns:
        The largest over all maps and these patches; None where there are none.
    """
    if not where.any():
        return None
    largest = 0.0
    for old, new in zip(before, maps, strict=True):
        squares = (old - new).square_().mean(dim=1, keepdim=True)  # [1, 1, H, W]
        patches = functional.avg_pool2d(squares, new.shape[-1] // where.shape[-1])
        size = new.square().mean().clamp_min(torch.finfo(new.dtype).tiny)
        largest = max(largest, float((patches[where].max() / size).sqrt()))
    return largest
