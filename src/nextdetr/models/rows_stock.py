"""Rows of stock models: blocks of HGNetV2 and ResNet, the official ResNet-vd as a whole, D-FINE's fusion block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from nextdetr.layers.conv import DWConv, PooledAdd
from nextdetr.layers.rep import RepNCSPELAN4
from nextdetr.models.hgnetv2 import HGBlock, HGStem
from nextdetr.models.resnet import VD_SIZES, ResNetLayer, resnetvd
from nextdetr.models.rowtypes import (
    CHANNELS,
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

__all__ = ["STOCK_LAYERS"]


def _dw_conv(context: RowContext, arguments: list[Any]) -> Built:
    c1, c2, rest = context.channels[0], context.scaled(arguments[0]), arguments[1:]
    given = dict(zip(("kernel", "stride", "dilation"), rest, strict=False))
    stride = given.get("stride", 1)
    check_kernel(given.get("kernel", 1), stride, None, given.get("dilation", 1))
    module = repeated(context, lambda k: DWConv(c1 if k == 0 else c2, c2, *rest, eps=context.eps))
    return Built(module, [c2], [context.strides[0] * stride**context.repeats], [c1, c2, *rest])


def _hg_stem(context: RowContext, arguments: list[Any]) -> Built:
    plain, options = split_options(arguments)
    c1, (cm, c2) = context.channels[0], plain
    return Built(HGStem(c1, cm, c2, **options, eps=context.eps), [c2], [context.strides[0] * 4], [c1, *arguments])


def _hg_block(context: RowContext, arguments: list[Any]) -> Built:
    plain, options = split_options(arguments)
    c1, (cm, c2, *rest) = context.channels[0], plain
    k, *flags = rest or [3]
    if k % 2 == 0:
        raise RowError(f"the kernel must be odd, or the maps that are joined differ in size; it is {k}.")
    module = HGBlock(c1, cm, c2, k, context.repeats, *flags, **options, eps=context.eps)
    shown = [c1, cm, c2, k, context.repeats, *flags, *([options] if options else [])]
    return Built(module, [c2], context.strides, shown)


def _avg_pool(context: RowContext, arguments: list[Any]) -> Built:
    kernel, stride, padding = [*arguments, *[arguments[0], 0][len(arguments) - 1 :]]
    check_kernel(kernel, stride, padding)
    if 2 * padding > kernel:
        raise RowError(f"a padding of {padding} is more than half of the kernel of {kernel}.")
    return Built(nn.AvgPool2d(kernel, stride, padding), context.channels, [context.strides[0] * stride], list(arguments))


def _pooled_add(context: RowContext, arguments: list[Any]) -> Built:
    c1, c2 = context.channels[0], context.scaled(arguments[0])
    return Built(PooledAdd(c1, c2, eps=context.eps), [c2], context.strides, [c1, c2])


def _elan(context: RowContext, arguments: list[Any]) -> Built:
    c1, (c2, split, inner) = context.channels[0], arguments
    if split % 2:
        raise RowError(f"{split} channels cannot be split into two halves.")
    module = RepNCSPELAN4(c1, c2, split, inner, context.repeats, eps=context.eps)
    return Built(module, [c2], context.strides, [c1, c2, split, inner, context.repeats])


def _resnet_layer(context: RowContext, arguments: list[Any]) -> Built:
    c1 = arguments[0]
    if c1 != context.channels[0]:
        raise RowError(f"its first argument says that {c1} channels come in, but there are {context.channels[0]}.")
    module = ResNetLayer(*arguments, eps=context.eps)
    return Built(module, [module.channels], [context.strides[0] * module.stride], list(arguments))


def _resnet_vd(size: str) -> Callable[[RowContext, list[Any]], Built]:
    def build(context: RowContext, arguments: list[Any]) -> Built:
        check_first(context)
        module = resnetvd(size, eps=context.eps)
        return Built(module, module.channels, module.strides, list(arguments), arguments[0] if arguments else None)

    return build


_HIDDEN = Argument("channels inside", (int,), required=True, least=1)
_AFFINE = Argument("affine", (bool,))

#: Part of the table of ``rows``.
STOCK_LAYERS: Mapping[str, Layer] = {
    "DWConv": Layer(
        (
            CHANNELS,
            Argument("kernel", (int,), least=1),
            Argument("stride", (int,), least=1),
            Argument("dilation", (int,), least=1),
            Argument("activation", (bool,)),
        ),
        _dw_conv,
        repeatable=True,
    ),
    "HGStem": Layer(
        (
            Argument("channels inside", (int,), required=True, least=2),
            CHANNELS,
        ),
        _hg_stem,
        options=(_AFFINE,),
    ),
    "HGBlock": Layer(
        (
            _HIDDEN,
            Argument("channels", (int,), required=True, least=2),
            Argument("kernel", (int,), least=1),
            Argument("light", (bool,)),
            Argument("shortcut", (bool,)),
        ),
        _hg_block,
        repeatable=True,
        options=(_AFFINE,),
    ),
    "nn.AvgPool2d": Layer(
        (
            Argument("kernel", (int,), required=True, least=1),
            Argument("stride", (int,), least=1),
            Argument("padding", (int,), least=0),
        ),
        _avg_pool,
        title="AvgPool2d",
    ),
    "PooledAdd": Layer((CHANNELS,), _pooled_add),
    "RepNCSPELAN4": Layer(
        (
            CHANNELS,
            Argument("channels that are split", (int,), required=True, least=2),
            Argument("channels of a branch", (int,), required=True, least=1),
        ),
        _elan,
        repeatable=True,
    ),
    "ResNetLayer": Layer(
        (
            Argument("channels that come in", (int,), required=True, least=1),
            _HIDDEN,
            Argument("stride", (int,), least=1),
            Argument("first", (bool,)),
            Argument("blocks", (int,), least=1, most=1000),
            Argument("expansion", (int,), least=1),
        ),
        _resnet_layer,
    ),
    **{f"resnetvd_{size}": Layer((Argument("weights", (str,)),), _resnet_vd(size)) for size in VD_SIZES},
}
