"""The server under load, compared with the runtime alone next to the same client, on this computer only.

    python benchmarks/serve_load.py [--image-size 640 320] [--seconds 20] [--overload 60] [--peer litserve] [--write]

For each image size, with JPEGs of 640 x 480 over 32 connections from another process:

- serve: images per second of ``nextdetr serve`` with the exported model;
- bare: images per second of the runtime alone on prepared inputs, with the same batch size, while the same client sends
  the same number of requests per second to an endpoint that reads them and does nothing;
- overload: four times as many requests per second as the server handles. Each must be answered or refused with 503, and
  memory must not grow after the first thousand.

With ``--peer litserve``, only this: ``nextdetr serve`` and LitServe (in an environment of its own, with one worker and with
two) answer the same requests in turns, with the same file, runtime and batch size, and then the runtime runs alone.

Needs an idle machine, since other processes change the result.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from environments import environment, surroundings
from results import machine, ratio, write_result

CLIENT, PEER = Path(__file__).with_name("serve_client.py"), Path(__file__).with_name("serve_peer.py")
LITSERVE, WORKERS = "litserve==0.2.19", (1, 2)
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


@contextlib.contextmanager
def peer_serving(model: Path, size: int, runtime: str, batch: int, workers: int, folder: Path) -> Iterator[str]:
    """Serve the file with LitServe, and yield its address."""
    python = environment(folder, "litserve", [LITSERVE])
    command = [str(python), str(PEER), str(model.resolve()), str(size), "--runtime", runtime]
    command += ["--batch", str(batch), "--workers", str(workers)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=surroundings(os.cpu_count() or 1), start_new_session=True
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline().split()
        if not said:
            raise SystemExit("LitServe did not start; its own message is above.")
        yield said[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with its workers
        process.wait(60)


def load(
    url: str, photo: Path, seconds: float, connections: int = CONNECTIONS, rate: float | None = None,
    form: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    command = [sys.executable, str(CLIENT), f"{url}/predict", str(photo), "--seconds", str(seconds)]
    command += ["--connections", str(connections), *(() if rate is None else ("--rate", str(rate)))]
    command += () if form is None else ("--form", form)
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


def bare(
    model: Path, size: int, batch: int, photo: Path, seconds: float, rate: float, runtime: Any = "auto"
) -> tuple[float, dict[str, Any]]:
    """Return images per second of the runtime, and what the client saw meanwhile."""
    from nextdetr.inference.runtimes import open_session

    session, contract, _ = open_session(model, runtime=runtime)
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


def beside(options: argparse.Namespace, size: int, photo: Path) -> list[str]:
    """Compare the servers in turns; return the rows of a table."""
    model = export(options.model, size, options.output, dynamic=options.batch > 1)
    with contextlib.ExitStack() as stack:
        url, _ = stack.enter_context(serving(model, "--batch", str(options.batch), *options.serve.split()))
        with urllib.request.urlopen(f"{url}/model") as answer:
            runtime = json.load(answer)["runtime"]
        servers = {"`nextdetr serve`": url}
        for workers in WORKERS:
            peer = peer_serving(model, size, runtime, options.batch, workers, options.environment)
            servers[f"{LITSERVE}, {workers} worker{'s' * (workers > 1)}"] = stack.enter_context(peer)
        for place in servers.values():
            load(place, photo, options.seconds / 4, form="image")
        seen: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
        for _ in range(options.turns):
            for name, place in servers.items():
                seen[name].append(load(place, photo, options.seconds, form="image"))
    rows = list(peer_rows(size, runtime, seen))
    ours = statistics.median(result["answered_per_second"] for result in next(iter(seen.values())))
    alone, _ = bare(model, size, options.batch, photo, options.seconds, ours, runtime)
    return [*rows, f"| {size} px | {runtime} alone | {alone:.1f} | {ours / alone:.2f} | | |"]


def peer_rows(size: int, runtime: str, seen: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """Format what the client saw of each server in each turn; the first server is ours."""
    rates = {name: [result["answered_per_second"] for result in results] for name, results in seen.items()}
    ours = next(iter(rates.values()))
    for name, results in seen.items():
        wrong = {status for result in results for status in result["statuses"]} - {"200"}
        if wrong:
            raise SystemExit(f"{name}: not every request was answered ({', '.join(sorted(wrong))}).")
        middle, low, high = ratio(rates[name], ours)
        compared = "" if rates[name] is ours else f"{middle:.2f} ({low:.2f} to {high:.2f})"
        times = [statistics.median(result["latency"]["200"][kind] for result in results) for kind in ("median", "p99")]
        cells = [f"{size} px", f"{name}, {runtime}", f"{statistics.median(rates[name]):.1f}", compared]
        yield f"| {' | '.join([*cells, *(f'{1000 * seconds:.0f}' for seconds in times)])} |"


def write_peer(options: argparse.Namespace, photo: Path) -> None:
    rows = [row for size in options.image_size for row in beside(options, size, photo)]
    lines = [
        "# The server next to LitServe",
        "",
        f"`python benchmarks/serve_load.py --peer litserve`, {options.model} with random weights, the same ONNX file in "
        f"all, batch {options.batch}, {CONNECTIONS} connections, forms with a JPEG of 640 x 480 "
        f"({photo.stat().st_size // 1024} KiB), {options.turns} turns of {options.seconds:.0f} s each. {machine()}",
        "",
        "| size | server, runtime | images/s | times as many by `nextdetr serve` | median, ms | 99 %, ms |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    write_result("serve_peer", lines, write=options.write)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nextdetr-atto")
    parser.add_argument("--image-size", type=int, nargs="+", default=[640, 320])
    parser.add_argument("--batch", type=int, default=1, help="above 1, the model is exported with --dynamic")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--overload", type=float, default=60.0, help="seconds at four times the capacity; 0: skip")
    parser.add_argument("--serve", default="", help="further options of nextdetr serve")
    parser.add_argument("--peer", choices=("litserve",), help="compare with this server instead")
    parser.add_argument("--turns", type=int, default=5, help="of each server, with --peer")
    parser.add_argument("--environment", type=Path, default=Path("~/.cache/nextdetr-peers"), help="folder of the peer")
    parser.add_argument("--output", type=Path, default=Path("runs/serve_load"), help="folder of the exports")
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    parser.add_argument("--dummy", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.dummy:
        asyncio.run(serve_nothing())
        return
    options.output.mkdir(parents=True, exist_ok=True)
    photo = photograph(options.output)
    if options.peer:
        write_peer(options, photo)
        return
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
