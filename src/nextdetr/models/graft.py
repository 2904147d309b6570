"""A detector's head on another backbone: its rows on top of a ConvNeXt V2, with adapters where they meet.

In RT-DETR and D-FINE alike, backbone maps reach the head through 1 x 1 convolutions to the head's width (arXiv 2304.08069,
section 4.2). These accept any number of channels and are replaced; anything else that reads the old backbone gets such a
convolution as an adapter. All other tensors of the head are kept. Since the head is the same, the output of a new
convolution has a counterpart in the old detector, channel by channel: this is what a graft is trained on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from nextdetr.errors import ConfigError
from nextdetr.layers.conv import Conv
from nextdetr.models.convnextv2 import SIZES
from nextdetr.models.detection import DetectionModel
from nextdetr.models.graph import build_model
from nextdetr.models.modelfile import Row, parse_model_text
from nextdetr.models.names import inside_row, row_name, row_of
from nextdetr.models.rows import DECODERS

__all__ = ["Graft", "build_graft", "match_statistics", "plan_graft"]

STRIDES = (4, 8, 16, 32)  # of a ConvNeXt V2's maps with the indices 1 to 4
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, slots=True)
class Graft:
    """Model file of a detector on another backbone.

    Attributes:
        text: text of the new model file.
        rows: row numbers of the old head -> those of the new one.
        joints: new rows: replaced convolutions and adapters.
        pairs: (index of a map in the old detector, index of its counterpart in the new one): outputs of the joints, and
            inputs of the decoder.
    """

    text: str
    rows: dict[int, int]
    joints: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]


def plan_graft(source: DetectionModel, size: str, name: str) -> Graft:
    """Write the model file of a detector on a ConvNeXt V2.

    Args:
        source: the detector.
        size: size of the ConvNeXt V2, such as ``atto``.
        name: name of the detector, for the file's first line.

    Raises:
        ConfigError: there is no such size, or the head reads a map of a stride that the backbone lacks.
    """
    if size not in SIZES:
        raise ConfigError(f"there is no ConvNeXt V2 of size {size}; there are {', '.join(SIZES)}.")
    file = parse_model_text(source.text, name)
    writer = _Writer(source, file.rows)
    for row in file.rows[source.backbone_rows :]:
        writer.add(row)
    mapping = {key: value for key, value in file.mapping.items() if key not in ("backbone", "head")}
    mapping["normalize"] = "imagenet"  # as published and own ConvNeXt V2 weights expect
    head = yaml.safe_dump(mapping, sort_keys=False, allow_unicode=True)
    lines = [
        f"# {' '.join(name.split())} under a ConvNeXt V2 of size {size}, written by nextdetr graft.",
        head.strip(), "backbone:", f"  - [-1, 1, convnextv2_{size}, []] # maps 1 to 4: strides 4, 8, 16, 32", "head:",
        *writer.adapters, *writer.lines,
    ]  # fmt: skip
    return writer.graft("\n".join(lines) + "\n")


class _Writer:
    """Writes the head's rows with their indices after the new backbone."""

    def __init__(self, source: DetectionModel, rows: tuple[Row, ...]) -> None:
        self.source = source
        infos, count = source.row_infos, source.backbone_rows
        self.old = {i: stride for info in infos[:count] for i, stride in zip(info.writes, info.strides, strict=True)}
        # A backbone map is read by a convolution that can be replaced, or by something that needs an adapter.
        self.adapted: dict[int, int] = {}
        for row in rows[count:]:
            for index in infos[row.number].reads:
                if index in self.old and not self._is_projection(row):
                    self.adapted.setdefault(index, len(STRIDES) + 1 + len(self.adapted))
        self.adapters = [
            _line([self._backbone_map(old), 1, "Conv", [source.channels_of(old), 1, 1, None, 1, 1, False]])
            for old in self.adapted
        ]
        self.latest = len(STRIDES) + len(self.adapted)
        self.maps: dict[int, int] = {}
        self.lines: list[str] = []
        self.rows: dict[int, int] = {}
        self.joints = list(range(1, 1 + len(self.adapted)))
        self.pairs = list(self.adapted.items())

    def add(self, row: Row) -> None:
        """Write one row of the head."""
        info = self.source.row_infos[row.number]
        projection = self._is_projection(row) and info.reads[0] in self.old
        reads = [self._backbone_map(index) if projection else self._map(index) for index in info.reads]
        number = 1 + len(self.adapted) + len(self.lines)
        self.lines.append(_line([reads[0] if len(reads) == 1 else reads, row.repeats, row.name, list(row.arguments)]))
        self.rows[row.number] = number
        for index in info.writes:
            self.latest += 1
            self.maps[index] = self.latest
        if projection:
            self.joints.append(number)
            self.pairs.append((info.writes[0], self.latest))
        if row.name in DECODERS:
            read = list(zip(info.reads, reads, strict=True))
            self.pairs += [pair for pair in read if pair not in self.pairs]

    def graft(self, text: str) -> Graft:
        """Return the text."""
        return Graft(text, self.rows, tuple(self.joints), tuple(self.pairs))

    def _is_projection(self, row: Row) -> bool:
        """Whether a row is a single 1 x 1 convolution of one map, without groups."""
        module = getattr(self.source.rows[row.number], "conv", None)
        return row.name == "Conv" and module is not None and module.kernel_size == (1, 1) and module.groups == 1

    def _map(self, index: int) -> int:
        return self.adapted[index] if index in self.old else self.maps[index]

    def _backbone_map(self, index: int) -> int:
        stride = self.old[index]
        if stride not in STRIDES:
            raise ConfigError(
                f"the detector's head reads a map of stride {stride}, and a ConvNeXt V2 has those of stride "
                f"{', '.join(map(str, STRIDES))}: it cannot be grafted."
            )
        return 1 + STRIDES.index(stride)


def _line(row: list[Any]) -> str:
    return f"  - {json.dumps(row)}"  # JSON is YAML, and null is the dialect's None


@torch.no_grad()
def build_graft(graft: Graft, source: DetectionModel) -> DetectionModel:
    """Build the grafted detector: the old head's tensors, a random backbone and random joints.

    A joint that replaces a convolution keeps the scale and shift of its BatchNorm; see ``match_statistics``.

    Args:
        graft: result of ``plan_graft``.
        source: the same detector, not fused.

    Raises:
        ConfigError: a row has other channels on the new backbone, because the model file scales widths.
    """
    model = build_model(parse_model_text(graft.text, "the graft"), num_classes=source.num_classes)
    state, numbers = model.state_dict(), graft.rows
    for name, tensor in source.state_dict().items():
        row = row_of(name)
        if row not in numbers:
            continue
        number, inside = numbers[row], inside_row(name)
        if number in graft.joints and (inside == "conv.weight" or inside.endswith(_STATISTICS)):
            continue
        target = state[row_name(number, inside)]
        if target.shape != tensor.shape:
            raise ConfigError(
                f"the detector cannot be grafted: {name} is {list(tensor.shape)}, but {list(target.shape)} fit."
            )
        target.copy_(tensor)
    return model


@torch.no_grad()
def match_statistics(graft: Graft, source: DetectionModel, model: DetectionModel, images: Tensor) -> None:
    """Give the channels of each joint, in training, the mean and variance that they have in the old detector.

    Those in its BatchNorms are not enough: after a short training, the running statistics do not describe the maps yet, and
    an adapter has none. They are those before the activation, if there is one.

    Args:
        graft: result of ``plan_graft``.
        source: the old detector, in evaluation mode and not fused.
        model: result of ``build_graft``; its joints get other scales and shifts.
        images: as for ``DetectionModel.forward``, of a size that the old detector accepts.
    """
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def measure(row: int, values: Tensor) -> None:
        found[row] = torch.var_mean(values.float(), dim=(0, 2, 3), correction=0)

    replaced = {new: _norm(source, old) for old, new in graft.rows.items() if new in graft.joints}
    hooks = [
        norm.register_forward_hook(lambda _, __, output, row=row: measure(row, output)) for row, norm in replaced.items()
    ]
    try:
        maps = source._maps(images, len(source.rows) - 1, kept=tuple(old for old, _ in graft.pairs))
    finally:
        for hook in hooks:
            hook.remove()
    olds = {new: old for old, new in graft.pairs}
    for row in graft.joints:
        if row not in found:  # an adapter
            measure(row, maps[olds[model.row_infos[row].writes[0]]])
        variance, mean = found[row]
        norm = _norm(model, row)
        norm.weight.copy_(variance.sqrt())
        norm.bias.copy_(mean)


def _norm(model: DetectionModel, row: int) -> nn.BatchNorm2d:
    conv = model.rows[row]
    assert isinstance(conv, Conv)
    return conv.bn
