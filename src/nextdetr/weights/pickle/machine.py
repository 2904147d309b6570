"""Our own pickle machine for checkpoints: it builds tensor records, plain containers and stubs, and calls nothing.

Python's ``Unpickler`` with a restricted ``find_class`` still lets a file call whatever is allowed, grow the memo, and hash
deep keys; here every opcode does only what is written below. Opcodes and their arguments are decoded by the standard
library's ``pickletools``, which only reads. Work and memory are bounded by the size of the pickle and by ``MAX_WORK``.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import IO, Any, NoReturn

from nextdetr.errors import WeightsError
from nextdetr.weights.pickle.calls import KNOWN, is_count, safe_key
from nextdetr.weights.pickle.stubs import (
    DTYPES,
    STORAGES,
    StorageRecord,
    StorageType,
    Stub,
    StubClass,
    TensorRecord,
    runs_code,
)

__all__ = ["MAX_PICKLE", "MAX_WORK", "Machine"]

MAX_PICKLE = 64 << 20  # bytes; the pickle of a large detector with its optimizer has about one million
MAX_WORK = 2_000_000  # opcodes; the same pickle has about 300,000
_PUSH_ARGUMENT = frozenset(
    [
        "INT",
        "LONG",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
    ]
)
_PUSH_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
_GET = frozenset(("GET", "BINGET", "LONG_BINGET"))
_PUT = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))


class Machine:
    """Runs one pickle.

    Args:
        source: name of the file, for messages.

    Attributes:
        names: dotted names of the classes and functions behind stubs, in order of appearance.
        storages: storages referenced by the pickles, by key.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.names: dict[str, None] = {}
        self.storages: dict[str, StorageRecord] = {}
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[str, Any] = {}  # by the number as text: a file could choose colliding numbers
        self._work = 0

    def run(self, file: IO[bytes]) -> Any:
        """Return the object of the pickle at the file's position, which then points behind it.

        Raises:
            WeightsError: the pickle is damaged, too large, or tries to run code.
        """
        self._stack, self._marked, self._memo = [], [], {}
        try:
            start = file.tell()
            for opcode, argument, position in pickletools.genops(file):
                if (position or 0) - start > MAX_PICKLE:
                    self._refuse(f"its pickle is longer than {MAX_PICKLE >> 20} MB; a checkpoint's is a few")
                self.charge(1)
                self._step(opcode.name, argument)
            if len(self._stack) != 1 or self._marked:
                raise ValueError("objects are left over at its end")
            return self._stack.pop()
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError, AssertionError) as error:
            cause = " ".join(str(error).split())[:120] or type(error).__name__
            raise WeightsError(
                f"{self.source}: its pickle is damaged ({cause}); download or save the file again."
            ) from error
        except (RecursionError, MemoryError) as error:
            raise WeightsError(f"{self.source}: its pickle asks for more memory than a checkpoint needs.") from error
        finally:
            self._stack, self._marked, self._memo = [], [], {}

    def charge(self, units: int) -> None:
        """Count work; refuse the file when there is too much."""
        self._work += units
        if self._work > MAX_WORK:
            self._refuse("its pickle has more objects than any checkpoint needs")

    def _refuse(self, cause: str) -> NoReturn:
        raise WeightsError(f"{self.source}: {cause}; the file is refused, and nothing in it was run.")

    def _pop_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marked.pop()
        return items

    def _drop_marked(self, _: Any) -> None:
        self._pop_mark()

    def _step(self, name: str, argument: Any) -> None:
        if name in _PUSH_ARGUMENT:
            self._stack.append(argument)
        elif name in _GET:
            self._stack.append(self._memo[str(argument)])
        elif name in _PUT:
            self._memo[str(argument)] = self._stack[-1]
        elif name in _PUSH_NEW:
            self._stack.append(_PUSH_NEW[name]())
        else:
            action = _ACTIONS.get(name)
            if action is None:
                self._refuse(f"its pickle has the instruction {name}, which torch does not write")
            action(self, argument)

    # Instructions. Each pops its operands from the stack and pushes its result.

    def _mark(self, _: Any) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _pop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _duplicate(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _memoize(self, _: Any) -> None:
        self._memo[str(len(self._memo))] = self._stack[-1]

    def _tuple_of_marked(self, _: Any) -> None:
        items = tuple(self._pop_mark())
        self._stack.append(items)

    def _tuple_of(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        if len(items) != count:
            raise IndexError("its stack is empty")
        del self._stack[-count:]
        self._stack.append(items)

    def _list_of_marked(self, _: Any) -> None:
        items = self._pop_mark()
        self._stack.append(items)

    def _dict_of_marked(self, _: Any) -> None:
        items = self._pop_mark()
        self._stack.append({})
        self._set_pairs(items)

    def _frozenset_of_marked(self, _: Any) -> None:
        items = self._pop_mark()
        self._stack.append(frozenset(safe_key(item) for item in items))

    def _append(self, _: Any) -> None:
        self._extend([self._stack.pop()])

    def _append_marked(self, _: Any) -> None:
        self._extend(self._pop_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(safe_key(item) for item in items)
        elif isinstance(target, Stub):
            target.elements = [] if target.elements is None else target.elements
            target.elements.extend(items)
        else:
            raise TypeError("items are added to something that is not a list")

    def _set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_pairs([key, value])

    def _set_marked(self, _: Any) -> None:
        self._set_pairs(self._pop_mark())

    def _set_pairs(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Stub):
            target.items = {} if target.items is None else target.items
            target = target.items
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError("entries are set in something that is not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[safe_key(key)] = value

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(self._find(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError("a class is named by something that is not text")
        self._stack.append(self._find(module, name))

    def _find(self, module: str, name: str) -> Any:
        if runs_code(module, name):
            self._refuse(f"its pickle would run code ({_shown(module)}.{_shown(name)})")
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module in ("torch", "torch.cuda", "torch.storage") and name in STORAGES:
            return StorageType(STORAGES[name])
        dotted = f"{module}.{name}"
        if dotted not in KNOWN:
            self.names.setdefault(dotted)
        return StubClass(dotted)

    def _reduce(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self.construct(function, arguments))

    def _new_with_keywords(self, _: Any) -> None:
        self._stack.pop()  # keyword arguments are irrelevant for reading tensors
        self._reduce(_)

    def _instance(self, argument: str) -> None:
        arguments = tuple(self._pop_mark())
        self._global(argument)
        self._stack.append(self.construct(self._stack.pop(), arguments))

    def _object(self, _: Any) -> None:
        items = self._pop_mark()
        self._stack.append(self.construct(items[0], tuple(items[1:])))

    def construct(self, function: Any, arguments: Any) -> Any:
        """Return the result of a call: of a known function, or else a stub. Nothing is called."""
        if not isinstance(arguments, tuple):
            raise TypeError("arguments are not a tuple")
        if isinstance(function, StubClass):
            known = KNOWN.get(function.name)
            return Stub(function.name, arguments) if known is None else known(self, arguments)
        if isinstance(function, Stub):
            return Stub(f"{function.name}()"[:200], arguments)
        raise TypeError("something that is not a class is called")

    def _build(self, _: Any) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if not isinstance(target, Stub):
            if isinstance(target, dict | TensorRecord):  # attributes of dictionaries and tensors hold no weights
                return
            raise TypeError("attributes are set on something that has none")
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        if all(isinstance(part, dict | None) for part in parts):
            for part in parts:
                self.charge(len(part or ()))
                target.state.update(part or {})
        else:
            target.state["__setstate__"] = state

    def _persistent(self, _: Any) -> None:
        reference = self._stack.pop()
        if isinstance(reference, tuple) and len(reference) == 4 and reference[0] == "module":
            if not isinstance(reference[1], StubClass):
                raise TypeError("a module has no class")
            self._stack.append(reference[1])  # the older format adds the source code of classes: ignored
            return
        if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
            self._refuse("its pickle refers to something outside that is not a tensor storage")
        _, kind, key, _, numel = reference[:5]
        if not isinstance(kind, StorageType):
            self._refuse("it has a tensor storage of a kind that is not read (quantised, for one)")
        view = reference[5] if len(reference) == 6 else None
        if view is not None or not isinstance(key, str) or not is_count(numel):
            raise ValueError("a storage has no proper name or size")
        record = StorageRecord(key, kind.dtype, numel)
        self.storages.setdefault(key, record)
        self._stack.append(record)

    def _ignore(self, _: Any) -> None:
        pass


def _shown(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name[:60])


_ACTIONS: dict[str, Callable[[Machine, Any], None]] = {
    "MARK": Machine._mark,
    "POP": Machine._pop,
    "POP_MARK": Machine._drop_marked,
    "DUP": Machine._duplicate,
    "MEMOIZE": Machine._memoize,
    "TUPLE": Machine._tuple_of_marked,
    "TUPLE1": lambda machine, _: machine._tuple_of(1),
    "TUPLE2": lambda machine, _: machine._tuple_of(2),
    "TUPLE3": lambda machine, _: machine._tuple_of(3),
    "LIST": Machine._list_of_marked,
    "DICT": Machine._dict_of_marked,
    "FROZENSET": Machine._frozenset_of_marked,
    "APPEND": Machine._append,
    "APPENDS": Machine._append_marked,
    "ADDITEMS": Machine._append_marked,
    "SETITEM": Machine._set_item,
    "SETITEMS": Machine._set_marked,
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global,
    "REDUCE": Machine._reduce,
    "NEWOBJ": Machine._reduce,
    "NEWOBJ_EX": Machine._new_with_keywords,
    "INST": Machine._instance,
    "OBJ": Machine._object,
    "BUILD": Machine._build,
    "BINPERSID": Machine._persistent,
    "PROTO": Machine._ignore,
    "FRAME": Machine._ignore,
    "STOP": Machine._ignore,
}
