"""The server under load, compared with the runtime alone next to the same client, on this computer only.

    python benchmarks/serve_load.py [--image-size 640 320] [--seconds 20] [--overload 60] [--write]

For each image size, with JPEGs of 640 x 480 over 32 connections from another process:

- serve: images per second of ``nextdetr serve`` with the exported model;
- bare: images per second of the runtime alone on prepared inputs, with the same batch size, while the same client sends
  the same number of requests per second to an endpoint that reads them and does nothing;
- overload: four times as many requests per second as the server handles. Each must be answered or refused with 503, and
  memory must not grow after the first thousand.

Needs an idle machine, since other processes change the result.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from results import machine, write_result

CLIENT = Path(__file__).with_name("serve_client.py")
CONNECTIONS, OVERLOAD_CONNECTIONS = 32, 256
FIRST_REQUESTS = 1000  # after which memory must not grow


def export(model: str, size: int, folder: Path, *, dynamic: bool) -> Path:
    from nextdetr import Detector

    target = folder / f"{Path(model).stem}-{size}{'-dynamic' if dynamic else ''}"
    if not (target / "model.onnx").is_file():
        Detector(model).export("onnx", image_size=size, output=target, dynamic=dynamic, quiet=True)
    return target / "model.onnx"


def photograph(folder: Path) -> Path:
    """A JPEG of 640 x 480 of about the size of a camera's."""
    path = folder / "photo.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
    return path


@contextlib.contextmanager
def serving(model: Path, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    command = [sys.executable, "-m", "nextdetr", "serve", f"model={model}", "--port", "0", "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"], psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def load(
    url: str, photo: Path, seconds: float, connections: int = CONNECTIONS, rate: float | None = None
) -> dict[str, Any]:
    command = [sys.executable, str(CLIENT), f"{url}/predict", str(photo), "--seconds", str(seconds)]
    command += ["--connections", str(connections), *(() if rate is None else ("--rate", str(rate)))]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 120)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@contextlib.contextmanager
def dummy() -> Iterator[str]:
    """Serve an endpoint that reads requests and returns a dummy response, in a separate process."""
    command = [sys.executable, __file__, "--dummy"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


async def serve_nothing() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.partition(b":")[2]))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b" " * 1000)
                await writer.drain()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def bare(model: Path, size: int, batch: int, photo: Path, seconds: float, rate: float) -> tuple[float, dict[str, Any]]:
    """Return images per second of the runtime, and what the client saw meanwhile."""
    from nextdetr.inference.runtimes import open_session

    session, contract, _ = open_session(model)
    count = batch if contract.dynamic else 1
    images = np.random.default_rng(0).random((count, 3, size, size), dtype=np.float32)
    inputs = {"images": images, "sizes": np.full((count, 2), (480, 640), np.int64)}
    for _ in range(3):
        session.run(inputs)
    ending, results = threading.Event(), []
    with dummy() as url:
        client = threading.Thread(target=lambda: (results.append(load(url, photo, seconds, rate=rate)), ending.set()))
        client.start()
        time.sleep(min(1.0, seconds / 4))  # until its process has started
        done, started = 0, time.perf_counter()
        while not ending.is_set() and time.perf_counter() - started < seconds - 1:
            session.run(inputs)
            done += count
        taken = time.perf_counter() - started
        client.join()
    return done / taken, results[0]


def overload(url: str, process: psutil.Process, photo: Path, rate: float, seconds: float) -> dict[str, Any]:
    """Return what the client saw, and the server's memory after the first requests and at the end."""
    load(url, photo, min(60.0, FIRST_REQUESTS / rate), OVERLOAD_CONNECTIONS, rate)
    before = process.memory_info().rss
    result = load(url, photo, seconds, OVERLOAD_CONNECTIONS, rate)
    return {**result, "memory": [before, process.memory_info().rss]}


def measure(options: argparse.Namespace, size: int, photo: Path) -> str:
    model = export(options.model, size, options.output, dynamic=options.batch > 1)
    with serving(model, "--batch", str(options.batch), *options.serve.split()) as (url, process):
        load(url, photo, options.seconds / 4)
        result = load(url, photo, options.seconds)
        rate = result["answered_per_second"]
        pressed = overload(url, process, photo, 4 * rate, options.overload) if options.overload else None
    alone, seen = bare(model, size, options.batch, photo, options.seconds, rate)
    cells = [
        f"{size} px", f"{rate:.1f}", f"{alone:.1f}", f"{100 * rate / alone:.0f} %",
        f"{1000 * result['latency']['200']['median']:.0f}",
        f"{result['cpu_seconds']:.1f} s of {result['seconds']:.0f} s ({seen['cpu_seconds']:.1f} s beside bare)",
    ]  # fmt: skip
    if pressed is not None:
        before, after = (value / 2**20 for value in pressed["memory"])
        cells += [
            ", ".join(f"{count} x {status}" for status, count in sorted(pressed["statuses"].items())),
            f"{max(entry['max'] for entry in pressed['latency'].values()):.1f} s",
            f"{before:.0f} -> {after:.0f} MiB ({100 * (after / before - 1):+.1f} %)",
        ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nextdetr-atto")
    parser.add_argument("--image-size", type=int, nargs="+", default=[640, 320])
    parser.add_argument("--batch", type=int, default=1, help="above 1, the model is exported with --dynamic")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--overload", type=float, default=60.0, help="seconds at four times the capacity; 0: skip")
    parser.add_argument("--serve", default="", help="further options of nextdetr serve")
    parser.add_argument("--output", type=Path, default=Path("runs/serve_load"), help="folder of the exports")
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    parser.add_argument("--dummy", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.dummy:
        asyncio.run(serve_nothing())
        return
    options.output.mkdir(parents=True, exist_ok=True)
    photo = photograph(options.output)
    rows = [measure(options, size, photo) for size in options.image_size]
    lines = [
        "# The server under load",
        "",
        f"`python benchmarks/serve_load.py`, {options.model} with random weights, batch {options.batch}, {CONNECTIONS} "
        f"connections, JPEGs of 640 x 480 ({photo.stat().st_size // 1024} KiB), {os.cpu_count()} processors. {machine()}",
        "",
        "| size | serve, images/s | bare runtime | serve / bare | median, ms | client's CPU time | four times the load | "
        "slowest | memory after 1,000 requests, at the end |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    write_result("serve_load", lines, write=options.write)


if __name__ == "__main__":
    main()
