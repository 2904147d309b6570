"""``DetectionModel``: the rows of a model file, run in order; one forward for training, prediction and export."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nextdetr.layers.conv import JOINS
from nextdetr.layers.fast import is_traced
from nextdetr.layers.normalize import imagenet_statistics
from nextdetr.models.names import row_name
from nextdetr.models.sizes import check_sides
from nextdetr.structures import Answers, DetectorOutput, Questions, Target, Uncast

__all__ = ["DetectionModel", "RowInfo"]


@dataclass(frozen=True, slots=True)
class RowInfo:
    """Connections of a row, and its description in ``info``.

    Attributes:
        name: displayed name.
        from_: value in the file, a number or a list.
        repeats: number of repeats after depth scaling.
        arguments: arguments with the input's channels inserted.
        reads: indices of the input maps; -1 is the image.
        writes: indices of the output maps; empty for the decoder.
        strides: strides of the output maps in pixels of the image.
        strides_read: strides of the input maps.
        channels: channels of the output maps.
    """

    name: str
    from_: int | list[int]
    repeats: int
    arguments: list[Any]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    strides: tuple[int, ...] = ()
    strides_read: tuple[int, ...] = ()
    channels: tuple[int, ...] = ()


class DetectionModel(nn.Module):
    """A detector built from a model file with ``graph.build_model``.

    Args:
        rows: the layers, the decoder last.
        infos: their connections, one per row.
        num_classes: C.
        backbone_rows: number of rows, from the first, that form the backbone.
        text: the model file's text.
        image_size: default side of the square input in pixels.
        normalize: ``imagenet`` applies ImageNet's mean and standard deviation inside the model; ``none`` does not.
        backbone_weights: file named by the backbone row.
        licence: licence stated in the file.

    Attributes:
        stride: the largest stride of its maps (their least common multiple, if one does not divide another): both sides of
            an image must be multiples of it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        rows: Sequence[nn.Module],
        infos: Sequence[RowInfo],
        *,
        num_classes: int,
        backbone_rows: int = 1,
        text: str,
        image_size: int = 640,
        normalize: str = "none",
        backbone_weights: Path | None = None,
        licence: str | None = None,
    ) -> None:
        super().__init__()
        self.rows = nn.ModuleList(rows)
        self.row_infos = list(infos)
        self.num_classes = num_classes
        self.backbone_rows = backbone_rows
        self.text = text
        self.image_size = image_size
        self.normalize = normalize
        self.backbone_weights = backbone_weights
        self.licence = licence
        self.stride = math.lcm(*(stride for info in infos for stride in info.strides))
        # Not in the state dict: they are given by the model file.
        mean, std = imagenet_statistics()
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        # A map is freed after its last reader, or immediately if it has none (stride 4, the largest of all, in RT-DETR).
        last_use = {index: number for number, info in enumerate(infos) for index in info.writes}
        last_use |= {index: number for number, info in enumerate(infos) for index in info.reads}
        self._drops = [[i for i, last in last_use.items() if last == number] for number in range(len(infos))]

    @property
    def backbone(self) -> nn.Module:
        """The first row: the whole backbone, if ``backbone_rows`` is 1."""
        return self.rows[0]

    def check_size(self, height: int, width: int | None = None) -> None:
        """Check that the model accepts images of this size: ``--image-size``, or height and width, in pixels.

        Raises:
            ConfigError: a side is not a multiple of ``stride``; the message has the nearest multiples.
        """
        check_sides(height, width, self.stride)

    def class_parameters(self) -> list[str]:
        """Names in the state dict of the tensors whose first dimension is the class, in row order.

        Each row that has any reports them with a method of this name. To transfer classes between models, move the rows of
        these tensors, and of no others.
        """
        names = []
        for number, row in enumerate(self.rows):
            of_row: Callable[[], list[str]] | None = getattr(row, "class_parameters", None)
            names += [row_name(number, name) for name in (of_row() if of_row is not None else [])]
        return names

    def forward(
        self,
        images: Tensor,
        targets: Sequence[Target] | Uncast[Sequence[Target]] | None = None,
        *,
        queries: int | None = None,
        questions: Questions | None = None,
    ) -> DetectorOutput:
        """Detect.

        Args:
            images: [B, 3, H, W] float RGB, 0 to 1; H and W multiples of ``stride``.
            targets: one per image, in training; in half precision as ``Uncast``, since boxes are float32.
            queries: number of object queries, if not the model's own.
            questions: in training, what a teacher asks for besides the detections.

        Returns:
            Logits [B, Q, C] and boxes [B, Q, 4] cxcywh, 0 to 1; in training mode with targets, also outputs to supervise.

        Raises:
            ConfigError: the images have an unsupported size, or ``queries`` is below 1.
        """
        decoder, targets = self.rows[-1], None if targets is None else Uncast.of(targets)
        if questions is None:
            output: DetectorOutput = decoder(self.decoder_inputs(images), targets, queries=queries)
            return output
        wanted = {stride: index for stride, index in self.backbone_maps().items() if stride in questions.strides}
        maps = self._maps(images, len(self.rows) - 1, kept=tuple(wanted.values()))
        features = [maps[index] for index in self.row_infos[-1].reads]
        output = decoder(features, targets, queries=queries, points=questions.points)
        if output.training is not None:
            answers = output.training.answers or Answers()
            output.training.answers = replace(answers, maps={stride: maps[index] for stride, index in wanted.items()})
        return output

    def decoder_inputs(self, images: Tensor) -> list[Tensor]:
        """Return the maps that the decoder reads, finest first, of images as for ``forward``; the decoder is not run."""
        maps = self._maps(images, len(self.rows) - 1)
        return [maps[index] for index in self.row_infos[-1].reads]

    def backbone_maps(self, *, unread: bool = False) -> dict[int, int]:
        """Return, by stride, the index of the backbone's last map of that stride: among those the head reads, or all."""
        read = {index for info in self.row_infos[self.backbone_rows :] for index in info.reads}
        pairs = [
            pair for info in self.row_infos[: self.backbone_rows] for pair in zip(info.strides, info.writes, strict=True)
        ]
        return {stride: index for stride, index in pairs if unread or index in read}

    def channels_of(self, index: int) -> int:
        """Return the number of channels of the map with this index."""
        found = {i: channels for info in self.row_infos for i, channels in zip(info.writes, info.channels, strict=True)}
        return found[index]

    def row_maps(self, images: Tensor, row: int) -> list[Tensor]:
        """Run the rows up to ``row`` and return its output maps; later rows are not run.

        Args:
            images: as for ``forward``.
            row: number of a row, from 0; any but the decoder's.

        Returns:
            Its maps, each [B, C, H / stride, W / stride].
        """
        writes = self.row_infos[row].writes
        maps = self._maps(images, row + 1, kept=writes)
        return [maps[index] for index in writes]

    def detect(self, maps: Sequence[Tensor], *, queries: int | None = None) -> DetectorOutput:
        """Run the rows after the first, the backbone, on its maps.

        Args:
            maps: the backbone's, as ``row_maps(images, 0)`` returns them.
            queries: as for ``forward``.

        Returns:
            As ``forward`` without targets.
        """
        found = self._run(dict(zip(self.row_infos[0].writes, maps, strict=True)), 1, len(self.rows) - 1)
        output: DetectorOutput = self.rows[-1]([found[index] for index in self.row_infos[-1].reads], None, queries=queries)
        return output

    def _maps(self, images: Tensor, count: int, kept: Sequence[int] = ()) -> dict[int, Tensor]:
        """Run the first ``count`` rows; return the maps that later rows read, and those in ``kept``."""
        if not is_traced():  # a traced graph is built for sizes that were checked before
            self.check_size(images.shape[2], images.shape[3])
        return self._run({-1: self.normalized(images)}, 0, count, kept)

    def _run(self, maps: dict[int, Tensor], first: int, last: int, kept: Sequence[int] = ()) -> dict[int, Tensor]:
        """Run rows ``first`` to ``last`` - 1 on ``maps``; return those that later rows read, and those in ``kept``."""
        for row, info, drops in list(zip(self.rows, self.row_infos, self._drops, strict=True))[first:last]:
            inputs = [maps[index] for index in info.reads]
            result = row(inputs if isinstance(row, JOINS) else inputs[0])
            maps.update(zip(info.writes, result if isinstance(result, list) else [result], strict=True))
            for index in drops:  # free maps that no later row reads
                if index not in kept:
                    maps.pop(index, None)
            del inputs, result  # drop these references too
        return maps

    def normalized(self, images: Tensor) -> Tensor:
        """Return [B, 3, H, W] in the form that the backbone expects."""
        # In this order: a scalar mean per plane is subtracted twice as fast as one that changes with each element.
        x = (images - self.mean) / self.std if self.normalize == "imagenet" else images
        return x.contiguous(memory_format=torch.channels_last)  # the fastest layout for convolutions, also on CPUs
