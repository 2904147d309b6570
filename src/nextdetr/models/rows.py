"""Rows of a model file: a plain table of layer names, each with its arguments and builder.

Channels and strides are computed from the arguments; nothing is run to find them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from nextdetr.layers.attention import AIFI
from nextdetr.layers.conv import Add, Concat, Conv
from nextdetr.layers.rep import RepC3
from nextdetr.models.convnextv2 import SIZES, convnextv2
from nextdetr.models.decoder import RTDETRDecoder
from nextdetr.models.deim import DEIMDecoder
from nextdetr.models.dfine import DFINEDecoder
from nextdetr.models.rows_stock import STOCK_LAYERS
from nextdetr.models.rowtypes import (
    CHANNELS,
    NONE,
    Argument,
    Built,
    Layer,
    RowContext,
    RowError,
    check_first,
    check_kernel,
    repeated,
    split_options,
)

__all__ = ["DECODERS", "LAYERS", "Argument", "Built", "Layer", "RowContext", "RowError"]


def _backbone(size: str) -> Callable[[RowContext, list[Any]], Built]:
    def build(context: RowContext, arguments: list[Any]) -> Built:
        check_first(context)
        module = convnextv2(size, drop_path=context.drop_path)
        return Built(module, module.channels, module.strides, list(arguments), arguments[0] if arguments else None)

    return build


def _conv(context: RowContext, arguments: list[Any]) -> Built:
    c1, c2 = context.channels[0], context.scaled(arguments[0])
    rest = list(arguments[1:])
    groups = rest[3] if len(rest) > 3 else 1
    if c1 % groups or c2 % groups:
        raise RowError(f"{groups} groups divide neither evenly: {c1} channels come in, {c2} go out.")
    given = dict(zip(("kernel", "stride", "padding", "groups", "dilation"), rest, strict=False))
    stride = given.get("stride", 1)
    check_kernel(given.get("kernel", 1), stride, given.get("padding"), given.get("dilation", 1))
    module = repeated(context, lambda k: Conv(c1 if k == 0 else c2, c2, *rest, eps=context.eps))
    return Built(module, [c2], [context.strides[0] * stride**context.repeats], [c1, c2, *rest])


def _aifi(context: RowContext, arguments: list[Any]) -> Built:
    channels = context.channels[0]
    heads = arguments[1] if len(arguments) > 1 else 8
    if channels % heads or channels % 4:
        raise RowError(f"{channels} channels come in; they must be a multiple of 4 and of the {heads} heads.")
    module = repeated(context, lambda _: AIFI(channels, *arguments))
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


def _add(context: RowContext, arguments: list[Any]) -> Built:
    for name, values in (("strides", context.strides), ("channels", context.channels)):
        if len(set(values)) > 1:
            raise RowError(f"the maps have {name} {' and '.join(map(str, values))}; they must be equal.")
    return Built(Add(), context.channels[:1], context.strides[:1], [])


def _rep_c3(context: RowContext, arguments: list[Any]) -> Built:
    c1, c2, rest = context.channels[0], context.scaled(arguments[0]), arguments[1:]
    if rest and int(c2 * rest[0]) < 1:
        raise RowError(f"a width inside of {rest[0]} times {c2} channels leaves none.")
    module = RepC3(c1, c2, context.repeats, *rest, eps=context.eps)
    return Built(module, [c2], context.strides, [c1, c2, context.repeats, *rest])


def _decoder(kind: Callable[..., RTDETRDecoder]) -> Callable[[RowContext, list[Any]], Built]:
    def build(context: RowContext, arguments: list[Any]) -> Built:
        (nc, *rest), options = split_options(arguments)
        classes = context.num_classes if nc == "nc" else nc
        if classes != context.num_classes:
            raise RowError(f"it has {classes} classes, but the model has {context.num_classes}; write nc.")
        if sorted(context.strides) != context.strides:
            raise RowError(f"the maps have strides {context.strides}; the finest must come first.")
        module = kind(classes, context.channels, *rest, **options, eps=context.eps)
        return Built(module, [], [], [classes, context.channels, *arguments[1:]])

    return build


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

_EDGES = (
    Argument("bins", (int,), least=4, most=512),
    Argument("scale", (int, float), least=0.01, most=1000),
    Argument("project", (bool,)),
)

#: Names that a model file may use, and no others.
LAYERS: Mapping[str, Layer] = {
    **{f"convnextv2_{size}": Layer((Argument("weights", (str,)),), _backbone(size)) for size in SIZES},
    "Conv": Layer(
        (
            CHANNELS,
            Argument("kernel", (int,), least=1),
            Argument("stride", (int,), least=1),
            Argument("padding", (int, NONE), least=0),
            Argument("groups", (int,), least=1),
            Argument("dilation", (int,), least=1),
            Argument("activation", (bool, NONE)),
        ),
        _conv,
        repeatable=True,
    ),
    "AIFI": Layer(
        (
            Argument("feed-forward width", (int,), least=1),
            Argument("heads", (int,), least=1),
            Argument("dropout", (int, float), least=0, most=1),
        ),
        _aifi,
        repeatable=True,
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
    "Add": Layer((), _add, inputs=None),
    "RepC3": Layer((CHANNELS, Argument("width inside", (int, float), least=0.01)), _rep_c3, repeatable=True),
    "RTDETRDecoder": Layer(_DECODER, _decoder(RTDETRDecoder), inputs=None, options=(_DENSE,)),
    "DFINEDecoder": Layer(
        _DECODER, _decoder(DFINEDecoder), inputs=None, options=(*_EDGES, Argument("act", (str,)), _DENSE)
    ),
    "DEIMDecoder": Layer(
        _DECODER,
        _decoder(DEIMDecoder),
        inputs=None,
        options=(*_EDGES, Argument("gate", (bool,)), Argument("share", (bool,)), _DENSE),
    ),
    **STOCK_LAYERS,
}

DECODERS = ("RTDETRDecoder", "DFINEDecoder", "DEIMDecoder")
"""Names of the decoders, exactly one of which is in the last row."""
