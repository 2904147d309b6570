"""What a row of a model file may be: a plain table of layer names, each with its arguments and how it is built.

Channels and strides are computed from the arguments; nothing is run to learn them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from nextdetr.layers.attention import AIFI
from nextdetr.layers.conv import Concat, Conv
from nextdetr.layers.rep import RepC3
from nextdetr.models.convnextv2 import SIZES, convnextv2
from nextdetr.models.decoder import RTDETRDecoder
from nextdetr.models.dfine import DFINEDecoder

__all__ = ["DECODERS", "LAYERS", "Argument", "Built", "Layer", "RowContext", "RowError"]


class RowError(Exception):
    """A row cannot be built; ``graph`` adds file, row and line."""


@dataclass(frozen=True, slots=True)
class RowContext:
    """What a row is built from, besides its arguments.

    Attributes:
        channels: channels of each map it reads.
        strides: their strides.
        repeats: after depth scaling.
        num_classes: number of classes.
        width: factor of the channels of scaled layers.
        max_channels: limit of the channels before scaling.
        eps: BatchNorm's epsilon.
        drop_path: stochastic depth of a backbone's last block.
    """

    channels: list[int]
    strides: list[int]
    repeats: int
    num_classes: int
    width: float
    max_channels: int
    eps: float
    drop_path: float

    def scaled(self, channels: int) -> int:
        """Return channels after width scaling, a multiple of 8."""
        if self.width == 1.0 and channels <= self.max_channels:
            return channels
        return math.ceil(min(channels, self.max_channels) * self.width / 8) * 8


@dataclass(frozen=True, slots=True)
class Built:
    """A row's module and the maps that it yields.

    Attributes:
        module: the layer.
        channels, strides: one per map; empty for a decoder.
        arguments: arguments as ``info`` shows them, the input's channels inserted.
        weights: file that the row's weights are to be loaded from.
    """

    module: nn.Module
    channels: list[int]
    strides: list[int]
    arguments: list[Any] = field(default_factory=list)
    weights: str | None = None


@dataclass(frozen=True, slots=True)
class Argument:
    """One positional argument of a row.

    Attributes:
        name: for messages.
        kinds: what types it may have; a list's items must be of one of the others.
        required: whether it must be given.
        least: smallest number allowed.
        most: largest number allowed; the default only keeps a slip of the pen from filling the memory.
    """

    name: str
    kinds: tuple[type, ...]
    required: bool = False
    least: float | None = None
    most: float = 1 << 16

    def check(self, value: Any) -> None:
        """Raise RowError unless ``value`` is one that this argument takes."""
        fits = isinstance(value, self.kinds) and not (isinstance(value, bool) and bool not in self.kinds)
        if not fits:
            wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in self.kinds)
            raise RowError(f"the argument {self.name} must be {wanted}, not {value!r}.")
        if isinstance(value, list):
            for item in value:
                if isinstance(item, list):
                    raise RowError(f"the argument {self.name} must be a list of plain values, not {value!r}.")
                self.check(item)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return
        # Both are worded so that "not a number" fails them.
        if self.least is not None and not value >= self.least:
            raise RowError(f"the argument {self.name} must be at least {self.least}, not {value!r}.")
        if not value <= self.most:
            raise RowError(f"the argument {self.name} must be at most {self.most}, not {value!r}.")


@dataclass(frozen=True, slots=True)
class Layer:
    """An entry of the table.

    Attributes:
        arguments: what it takes, in order.
        build: makes the module.
        inputs: how many maps it reads; None for any number.
        repeatable: whether its module takes ``repeats`` itself (otherwise a repeated row is a sequence of modules).
        title: name in ``info``.
        options: what a mapping in the place of the last argument may set, by name.
    """

    arguments: tuple[Argument, ...]
    build: Callable[[RowContext, list[Any]], Built]
    inputs: int | None = 1
    repeatable: bool = False
    title: str | None = None
    options: tuple[Argument, ...] = ()

    def check(self, arguments: list[Any], inputs: int) -> None:
        """Check number and types of the arguments, and the number of maps.

        Raises:
            RowError: something does not fit.
        """
        if self.options and arguments and isinstance(arguments[-1], dict):
            self._check_options(arguments[-1])
            arguments = arguments[:-1]
        required = sum(argument.required for argument in self.arguments)
        if not required <= len(arguments) <= len(self.arguments):
            names = ", ".join(a.name if a.required else f"[{a.name}]" for a in self.arguments) or "none"
            raise RowError(f"it has {len(arguments)} arguments, but the layer takes these: {names}.")
        for argument, value in zip(self.arguments, arguments, strict=False):
            argument.check(value)
        if self.inputs is not None and inputs != self.inputs:
            raise RowError(f"it reads {inputs} maps, but the layer takes {self.inputs}.")

    def _check_options(self, given: dict[Any, Any]) -> None:
        known = {option.name: option for option in self.options}
        for name, value in given.items():
            if name not in known:
                raise RowError(f"it has no option {name!r}; there are {', '.join(known)}.")
            known[name].check(value)


def _backbone(size: str) -> Callable[[RowContext, list[Any]], Built]:
    def build(context: RowContext, arguments: list[Any]) -> Built:
        if context.channels != [3]:
            raise RowError("a backbone must be the first row and read the image (from -1).")
        module = convnextv2(size, drop_path=context.drop_path)
        return Built(module, module.channels, module.strides, list(arguments), arguments[0] if arguments else None)

    return build


def _conv(context: RowContext, arguments: list[Any]) -> Built:
    c1, c2 = context.channels[0], context.scaled(arguments[0])
    rest = list(arguments[1:])
    groups = rest[3] if len(rest) > 3 else 1
    if c1 % groups or c2 % groups:
        raise RowError(f"{groups} groups divide neither evenly: {c1} channels come in, {c2} go out.")
    stride = rest[1] if len(rest) > 1 else 1
    module = _repeat(context, lambda k: Conv(c1 if k == 0 else c2, c2, *rest, eps=context.eps))
    return Built(module, [c2], [context.strides[0] * stride**context.repeats], [c1, c2, *rest])


def _aifi(context: RowContext, arguments: list[Any]) -> Built:
    channels = context.channels[0]
    heads = arguments[1] if len(arguments) > 1 else 8
    if channels % heads or channels % 4:
        raise RowError(f"{channels} channels come in; they must be a multiple of 4 and of the {heads} heads.")
    module = _repeat(context, lambda _: AIFI(channels, *arguments))
    return Built(module, [channels], context.strides, [channels, *arguments])


def _upsample(context: RowContext, arguments: list[Any]) -> Built:
    size, factor, mode = [*arguments, *[None, "nearest"][len(arguments) - 1 :]] if len(arguments) < 3 else arguments
    if size is not None or factor is None:
        raise RowError("only a factor is supported: [None, 2, 'nearest'].")
    if mode not in ("nearest", "bilinear"):
        raise RowError(f"the mode must be 'nearest' or 'bilinear', not {mode!r}.")
    stride = context.strides[0]
    if factor != int(factor) or stride % int(factor):
        raise RowError(f"a map of stride {stride} cannot be enlarged {factor}-fold.")
    module = nn.Upsample(None, float(factor), mode)
    return Built(module, context.channels, [stride // int(factor)], [size, factor, mode])


def _concat(context: RowContext, arguments: list[Any]) -> Built:
    dimension = arguments[0] if arguments else 1
    if dimension != 1:
        raise RowError(f"maps are joined along their channels, dimension 1, not {dimension}.")
    if len(set(context.strides)) > 1:
        raise RowError(f"the maps have strides {' and '.join(map(str, context.strides))}; they must be equal.")
    return Built(Concat(1), [sum(context.channels)], context.strides[:1], [dimension])


def _rep_c3(context: RowContext, arguments: list[Any]) -> Built:
    c1, c2, rest = context.channels[0], context.scaled(arguments[0]), arguments[1:]
    if rest and int(c2 * rest[0]) < 1:
        raise RowError(f"a width inside of {rest[0]} times {c2} channels leaves none.")
    module = RepC3(c1, c2, context.repeats, *rest, eps=context.eps)
    return Built(module, [c2], context.strides, [c1, c2, context.repeats, *rest])


def _decoder(kind: Callable[..., RTDETRDecoder]) -> Callable[[RowContext, list[Any]], Built]:
    def build(context: RowContext, arguments: list[Any]) -> Built:
        nc, *rest = arguments
        classes = context.num_classes if nc == "nc" else nc
        if classes != context.num_classes:
            raise RowError(f"it has {classes} classes, but the model has {context.num_classes}; write nc.")
        if sorted(context.strides) != context.strides:
            raise RowError(f"the maps have strides {context.strides}; the finest must come first.")
        options = rest.pop() if rest and isinstance(rest[-1], dict) else {}
        module = kind(classes, context.channels, *rest, **options, eps=context.eps)
        return Built(module, [], [], [classes, context.channels, *arguments[1:]])

    return build


def _repeat(context: RowContext, make: Callable[[int], nn.Module]) -> nn.Module:
    if context.repeats == 1:
        return make(0)
    return nn.Sequential(*(make(number) for number in range(context.repeats)))


NONE = type(None)
_CHANNELS = Argument("channels", (int,), required=True, least=1)
_DENSE = Argument("dense", (bool,))
_DECODER = (
    Argument("classes", (int, str), required=True, least=1),
    Argument("hidden width", (int,), least=4),
    Argument("queries", (int,), least=1),
    Argument("points", (int, list), least=1),
    Argument("heads", (int,), least=1),
    Argument("layers", (int,), least=1),
    Argument("feed-forward width", (int,), least=1),
    Argument("dropout", (int, float), least=0, most=1),
)

#: Names that a model file may use, and nothing else.
LAYERS: Mapping[str, Layer] = {
    **{f"convnextv2_{size}": Layer((Argument("weights", (str,)),), _backbone(size)) for size in SIZES},
    "Conv": Layer(
        (
            _CHANNELS,
            Argument("kernel", (int,), least=1),
            Argument("stride", (int,), least=1),
            Argument("padding", (int, NONE), least=0),
            Argument("groups", (int,), least=1),
            Argument("dilation", (int,), least=1),
            Argument("activation", (bool, NONE)),
        ),
        _conv,
    ),
    "AIFI": Layer(
        (
            Argument("feed-forward width", (int,), least=1),
            Argument("heads", (int,), least=1),
            Argument("dropout", (int, float), least=0, most=1),
        ),
        _aifi,
    ),
    "nn.Upsample": Layer(
        (
            Argument("size", (int, NONE), required=True),
            Argument("factor", (int, float, NONE), least=1),
            Argument("mode", (str,)),
        ),
        _upsample,
        title="Upsample",
    ),
    "Concat": Layer((Argument("dimension", (int,)),), _concat, inputs=None),
    "RepC3": Layer((_CHANNELS, Argument("width inside", (int, float), least=0.01)), _rep_c3, repeatable=True),
    "RTDETRDecoder": Layer(_DECODER, _decoder(RTDETRDecoder), inputs=None, options=(_DENSE,)),
    "DFINEDecoder": Layer(
        _DECODER,
        _decoder(DFINEDecoder),
        inputs=None,
        options=(
            Argument("bins", (int,), least=4, most=512),
            Argument("scale", (int, float), least=0.01, most=1000),
            _DENSE,
        ),
    ),
}

DECODERS = ("RTDETRDecoder", "DFINEDecoder")
"""Names of which one, and only one, stands in the last row."""
