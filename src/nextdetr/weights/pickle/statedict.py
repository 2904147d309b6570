"""Find the weights in a saved object: a state dict, wrapped or not, or a pickled module, walked by its stubs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nextdetr.errors import WeightsError
from nextdetr.weights.pickle.calls import NumberKey, bare_key
from nextdetr.weights.pickle.stubs import Stub, StubClass, TensorRecord

__all__ = ["Found", "find_weights", "plain"]

# Where training programs store weights; averaged ones first, as those are scored and published.
_PLACES = (
    "ema.module", "ema.state_dict", "ema", "model_ema", "state_dict_ema", "model_state_dict", "model_state",
    "model.state_dict", "state_dict", "model", "module", "net", "weights", "",
)  # fmt: skip
_WRAPPERS = ("_orig_mod.", "module.")  # of torch.compile, and of multi-device training
_MAX_MODULES = 100_000
_MAX_DEPTH = 200
_MAX_NODES = 20_000
_MAX_TEXT = 1 << 20


@dataclass(slots=True)
class Found:
    """Weights found in a file.

    Attributes:
        place: dotted keys of their location, empty for the whole file.
        records: name -> record of a tensor.
        module: the module, if one was pickled instead of its state dict.
        others: names of entries that are not tensors.
        prefix: common prefix removed from all names.
    """

    place: str
    records: dict[str, TensorRecord]
    module: Stub | None = None
    others: list[str] = field(default_factory=list)
    prefix: str = ""


def find_weights(source: str, root: Any, key: str | None = None) -> Found:
    """Return the weights of a file.

    Args:
        source: name of the file, for messages.
        root: the saved object.
        key: dotted keys of the location; None for the usual places.

    Raises:
        WeightsError: there are none, or they are of an unsupported kind.
    """
    for place in _PLACES if key is None else (key,):
        value = _at(root, place)
        if _is_module(value):
            found = _walk(source, place, value)
        elif isinstance(value, dict) and any(isinstance(item, TensorRecord) for item in value.values()):
            found = _flat(source, place, value)
        else:
            continue
        if found.records:
            return _unwrapped(found)
    if isinstance(root, dict):
        names = ", ".join(str(name)[:40] for name in list(root)[:8] if isinstance(name, str | NumberKey)) or "none"
        what = f"its entries are: {names}"
    else:
        what = f"it holds {_kind(root)}"
    wanted = "no weights" if key is None else f"no weights under {key!r}"
    raise WeightsError(f"{source}: there are {wanted} in it ({what}); save the model's state_dict() with torch.save.")


def _at(root: Any, place: str) -> Any:
    value = root
    for part in place.split(".") if place else ():
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def _kind(value: Any) -> str:
    if isinstance(value, Stub | StubClass):
        return f"an object of {value.name[:80]}"
    return "a tensor" if isinstance(value, TensorRecord) else f"an object of type {type(value).__name__}"


def _is_module(value: Any) -> bool:
    return isinstance(value, Stub) and isinstance(value.state.get("_modules"), dict)


def _flat(source: str, place: str, state: Mapping[Any, Any]) -> Found:
    found = Found(place, {})
    for name, value in state.items():
        _put(source, found, str(name), value)
    return found


def _walk(source: str, place: str, root: Stub) -> Found:
    """Name the tensors of a module as its ``state_dict()`` would: own parameters, own buffers, then the children's."""
    found = Found(place, {}, root)
    stack: list[tuple[str, Stub, int]] = [("", root, 0)]
    visited = 0
    while stack:
        prefix, module, depth = stack.pop()
        visited += 1
        if visited > _MAX_MODULES or depth > _MAX_DEPTH:  # a few modules that contain each other look endless
            raise WeightsError(
                f"{source}: its model has more modules in each other than any that can be built; it is refused."
            )
        hidden = module.state.get("_non_persistent_buffers_set")
        skipped = hidden if isinstance(hidden, set | frozenset) else frozenset()
        for kind in ("_parameters", "_buffers"):
            held = module.state.get(kind)
            for name, value in held.items() if isinstance(held, dict) else ():
                if value is not None and not (kind == "_buffers" and name in skipped):
                    _put(source, found, f"{prefix}{name}", value)
        children = module.state["_modules"]
        for name, child in reversed(children.items()):
            if _is_module(child):
                stack.append((f"{prefix}{name}.", child, depth + 1))
    return found


def _put(source: str, found: Found, name: str, value: Any) -> None:
    if isinstance(value, TensorRecord):
        if name in found.records or len(found.records) >= _MAX_MODULES:
            raise WeightsError(f"{source}: it has the tensor {name[:200]} twice, or far too many; it is refused.")
        found.records[name] = value
    elif isinstance(value, Stub) and "_rebuild_" in value.name:
        raise WeightsError(
            f"{source}: {name[:200]} is a tensor of a kind that is not read ({value.name.rsplit('.', 1)[-1]}: quantised or "
            "sparse, for instance); save it as an ordinary tensor of floating-point numbers."
        )
    else:
        found.others.append(name[:200])


def _unwrapped(found: Found) -> Found:
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in found.records):
            found.records = {name.removeprefix(prefix): record for name, record in found.records.items()}
            found.prefix += prefix
    return found


class _TooLarge(Exception):  # noqa: N818 - never leaves this file
    pass


def plain(value: Any) -> Any:
    """Return a value as text, numbers, lists and dictionaries; objects become their attributes or class names.

    Shared parts are written out each time, so the result is bounded by count; None if it would be larger.
    """
    try:
        return _Plain().convert(value, 0)
    except _TooLarge:
        return None


class _Plain:
    def __init__(self) -> None:
        self.nodes = 0
        self.text = 0

    def convert(self, value: Any, depth: int) -> Any:
        self.nodes += 1
        self.text += len(value) if isinstance(value, str | bytes) else 0
        if self.nodes > _MAX_NODES or self.text > _MAX_TEXT or depth > 32:
            raise _TooLarge
        value = bare_key(value)
        if value is None or isinstance(value, str | bool | float):
            return value
        if isinstance(value, int):
            return value if abs(value) < 1 << 63 else None
        if isinstance(value, list | tuple | set | frozenset):
            return [self.convert(item, depth + 1) for item in value]
        if isinstance(value, dict):
            return {
                key: self.convert(item, depth + 1)
                for key, item in ((bare_key(key), item) for key, item in value.items())
                if isinstance(key, str | int)
            }
        if isinstance(value, Stub):
            return self._stub(value, depth)
        return str(value)[:80] if not isinstance(value, bytes) else None

    def _stub(self, value: Stub, depth: int) -> Any:
        if value.name.startswith("pathlib") and all(isinstance(part, str) for part in value.args):
            return "/".join(value.args).replace("//", "/")
        if value.items is not None:
            return self.convert(value.items, depth + 1)
        if value.elements is not None:
            return self.convert(value.elements, depth + 1)
        return self.convert(value.state, depth + 1) if value.state else f"<{value.name[:80]}>"
