"""What stands in for the objects of a checkpoint's pickle: records of tensors, and inert stubs of all other classes.

Nothing here is ever called on behalf of the file: a stub keeps what the file said (arguments, attributes, items) as data.
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

# A checkpoint has no use for these, an attack has. Other names are stubs, and as inert: this list only turns an attack
# that would have had no effect into a refusal that says so.
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
    """Whether a pickle that names ``module.name`` can only want to run code."""
    if module in ("builtins", "__builtin__"):
        return name.split(".")[0] in _HOSTILE_BUILTINS
    walks = "." in name and name.split(".")[0] in _HOSTILE_MODULES  # torch + "os.system"
    return walks or module.split(".")[0] in _HOSTILE_MODULES or (module, name) in _HOSTILE_NAMES


@dataclass(frozen=True, slots=True, eq=False)
class StubClass:
    """Stands for a class or a function that the file names; it is never looked up.

    Attributes:
        name: dotted name, such as ``torch.nn.modules.conv.Conv2d``.
    """

    name: str


@dataclass(slots=True, eq=False, repr=False)
class Stub:
    """Stands for an object: what the file says of it, and nothing else.

    Attributes:
        name: dotted name of its class.
        args: arguments of its construction.
        state: its attributes by name.
        items: key -> value, if it is a mapping.
        elements: values, if it is a list or a set.
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
    """Stands for ``torch.FloatStorage`` and its like.

    Attributes:
        dtype: type of the elements.
    """

    dtype: torch.dtype


@dataclass(frozen=True, slots=True, eq=False)
class StorageRecord:
    """A storage that the pickle refers to.

    Attributes:
        key: its name in the file.
        dtype: type of its elements.
        numel: number of its elements, as the pickle states it; the reader compares it with the file.
    """

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TensorRecord:
    """A tensor that has not been read yet, already known to lie within its storage as the pickle states it.

    Attributes:
        storage: where its elements are.
        dtype: type of its elements; another one than the storage's only where that is of bytes.
        offset: first element.
        size, stride: as torch has them, in elements.
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
