"""Worker processes that prepare batches.

Workers are stateless: a key says it all, see ``data/loader.py``. On Linux workers are forked, which takes milliseconds and
shares the image cache; spawning would import torch again (seconds) and copy the data set. Forking a process that has used
OpenMP is safe here because a worker runs torch on a single thread, set before anything else, and so never waits for pool
threads that did not survive the fork. Elsewhere the platform's default (spawn) is used.

Workers ignore Ctrl-C and requests to terminate, which reach a whole process group: the main process handles them, and then
stops its workers. When it dies they notice within five seconds.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import multiprocessing.util
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from nextdetr.data.dataset import Sample, SampleKey
from nextdetr.data.signals import ignore_held_signals, signals_held
from nextdetr.errors import NextDETRError, TrainingError
from nextdetr.structures import Batch, Target

__all__ = ["BatchStream", "affordable_workers", "collate"]

_log = logging.getLogger(__name__)

#: A socket path has up to 104 bytes with terminator on macOS, 108 on Linux; this is what remains for TMPDIR.
LONGEST_TMPDIR = 104 - 1 - len("/pymp-12345678/listener-12345678")
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one size; at least one."""
    images, targets, indices = zip(*samples, strict=True)
    return Batch(torch.stack(images), list(targets), list(indices))


class BatchStream:
    """Turns batches of keys into batches, in this process or in worker processes that live until ``close``.

    Args:
        dataset: the samples.
        workers: number of processes; 0 prepares each batch in this process when it is asked for.
        prefetch: batches prepared ahead by each worker.
    """

    def __init__(self, dataset: Dataset[Sample], workers: int = 0, prefetch: int = 2) -> None:
        self._dataset = dataset
        self._keys = _CurrentKeys()
        self._loader: DataLoader[Any] | None = None
        if workers > 0:
            self._loader = DataLoader(
                _Guarded(dataset),
                batch_sampler=self._keys,
                num_workers=workers,
                collate_fn=_pack,
                prefetch_factor=prefetch,
                persistent_workers=True,
                worker_init_fn=_start_worker,
                multiprocessing_context=multiprocessing.get_context("fork" if sys.platform == "linux" else None),
                generator=torch.Generator(),  # else it would draw from the global one, once per epoch
            )
            if not _open_streams:
                atexit.register(_close_all)  # before multiprocessing's own handler, which would wait for a hanging worker
            _open_streams.add(self)

    def run(self, keys: Iterable[list[SampleKey]]) -> Iterator[Batch]:
        """Yield one batch per list of keys, in order; calling it again ends the earlier iteration.

        Raises:
            DataError: an image cannot be read; the message names it.
            TrainingError: a worker process was killed.
        """
        if self._loader is None:
            for batch in keys:
                yield collate([self._dataset[key] for key in batch])
            return
        self._keys.current = keys
        try:
            for packed in _watched(self._loader):
                if isinstance(packed, NextDETRError):
                    raise packed
                yield _unpack(packed)
        except RuntimeError as error:
            if not any(words in str(error) for words in ("exited unexpectedly", "is killed by signal")):
                raise
            raise TrainingError(
                "a process that loads images was killed, most often because memory ran out: use fewer --workers, a smaller "
                "--batch-size, or less --cache-gigabytes."
            ) from error

    def close(self) -> None:
        """Stop the worker processes; one that does not stop is killed."""
        loader, self._loader = self._loader, None
        iterator: Any = getattr(loader, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()
            for worker in iterator._workers:
                if worker.is_alive():
                    worker.kill()


_open_streams: weakref.WeakSet[BatchStream] = weakref.WeakSet()
_workers: weakref.WeakSet[Any] = weakref.WeakSet()


def _close_all() -> None:
    for stream in list(_open_streams):
        stream.close()
    for worker in list(_workers):  # for example of an iteration that was interrupted at its start
        if worker.is_alive():
            worker.kill()


class _CurrentKeys(Sampler[list[SampleKey]]):
    """Batch sampler of a DataLoader that lives over many epochs: what it yields is set from outside."""

    def __init__(self) -> None:
        self.current: Iterable[list[SampleKey]] = ()

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return iter(self.current)


class _Packed(NamedTuple):
    """A batch on its way between processes: as NumPy, since each torch tensor would take a file handle."""

    images: Tensor
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    counts: list[int]
    indices: list[int]
    views: list[NDArray[np.float32] | None]


_Fetched: TypeAlias = "list[Sample] | NextDETRError"


class _Guarded(Dataset[Sample]):
    """Returns a user's error as a value: a DataLoader would bury its message in the worker's traceback."""

    def __init__(self, dataset: Dataset[Sample]) -> None:
        self._dataset = dataset

    def __getitem__(self, key: SampleKey) -> Sample:
        return self._dataset[key]

    def __getitems__(self, keys: list[SampleKey]) -> _Fetched:
        try:
            return [self._dataset[key] for key in keys]
        except NextDETRError as error:
            return error


def _pack(samples: _Fetched) -> _Packed | NextDETRError:
    if isinstance(samples, NextDETRError):
        return samples
    batch = collate(samples)
    return _Packed(
        images=batch.images,
        boxes=torch.cat([target.boxes for target in batch.targets]).numpy(),
        labels=torch.cat([target.labels for target in batch.targets]).numpy(),
        counts=[len(target) for target in batch.targets],
        indices=batch.indices,
        views=[None if target.view is None else target.view.numpy() for target in batch.targets],
    )


def _unpack(packed: _Packed) -> Batch:
    boxes = torch.split(torch.from_numpy(packed.boxes), packed.counts)
    labels = torch.split(torch.from_numpy(packed.labels), packed.counts)
    views = [None if view is None else torch.from_numpy(view) for view in packed.views]
    return Batch(packed.images, [Target(*parts) for parts in zip(boxes, labels, views, strict=True)], packed.indices)


_of_torch: list[Any] = []  # its handler of SIGCHLD, which it sets once per process


def _watched(loader: DataLoader[Any]) -> Iterator[_Packed | NextDETRError]:
    """Yield what the workers prepare.

    torch's handler of SIGCHLD raises when a worker was killed, wherever this process is at that moment, for example in
    mid-step. Here it acts only while waiting for a batch.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield from loader
        return
    if getattr(loader, "_iterator", None) is None:
        before = signal.getsignal(signal.SIGCHLD)
        others = set(multiprocessing.active_children())
        _make_socket_folder()  # one for all workers, removed whatever happens to them
        try:
            with signals_held():
                batches = iter(loader)
        finally:
            _workers.update(set(multiprocessing.active_children()) - others)
        if signal.getsignal(signal.SIGCHLD) is not before:
            _of_torch.append(signal.signal(signal.SIGCHLD, before or signal.SIG_DFL))
    else:
        with _told_of_children():
            batches = iter(loader)
    while True:
        with _told_of_children():
            packed = next(batches, None)
        if packed is None:
            return
        yield packed


def _make_socket_folder() -> None:
    """Make the folder of the sockets that transfer tensors: elsewhere if TMPDIR is too long for a socket path.

    multiprocessing would otherwise lose every batch, with a traceback from a thread, and wait forever.

    Raises:
        TrainingError: no folder has a short enough path.
    """
    usual = tempfile.gettempdir()
    if len(os.fsencode(usual)) <= LONGEST_TMPDIR or not hasattr(socket, "AF_UNIX"):
        multiprocessing.util.get_temp_dir()
        return
    for folder in SHORT_FOLDERS:
        tempfile.tempdir = folder
        try:
            multiprocessing.util.get_temp_dir()
            return
        except OSError:
            continue
        finally:
            tempfile.tempdir = usual
    raise TrainingError(
        f"the folder for temporary files has too long a path for the processes that load images ({usual}): set TMPDIR to "
        f"one of at most {LONGEST_TMPDIR} characters, or use --workers 0."
    )


@contextlib.contextmanager
def _told_of_children() -> Iterator[None]:
    before = [signal.signal(signal.SIGCHLD, handler) for handler in _of_torch]
    try:
        for handler in _of_torch:
            handler(signal.SIGCHLD, None)  # for events in between
        yield
    finally:
        for previous in before:
            signal.signal(signal.SIGCHLD, previous or signal.SIG_DFL)


def _start_worker(worker: int) -> None:
    del worker
    torch.set_num_threads(1)
    ignore_held_signals()
    folder = multiprocessing.util.get_temp_dir()
    multiprocessing.util.Finalize(None, _leave_nothing, args=(os.getppid(), folder), exitpriority=-100)


def _leave_nothing(first: int, folder: str) -> None:
    """Remove the folder of the workers' sockets if this is the last worker and the main process was killed."""
    if os.getppid() != first:
        with contextlib.suppress(OSError):
            Path(folder).rmdir()


def affordable_workers(workers: int, prefetch: int, batch_size: int, size: int) -> int:
    """Return ``workers``, or 0 if the batches in progress would not fit into shared memory.

    Containers often have 64 MB of it, and a worker that runs out of it is killed silently.
    """
    shared = Path("/dev/shm")
    if workers == 0 or not shared.is_dir():
        return workers
    needed = (workers * prefetch + 2) * batch_size * 3 * size * size * 4
    free = shutil.disk_usage(shared).free
    if needed <= free:
        return workers
    _log.warning(
        "Images are loaded in the main process: %d workers need %d MB of shared memory and %s has %d MB left "
        "(docker: --shm-size=1g; or fewer workers, a smaller batch).",
        workers, needed // 2**20, shared, free // 2**20,
    )  # fmt: skip
    return 0
