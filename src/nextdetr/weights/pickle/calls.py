"""The few functions that checkpoints call while being unpickled, implemented here on checked data.

Every copy is charged to the work limit, as a pickle may request it repeatedly from its memo.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import torch

from nextdetr.weights.pickle.stubs import StorageRecord, StorageType, Stub, StubClass, TensorRecord

__all__ = ["KNOWN", "Caller", "NumberKey", "bare_key", "is_count", "safe_key"]

_MAX_DIMENSIONS = 16
_MAX_KEY_TEXT = 1 << 10  # characters of a text inside a tuple used as a key
_LARGEST_KEY = 1 << 63
_SCALARS = (str, int, float, bytes, bool, type(None))
_KEYS = (*_SCALARS, Stub, StubClass, TensorRecord, StorageRecord, StorageType, torch.dtype)
_NUMPY_SCALARS = {
    "f2": "e",
    "f4": "f",
    "f8": "d",
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
    "b1": "?",
}


class Caller(Protocol):
    """Limits of the machine, for calls."""

    def charge(self, units: int) -> None:
        """Count work; refuse the file when there is too much."""

    def construct(self, function: Any, arguments: Any) -> Any:
        """Return the object that a call creates."""


def is_count(value: Any) -> bool:
    """Whether ``value`` is an integer that can be a number of elements."""
    return type(value) is int and 0 <= value < 1 << 62


class NumberKey:
    """A key whose hash a file could choose (a number, or a tuple of them), hashed as text instead, which is unpredictable.

    Python hashes a number to itself, so a file of a few hundred kilobytes could make all its keys collide, at quadratic
    cost. Text is hashed with a secret of the process.

    Attributes:
        value: the key.
    """

    __slots__ = ("_hash", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self._hash = hash(repr(value))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NumberKey) and self.value == other.value

    def __repr__(self) -> str:
        return repr(self.value)


def bare_key(key: Any) -> Any:
    """Return the key of a ``NumberKey``; other keys unchanged."""
    return key.value if isinstance(key, NumberKey) else key


def safe_key(value: Any) -> Any:
    """Return a key that is cheap to hash and whose hash no file can choose: ``value``, or a ``NumberKey`` of it.

    Raises:
        TypeError: there is none: the hash of a nested tuple can take forever, or overflow the stack.
    """
    if isinstance(value, NumberKey):
        return value
    if isinstance(value, tuple):
        if len(value) > _MAX_DIMENSIONS or not all(isinstance(item, _SCALARS) for item in value):
            raise TypeError("a key is a nested tuple")
        if any(isinstance(item, str) and len(item) > _MAX_KEY_TEXT for item in value):
            raise TypeError("a key is a tuple of long texts")
    elif not isinstance(value, _KEYS):
        raise TypeError(f"a key is of type {type(value).__name__}")
    numbers = value if isinstance(value, tuple) else (value,)
    if any(type(item) is int and abs(item) >= _LARGEST_KEY for item in numbers):
        raise TypeError("a key is a number of far too many digits")
    return NumberKey(value) if isinstance(value, tuple | int | float) and not isinstance(value, bool) else value


def _ordered_dict(caller: Caller, arguments: tuple[Any, ...]) -> Any:
    result: OrderedDict[Any, Any] = OrderedDict()
    pairs = arguments[0] if arguments else []
    if isinstance(pairs, dict):
        caller.charge(len(pairs))
        result.update(pairs)
    elif isinstance(pairs, list | tuple):
        caller.charge(len(pairs))
        for key, value in pairs:
            result[safe_key(key)] = value
    return result


def _sequence(kind: type) -> Callable[[Caller, tuple[Any, ...]], Any]:
    def call(caller: Caller, arguments: tuple[Any, ...]) -> Any:
        items = arguments[0] if arguments else ()
        if not isinstance(items, list | tuple | set | frozenset):
            raise TypeError("a list is made of something that has no items")
        caller.charge(len(items))
        return kind(map(safe_key if kind in (set, frozenset) else bare_key, items))

    return call


def _encoded(caller: Caller, arguments: tuple[Any, ...]) -> Any:
    text = arguments[0]
    if not isinstance(text, str) or arguments[1:] not in (("latin1",), ("latin-1",)):
        raise TypeError("bytes are written in an unknown way")
    caller.charge(len(text) // 8)
    return text.encode("latin1")


def _numpy_scalar(caller: Caller, arguments: tuple[Any, ...]) -> Any:
    kind, content = arguments[0], arguments[1] if len(arguments) > 1 else None
    name = kind.args[0] if isinstance(kind, Stub) and kind.args else None
    code = _NUMPY_SCALARS.get(name) if isinstance(name, str) else None
    if code is None or not isinstance(content, bytes) or len(content) != struct.calcsize("<" + code):
        return Stub("numpy.scalar")
    order = kind.state.get("__setstate__", (3, "<"))
    big = isinstance(order, tuple) and len(order) > 1 and order[1] == ">"
    return struct.unpack((">" if big else "<") + code, content)[0]


def _tensor(caller: Caller, arguments: tuple[Any, ...]) -> Any:
    storage, offset, size, stride = arguments[:4]
    dtype = arguments[6] if len(arguments) > 6 and isinstance(arguments[6], torch.dtype) else None
    if not isinstance(storage, StorageRecord) or not is_count(offset):
        raise TypeError("a tensor has no storage, or starts before it")
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) != len(stride):
        raise ValueError("a tensor has no shape")
    if len(size) > _MAX_DIMENSIONS or not all(map(is_count, (*size, *stride))):
        raise ValueError("a tensor has a negative or impossible size")
    numel = storage.numel
    if dtype is not None and dtype != storage.dtype:
        if storage.dtype != torch.uint8:
            raise ValueError("a tensor has another type than its storage")
        numel //= dtype.itemsize
    record = TensorRecord(storage, dtype or storage.dtype, offset, size, stride)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if record.numel and (last >= numel or record.numel > numel):
        raise ValueError(f"a tensor of size {list(size)} lies outside its storage of {numel} elements")
    return record


def _parameter(caller: Caller, arguments: tuple[Any, ...]) -> Any:
    return arguments[0]


def _typed(caller: Caller, arguments: tuple[Any, ...]) -> Any:
    return caller.construct(arguments[0], arguments[2])


def _reconstructed(caller: Caller, arguments: tuple[Any, ...]) -> Any:
    return caller.construct(arguments[0], ())


KNOWN: dict[str, Callable[[Caller, tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.Size": _sequence(tuple),
    "_codecs.encode": _encoded,
    "copyreg._reconstructor": _reconstructed,
    "copy_reg._reconstructor": _reconstructed,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
} | {
    f"{module}.{name}": call
    for module in ("builtins", "__builtin__")
    for name, call in {
        "dict": _ordered_dict,
        "frozenset": _sequence(frozenset),
        "list": _sequence(list),
        "set": _sequence(set),
        "tuple": _sequence(tuple),
    }.items()
}
