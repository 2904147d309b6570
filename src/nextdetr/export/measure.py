"""One row of the benchmark, measured in its own process, to get its own peak memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from nextdetr.errors import MeasurementError

__all__ = ["Ceilings", "Kind", "Task", "ceilings", "file_bytes", "in_turn", "measure", "preprocessing"]

_KILLED = 9  # the signal that nothing survives

K = TypeVar("K", bound=Hashable)
Kind = Literal["pytorch", "fused", "onnxruntime", "openvino", "foreign"]


@dataclass(frozen=True, slots=True)
class Task:
    """Specification of a measurement.

    Attributes:
        kind: ``pytorch``, ``fused``, the runtime of one of our exported files, or ``foreign`` (any other ONNX file).
        source: the checkpoint or the file.
        image_size: side of the square input in pixels.
        batch: images per step.
        threads: of the runtime.
        seconds: duration of the measurement, after a warm-up of a quarter of it.
        queries, layers: for PyTorch, if not the model's own.
    """

    kind: Kind
    source: str
    image_size: int
    batch: int
    threads: int
    seconds: float
    queries: int | None = None
    layers: int | None = None


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Limits of the machine: float32 matrix products in GFLOP/s, and memory traffic in GB/s (read and written)."""

    gflops: float
    gigabytes: float


def measure(task: Task) -> dict[str, float]:
    """Measure one row in a new process.

    Returns:
        ``median`` and ``p95`` seconds per step, ``load`` seconds to open, ``memory`` bytes at the peak.

    Raises:
        NextDETRError: the file cannot be opened.
        MeasurementError: the process was killed, as when the memory is used up.
    """
    return _in_process(_work, task, task.threads)


def ceilings(threads: int) -> Ceilings:
    """Measure the machine with this number of threads."""
    found = _in_process(_ceilings, threads, threads)
    return Ceilings(found["gflops"], found["gigabytes"])


def preprocessing(size: int, repeats: int = 9) -> float:
    """Median seconds to preprocess a decoded image of 1920 × 1080."""
    from PIL import Image

    from nextdetr.preprocess import resize_to_planes

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (1080, 1920, 3), np.uint8))
    return float(np.median([_time(lambda: resize_to_planes(picture, size)) for _ in range(repeats)]))


def _in_process(work: Callable[[Any], dict[str, float]], argument: Any, threads: int) -> dict[str, float]:
    """Call a function in a new process and return its result; an exception there is raised here.

    Not with a pool, which starts a process again when it was killed, and waits for ever.

    Raises:
        MeasurementError: the process ended without a result.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, work, argument), name="nextdetr-measure", daemon=True)
    try:
        with _threads_of_numpy(threads):
            process.start()
        sender.close()  # so that the end of the process is the end of the pipe
        answer = receiver.recv()
    except EOFError:
        process.join()
        raise MeasurementError(_ended(process.exitcode)) from None
    finally:
        receiver.close()
        if process.is_alive():
            process.terminate()
    process.join()
    if isinstance(answer, BaseException):
        raise answer
    found: dict[str, float] = answer
    return found


def _answer(sender: Connection, work: Callable[[Any], dict[str, float]], argument: Any) -> None:
    """Run in the process: send the result, or what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked reports Ctrl-C, and ends this one
    try:
        answer: Any = work(argument)
    except Exception as error:  # noqa: BLE001 - raised in the process that asked
        answer = error
    try:
        sender.send(answer)
    except Exception as error:  # noqa: BLE001 - an exception that cannot be sent
        sender.send(RuntimeError(f"{type(answer).__name__}: {answer} ({error})"))


def _ended(code: int | None) -> str:
    reason = f"ended with exit code {code}"
    if code is not None and code < 0:
        reason = f"was ended by signal {-code}" + (", as when the memory is used up" if -code == _KILLED else "")
    return f"the process that measures {reason}: try a smaller --image-size or --batch, or fewer --threads."


@contextmanager
def _threads_of_numpy(threads: int) -> Iterator[None]:
    """Set the number of threads for processes started inside the block: NumPy's BLAS reads it once, on import."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(task: Task) -> dict[str, float]:
    started = time.perf_counter()
    step = _step(task)
    load = time.perf_counter() - started
    _for(step, task.seconds / 4)
    taken = _for(step, task.seconds)
    return {
        "median": float(np.median(taken)),
        "p95": float(np.percentile(taken, 95)),
        "load": load,
        "memory": float(_peak_memory()),
    }


def _step(task: Task) -> Callable[[], Any]:
    if task.kind == "foreign":
        return _foreign(task)
    if task.kind not in ("onnxruntime", "openvino"):
        return _network(task)
    from nextdetr.inference.exported import open_export

    shape = (task.batch, 3, task.image_size, task.image_size)
    images = np.random.default_rng(0).random(shape, dtype=np.float32)
    model = open_export(task.source, threads=task.threads, runtime=task.kind).model
    return lambda: model(images)  # as many queries as it was exported with


def _network(task: Task) -> Callable[[], Any]:
    import torch

    from nextdetr.memory import keep_freed_memory
    from nextdetr.models.cut import cut_layers
    from nextdetr.models.fuse import fuse
    from nextdetr.weights.start import open_detector

    torch.set_num_threads(task.threads)
    images = torch.rand(task.batch, 3, task.image_size, task.image_size)
    keep_freed_memory()
    model = open_detector(task.source)[0].model
    model = model if task.layers is None else cut_layers(model, task.layers)
    model = fuse(model) if task.kind == "fused" else model

    def step() -> None:
        with torch.inference_mode():
            model(images, queries=task.queries)

    return step


def _foreign(task: Task) -> Callable[[], Any]:
    """An ONNX file of another program, fed with noise; dynamic axes become the batch, 3 channels and the image size."""
    from nextdetr.inference.onnx import start_session

    session = start_session(task.source, task.threads)
    kinds = {
        "tensor(float)": np.float32,
        "tensor(uint8)": np.uint8,
        "tensor(int64)": np.int64,
        "tensor(float16)": np.float16,
    }
    feed, generator = {}, np.random.default_rng(0)
    for entry in session.get_inputs():
        free = [task.batch, 3, task.image_size, task.image_size] if len(entry.shape) == 4 else [task.batch, 2]
        shape = [axis if isinstance(axis, int) else free[i] for i, axis in enumerate(entry.shape)]
        kind = kinds.get(entry.type, np.float32)
        noise = generator.random(shape) if np.issubdtype(kind, np.floating) else np.full(shape, task.image_size % 256)
        feed[entry.name] = noise.astype(kind)
    return lambda: session.run(None, feed)


def _for(step: Callable[[], Any], seconds: float) -> list[float]:
    """Times of as many steps as fit into the time, at least three."""
    taken: list[float] = []
    while sum(taken) < seconds or len(taken) < 3:
        taken.append(_time(step))
    return taken


def _time(step: Callable[[], Any]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def in_turn(runs: Mapping[K, Callable[[], Any]], seconds: float, *, least: int = 3) -> dict[K, float]:
    """Median seconds of each run, alternating between them, so that drifts of the machine's speed affect all.

    Each turn is two calls, of which the second is timed: another runtime's threads spin for a while waiting for work, and
    caches are cold.

    Args:
        runs: what to measure, by name.
        seconds: duration, after two warm-up rounds.
        least: least number of rounds, even if they take longer.
    """
    taken: dict[K, list[float]] = {name: [] for name in runs}
    for _ in range(2):
        for run in runs.values():
            run()
    started, rounds = time.perf_counter(), 0
    while rounds < least or time.perf_counter() - started < seconds:
        for name, run in runs.items():
            run()
            taken[name].append(_time(run))
        rounds += 1
    return {name: float(np.median(found)) for name, found in taken.items()}


def _peak_memory() -> int:
    """Peak memory of this process in bytes; 0 if the system does not report it."""
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux, getrusage also counts the process that started this one
        line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        if line is not None:
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _ceilings(threads: int) -> dict[str, float]:
    side, generator = 1024, np.random.default_rng(0)
    a, b = (generator.random((side, side), dtype=np.float32) for _ in range(2))
    out = np.empty_like(a)
    product = min(_for(lambda: np.matmul(a, b, out=out), 0.5))
    source, target = (
        np.ones((threads, (1 << 26) // threads), np.float32),
        np.zeros((threads, (1 << 26) // threads), np.float32),
    )
    with ThreadPoolExecutor(threads) as pool:  # 256 MiB each, beyond any cache
        copy = min(_for(lambda: list(pool.map(np.copyto, target, source)), 0.5))
    return {"gflops": 2 * side**3 / product / 1e9, "gigabytes": 2 * source.nbytes / copy / 1e9}


def file_bytes(path: Path) -> int:
    """Total size of a model's files."""
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if path.suffix == ".xml" and weights.is_file() else 0)
