"""One fuzzing process: atheris runs one of our parsers until its time is over. Started by ``reliability_fuzz.py``.

    python benchmarks/reliability_fuzz_target.py PARSER FOLDER SECONDS SEED SCRATCH

``FOLDER`` holds the corpus, the findings and ``progress.json``; inputs are written to ``SCRATCH``. A finding is an
exception other than ``NextDETRError``, a message of several lines, a hang, high memory use for one input, or an action
that no file reader needs.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import sys
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["nextdetr", "yaml"]):
    from nextdetr.data.sources import load_data
    from nextdetr.errors import NextDETRError
    from nextdetr.models.graph import build_skeleton, parse_model_text
    from nextdetr.weights.checkpoint import read_detector_metadata
    from nextdetr.weights.inspect import inspect_file

import numpy as np
from PIL import Image

SLOW = 10.0  # CPU seconds, as the machine may have other work
HANG = 120  # wall seconds after which libFuzzer ends the process
GROWTH = 512 << 20  # bytes that one input of at most LARGEST may add to the peak
LARGEST = 16384
WATCHED = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "shutil.rmtree")

_actions: list[str] = []


def watch(event: str, arguments: tuple[object, ...]) -> None:
    """Record forbidden actions of a file reader: starting a program, opening a connection, writing outside its folder."""
    if event in WATCHED:
        _actions.append(event)
    elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        _actions.append(f"open for writing: {arguments[0]!r}")


class DataSet:
    """A data set of two images; the input provides one or two text files, separated by two zero bytes."""

    def __init__(self, home: Path, images: str, files: tuple[str, ...], fixed: dict[str, str]) -> None:
        self.home, self.files = home, files
        for name in ("1.png", "2.png"):
            path = home / images / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(path)
        for name, text in fixed.items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(text)
        for name in files:
            (home / name).parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, data: bytes) -> None:
        """Read the data set with these files."""
        parts = data.split(b"\0\0", len(self.files) - 1)
        for name, part in zip(self.files, [*parts, *[b""] * (len(self.files) - len(parts))], strict=True):
            _write(self.home / name, part)
        load_data(self.home, "train", check_images=False)


def _write(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # which ``watch`` does not attribute to a reader
    try:
        os.write(handle, content)
    finally:
        os.close(handle)


def model_yaml(home: Path) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        build_skeleton(parse_model_text(data.decode("utf-8", "replace"), "model.yaml"), num_classes=2, tensors=400)

    return read


def safetensors(home: Path) -> Callable[[bytes], None]:
    """The first byte decides whether a correct header length and content are added, or the input is the whole file."""

    def read(data: bytes) -> None:
        path, body = home / "a.safetensors", data[1:]
        fitted = data[:1] < b"\x80"
        _write(path, len(body).to_bytes(8, "little") + body + bytes(_stated(body)) if fitted else body)
        inspect_file(path)
        read_detector_metadata(path)

    return read


def _stated(header: bytes) -> int:
    """Return the number of bytes of tensors that a header claims, which safetensors requires; 64 if that is absurd."""
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
        end = max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return 64
    return end if isinstance(end, int) and 0 <= end <= LARGEST else 64


def restricted_pickle(home: Path) -> Callable[[bytes], None]:
    """The first byte decides whether the input is the pickle in one of torch's zip archives, or the whole file."""

    def read(data: bytes) -> None:
        path, body = home / "a.pt", data[1:]
        if data[:1] < b"\xc0":
            archive = io.BytesIO()
            entries = {"data.pkl": body, "byteorder": b"little", "version": b"3\n"}
            with zipfile.ZipFile(archive, "w") as file:
                for name, content in (entries | {f"data/{number}": bytes(64) for number in range(4)}).items():
                    file.writestr(f"archive/{name}", content)
            body = archive.getvalue()
        _write(path, body)
        inspect_file(path)

    return read


PARSERS: dict[str, Callable[[Path], Callable[[bytes], None]]] = {
    "coco": lambda home: DataSet(home, "images/train", ("annotations/instances_train.json",), {}),
    "voc": lambda home: DataSet(
        home, "JPEGImages", ("Annotations/1.xml", "ImageSets/Main/train.txt"), {"Annotations/2.xml": "<annotation/>"}
    ),
    "yolo": lambda home: DataSet(home, "images/train", ("data.yaml", "labels/train/1.txt"), {"labels/train/2.txt": ""}),
    "model-yaml": model_yaml,
    "safetensors": safetensors,
    "pickle": restricted_pickle,
}


class Watched:
    """A parser; anything it does other than return or refuse is recorded in ``found``."""

    def __init__(self, parse: Callable[[bytes], None], folder: Path) -> None:
        self.parse, self.found, self.progress = parse, folder / "found", folder / "progress.json"
        self.found.mkdir(exist_ok=True)
        self.count, self.started, self.written = 0, time.process_time(), 0.0
        self.settled = 0

    def __call__(self, data: bytes) -> None:
        """Read one input."""
        before, started = _peak(), time.process_time()
        _actions.clear()
        try:
            self.parse(data)
        except NextDETRError as error:
            if not str(error):  # it cannot have several lines: see NextDETRError
                self.note("message", f"{type(error).__name__} without a message", data)
        except Exception as error:  # noqa: BLE001 - any exception is a finding
            self.note("crash", _signature(error), data, "".join(traceback.format_exception(error)))
        for action in _actions:
            self.note("action", action[:80], data)
        seconds, growth = time.process_time() - started, _peak() - before
        if seconds > SLOW:
            self.note("slow", f"{seconds:.0f} s", data)
        if growth > GROWTH:
            self.note("growth", f"{growth >> 20} MB", data)
        self.count += 1
        if self.count == 1000:
            self.settled = _resident()
        if time.monotonic() - self.written > 2:
            self.written = time.monotonic()
            self.tell()

    def tell(self) -> None:
        """Write the progress of this process."""
        numbers = {
            "inputs": self.count, "seconds": round(time.process_time() - self.started, 1), "settled": self.settled,
            "resident": _resident(), "peak": _peak(),
        }  # fmt: skip
        temporary = self.progress.with_suffix(".new")
        _write(temporary, json.dumps(numbers).encode())
        temporary.replace(self.progress)

    def note(self, kind: str, signature: str, data: bytes, details: str = "") -> None:
        """Keep the first input of a signature."""
        name = f"{kind}-{hashlib.blake2b(signature.encode(), digest_size=6).hexdigest()}"
        if not (self.found / f"{name}.json").is_file():
            _write(self.found / f"{name}.bin", data)
            content = {"kind": kind, "signature": signature, "details": details[-4000:]}
            _write(self.found / f"{name}.json", json.dumps(content).encode())


def _signature(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "nextdetr" in frame.filename]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "outside"
    return f"{type(error).__name__} in {where}"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    name, folder, seconds, seed, scratch = sys.argv[1], Path(sys.argv[2]).absolute(), *sys.argv[3:]
    warnings.simplefilter("ignore")
    watched = Watched(PARSERS[name](Path(scratch)), folder)
    sys.addaudithook(watch)
    options = [
        f"-max_total_time={seconds}", f"-seed={seed}", f"-timeout={HANG}", f"-max_len={LARGEST}", "-rss_limit_mb=4096",
        f"-artifact_prefix={folder}/", f"-dict={folder}/words.dict", "-print_final_stats=1", "-verbosity=1",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(folder / "corpus"), str(folder / "seeds")], watched)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
