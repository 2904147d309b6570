"""Types of a model file's rows: arguments, inputs and outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

__all__ = [
    "CHANNELS", "NONE", "Argument", "Built", "Layer", "RowContext", "RowError", "check_first", "check_kernel", "repeated",
    "split_options",
]  # fmt: skip

NONE = type(None)


class RowError(Exception):
    """A row cannot be built; ``graph`` adds file, row and line."""


@dataclass(frozen=True, slots=True)
class RowContext:
    """Inputs of a row, besides its arguments.

    Attributes:
        channels: channels of each input map.
        strides: their strides.
        repeats: repeats after depth scaling.
        num_classes: number of classes.
        width: factor of the channels of scaled layers.
        max_channels: limit on the channels before scaling.
        eps: BatchNorm's epsilon.
        drop_path: stochastic depth of a backbone's last block.
        first: whether the row is the first one and reads the image.
    """

    channels: list[int]
    strides: list[int]
    repeats: int
    num_classes: int
    width: float
    max_channels: int
    eps: float
    drop_path: float
    first: bool = False

    def scaled(self, channels: int) -> int:
        """Return channels after width scaling, a multiple of 8 (even if the width is 1, as in the dialect)."""
        return math.ceil(min(channels, self.max_channels) * self.width / 8) * 8


@dataclass(frozen=True, slots=True)
class Built:
    """A row's module and its output maps.

    Attributes:
        module: the layer.
        channels, strides: one per output map; empty for a decoder.
        arguments: arguments as shown by ``info``, with the input's channels inserted.
        weights: file from which the row's weights are to be loaded.
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
        name: name for messages.
        kinds: allowed types; a list's items must be of one of the others.
        required: whether it must be given.
        least: smallest number allowed.
        most: largest number allowed; the default only keeps a typo from filling the memory.
    """

    name: str
    kinds: tuple[type, ...]
    required: bool = False
    least: float | None = None
    most: float = 1 << 16

    def check(self, value: Any) -> None:
        """Raise RowError unless ``value`` is valid for this argument."""
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
        # Both conditions are written so that NaN fails them.
        if self.least is not None and not value >= self.least:
            raise RowError(f"the argument {self.name} must be at least {self.least}, not {value!r}.")
        if not value <= self.most:
            raise RowError(f"the argument {self.name} must be at most {self.most}, not {value!r}.")


@dataclass(frozen=True, slots=True)
class Layer:
    """An entry of the layer table.

    Attributes:
        arguments: arguments in order.
        build: builds the module.
        inputs: number of input maps; None for any number.
        repeatable: whether a row may have more than one repeat; ``build`` decides what that means.
        title: name in ``info``.
        options: settings of a mapping in place of the last argument, by name.
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


def split_options(arguments: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Separate the positional arguments from the mapping that may come last."""
    if arguments and isinstance(arguments[-1], dict):
        return arguments[:-1], arguments[-1]
    return arguments, {}


def check_first(context: RowContext) -> None:
    """Raise RowError unless the row, a whole backbone, is the first one: its strides are relative to the image."""
    if not context.first:
        raise RowError("a backbone must be the first row and read the image (from -1).")


def check_kernel(kernel: int, stride: int, padding: int | None, dilation: int = 1) -> None:
    """Check that a convolution's output has 1 / stride of the size, as every later row and the decoder assume.

    Args:
        kernel: side of the kernel.
        stride: of the convolution.
        padding: None for the fitting one.
        dilation: dilation of the kernel.

    Raises:
        RowError: the map would have another size; the message has the fitting padding, if there is one.
    """
    reach = dilation * (kernel - 1)
    fitting = reach // 2  # there may be one between the kernel's reach minus a stride and the reach
    given = fitting if padding is None else padding
    if reach - stride < 2 * given <= reach:
        return
    what = f"a kernel of {kernel}" + (f" with dilation {dilation}" if dilation > 1 else "")
    if reach - stride < 2 * fitting:
        raise RowError(
            f"{what} and stride {stride} needs a padding of {fitting}, not {given}, or its map has another size."
        )
    raise RowError(f"{what} cannot keep the size of a map at stride {stride}: take an odd kernel.")


def repeated(context: RowContext, make: Callable[[int], nn.Module]) -> nn.Module:
    """Return the module from ``make(0)``, or a sequence with as many as the row has repeats."""
    if context.repeats == 1:
        return make(0)
    return nn.Sequential(*(make(number) for number in range(context.repeats)))


#: The first argument of most layers.
CHANNELS = Argument("channels", (int,), required=True, least=1)
