"""Replacements for the objects of a checkpoint's pickle: tensor records, and inert stubs for all other classes.

Nothing here is ever called on behalf of the file: a stub stores the file's data (arguments, attributes, items).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["DTYPES", "STORAGES", "StorageRecord", "StorageType", "Stub", "StubClass", "TensorRecord", "runs_code"]

DTYPES: dict[str, torch.dtype] = {
    name: value for name in sorted(vars(torch)) if isinstance(value := getattr(torch, name), torch.dtype)
}

STORAGES: dict[str, torch.dtype] = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
    "UntypedStorage": torch.uint8,
}

# Names that only an attack needs. Others become stubs, which are just as inert: this list only turns a harmless attack into
# an explicit refusal.
_HOSTILE_MODULES = frozenset(
    [
        "asyncio",
        "bdb",
        "cffi",
        "code",
        "codeop",
        "commands",
        "concurrent",
        "cProfile",
        "ctypes",
        "_ctypes",
        "distutils",
        "doctest",
        "ensurepip",
        "fileinput",
        "ftplib",
        "http",
        "idlelib",
        "imp",
        "importlib",
        "marshal",
        "mmap",
        "nt",
        "os",
        "pdb",
        "pickle",
        "_pickle",
        "cPickle",
        "pip",
        "platform",
        "popen2",
        "posix",
        "_posixsubprocess",
        "profile",
        "pty",
        "pydoc",
        "requests",
        "runpy",
        "shutil",
        "signal",
        "site",
        "smtplib",
        "socket",
        "ssl",
        "subprocess",
        "sys",
        "tempfile",
        "timeit",
        "trace",
        "urllib",
        "urllib2",
        "venv",
        "webbrowser",
        "zipimport",
    ]
)
_HOSTILE_BUILTINS = frozenset(
    [
        "__build_class__",
        "__import__",
        "apply",
        "breakpoint",
        "compile",
        "delattr",
        "eval",
        "exec",
        "execfile",
        "exit",
        "file",
        "globals",
        "help",
        "input",
        "locals",
        "memoryview",
        "open",
        "quit",
        "reload",
        "setattr",
        "vars",
    ]
)
_HOSTILE_NAMES = frozenset(
    [
        ("io", "open"),
        ("_io", "open"),
        ("_io", "FileIO"),
        ("io", "FileIO"),
        ("types", "CodeType"),
        ("types", "FunctionType"),
        ("torch", "load"),
        ("torch.serialization", "load"),
        ("torch.hub", "load"),
        ("numpy", "load"),
        ("joblib", "load"),
    ]
)


def runs_code(module: str, name: str) -> bool:
    """Whether a pickle that names ``module.name`` can only be trying to run code."""
    if module in ("builtins", "__builtin__"):
        return name.split(".")[0] in _HOSTILE_BUILTINS
    walks = "." in name and name.split(".")[0] in _HOSTILE_MODULES  # torch + "os.system"
    return walks or module.split(".")[0] in _HOSTILE_MODULES or (module, name) in _HOSTILE_NAMES


@dataclass(frozen=True, slots=True, eq=False)
class StubClass:
    """Stub for a class or function named by the file; it is never looked up.

    Attributes:
        name: dotted name, such as ``torch.nn.modules.conv.Conv2d``.
    """

    name: str


@dataclass(slots=True, eq=False, repr=False)
class Stub:
    """Stub for an object: the file's data, and nothing else.

    Attributes:
        name: dotted name of its class.
        args: constructor arguments.
        state: attributes by name.
        items: key -> value, if it is a mapping.
        elements: values, if it is a list or set.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: dict[Any, Any] = field(default_factory=dict)
    items: dict[Any, Any] | None = None
    elements: list[Any] | None = None

    def __repr__(self) -> str:
        return f"<stub of {self.name}>"


@dataclass(frozen=True, slots=True, eq=False)
class StorageType:
    """Stub for ``torch.FloatStorage`` and similar classes.

    Attributes:
        dtype: type of the elements.
    """

    dtype: torch.dtype


@dataclass(frozen=True, slots=True, eq=False)
class StorageRecord:
    """A storage referenced by the pickle.

    Attributes:
        key: its name in the file.
        dtype: type of its elements.
        numel: number of its elements according to the pickle; the reader compares it with the file.
    """

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TensorRecord:
    """A tensor not read yet, known to lie within its storage as stated in the pickle.

    Attributes:
        storage: storage of its elements.
        dtype: type of its elements; differs from the storage's only if that is bytes.
        offset: first element.
        size, stride: as in torch, in elements.
    """

    storage: StorageRecord
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for length in self.size:
            count *= length
        return count

    def __repr__(self) -> str:
        return f"<tensor {list(self.size)} {self.dtype}>"
