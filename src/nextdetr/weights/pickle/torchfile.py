"""Files of ``torch.save``, in the zip format (since torch 1.6) and the older one, read without running their pickle.

Tensors are views of the memory-mapped file: nothing is copied, and used pages can be released.
"""

from __future__ import annotations

import io
import mmap
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from nextdetr.errors import WeightsError
from nextdetr.weights.pickle.archive import Region, zip_directory
from nextdetr.weights.pickle.machine import MAX_PICKLE, Machine
from nextdetr.weights.pickle.stubs import StorageRecord, TensorRecord

__all__ = ["TorchFile", "is_legacy", "open_legacy", "open_zip"]

# The first pickle of the older format holds one number: its protocol, a frame from 4 on, the number, stop.
_LEGACY_NUMBER = b"\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little") + b"."
_LEGACY_STARTS = (
    b"\x80\x02",
    b"\x80\x03",
    b"\x80\x04\x95" + struct.pack("<Q", 13),
    b"\x80\x05\x95" + struct.pack("<Q", 13),
)
_LEGACY_VERSION = 1001
_SPARE = 16 << 20  # bytes; tensors that share a storage may add up to twice the file plus this


@dataclass(slots=True)
class TorchFile:
    """A file whose pickle has been read.

    Attributes:
        source: name of the file.
        buffer: its memory map.
        root: the saved object: containers, stubs and tensor records.
        storages: location of each storage's content.
        stubs: dotted names of the stubs.
    """

    source: str
    buffer: mmap.mmap
    root: Any
    storages: dict[str, Region]
    stubs: list[str]

    def read(self, records: Mapping[str, TensorRecord]) -> dict[str, Tensor]:
        """Return the tensors as views of the file.

        Raises:
            WeightsError: a storage is missing or shorter than stated, or the tensors add up to far more than the file.
        """
        total = sum(record.numel * record.dtype.itemsize for record in records.values())
        if total > 2 * len(self.buffer) + _SPARE:
            raise WeightsError(
                f"{self.source}: its tensors state {total >> 20:,} MB, but the file has {len(self.buffer) >> 20:,} MB; "
                "it is refused."
            )
        views: dict[tuple[str, int, torch.dtype], Tensor] = {}
        tensors = {}
        for name, record in records.items():
            key = (record.storage.key, record.storage.numel, record.dtype)
            if key not in views:
                views[key] = self._view(name, record)
            tensors[name] = torch.as_strided(views[key], record.size, record.stride, record.offset if record.numel else 0)
        return tensors

    def _view(self, name: str, record: TensorRecord) -> Tensor:
        storage = record.storage
        region = self.storages.get(storage.key)
        stated = storage.numel * storage.dtype.itemsize
        if region is None or region.size < stated:
            raise self._short(name, storage)
        count = stated // record.dtype.itemsize
        if count == 0:
            return torch.empty(0, dtype=record.dtype)
        if region.start % record.dtype.itemsize == 0:
            return torch.frombuffer(self.buffer, dtype=record.dtype, count=count, offset=region.start)
        content = torch.frombuffer(self.buffer, dtype=torch.uint8, count=count * record.dtype.itemsize, offset=region.start)
        return content.clone().view(record.dtype)

    def _short(self, name: str, storage: StorageRecord) -> WeightsError:
        region = self.storages.get(storage.key)
        have = "is missing" if region is None else f"has only {region.size:,} bytes"
        return WeightsError(
            f"{self.source}: the storage of {name[:200]} {have}, not {storage.numel:,} elements; download the file again."
        )


def is_legacy(head: bytes) -> bool:
    """Whether a file that begins with ``head``, at least 32 bytes, has the format of torch.save before zip."""
    return any(head.startswith(start + _LEGACY_NUMBER) for start in _LEGACY_STARTS)


def open_zip(source: str, buffer: mmap.mmap) -> TorchFile:
    """Read the zip format.

    Raises:
        WeightsError: it is damaged, hostile, or a zip archive of another kind.
    """
    regions = zip_directory(source, buffer)
    if any(name.endswith("/constants.pkl") for name in regions):
        raise WeightsError(f"{source}: a TorchScript program, not weights; save the model's state_dict() with torch.save.")
    pickles = [name for name in regions if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise WeightsError(
            f"{source}: a zip archive, but not one that torch.save wrote; check that it is an archive of weights."
        )
    prefix = pickles[0].removesuffix("data.pkl")
    order = regions.get(f"{prefix}byteorder", Region(0, 0))
    if order.size and buffer[order.start : order.start + min(order.size, 16)].decode("latin1") != sys.byteorder:
        raise WeightsError(f"{source}: written by a machine of another byte order; save it again on one like this.")
    pickled = regions[pickles[0]]
    if pickled.size > MAX_PICKLE:
        raise WeightsError(
            f"{source}: its pickle has {pickled.size >> 20:,} MB, and a checkpoint's has a few; it is refused unread."
        )
    machine = Machine(source)
    root = machine.run(io.BytesIO(buffer[pickled.start : pickled.start + pickled.size]))
    data = f"{prefix}data/"
    storages = {name.removeprefix(data): region for name, region in regions.items() if name.startswith(data)}
    return TorchFile(source, buffer, root, storages, list(machine.names))


def open_legacy(source: str, buffer: mmap.mmap) -> TorchFile:
    """Read the older format: five pickles, then the storages one after the other.

    Raises:
        WeightsError: it is damaged or hostile.
    """
    machine = Machine(source)
    buffer.seek(0)
    file = cast("io.BytesIO", buffer)  # a memory map can be read like a file
    _, version, system, root, keys = (machine.run(file) for _ in range(5))
    if version != _LEGACY_VERSION or not isinstance(keys, list) or not isinstance(system, dict):
        raise WeightsError(f"{source}: not a file that torch.save wrote, though it begins like one.")
    if (system.get("little_endian", True) is True) != (sys.byteorder == "little"):
        raise WeightsError(f"{source}: written by a machine of another byte order; save it again on one like this.")
    storages: dict[str, Region] = {}
    position = buffer.tell()
    for key in keys:
        record = machine.storages.get(key) if isinstance(key, str) else None
        if record is None or key in storages or position + 8 > len(buffer):
            raise WeightsError(
                f"{source}: incomplete: its storages do not fit its pickle; download or save the file again."
            )
        (count,) = struct.unpack_from("<q", buffer, position)
        region = Region(position + 8, count * record.dtype.itemsize)
        position = region.start + region.size
        if count < 0 or position > len(buffer):
            raise WeightsError(f"{source}: incomplete: it stops after {len(buffer):,} bytes, within its tensors.")
        storages[key] = region
    return TorchFile(source, buffer, root, storages, list(machine.names))
