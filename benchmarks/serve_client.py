"""A load of HTTP requests from a separate process, on this computer only; prints one JSON object.

    python benchmarks/serve_client.py http://127.0.0.1:8000/predict photo.jpg --connections 32 --seconds 20 [--rate 50]

Each connection sends its next request when it has the response to the last one. With ``--rate``, that many requests per
second are sent in total, whether or not the server keeps up, as long as a connection is free. With ``--form NAME``, the
photograph is the file NAME of a form instead of the body.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import resource
import statistics
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

MOST_SECONDS, MOST_CONNECTIONS, ANSWER_SECONDS = 300.0, 1024, 60.0


class Load:
    """Shared by all connections: the request, the clock and the responses."""

    def __init__(self, url: str, body: bytes, seconds: float, rate: float | None, kind: str = "image/jpeg") -> None:
        parts = urlsplit(url)
        if not ipaddress.ip_address(parts.hostname or "").is_loopback:
            raise SystemExit(f"{url}: only addresses of this computer are allowed.")
        self.host, self.port = parts.hostname, parts.port
        head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: {kind}\r\n"
        self.request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self.started, self.seconds, self.rate = time.perf_counter(), seconds, rate
        self.sent = 0
        self.statuses: Counter[str] = Counter()
        self.latencies: dict[str, list[float]] = {}

    async def turn(self) -> bool:
        """Wait until the next request is due; return whether there is time for it."""
        if self.rate is not None:
            due = self.started + self.sent / self.rate
            self.sent += 1
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        return time.perf_counter() - self.started < self.seconds

    def note(self, status: str, taken: float) -> None:
        """Count a response and its seconds."""
        self.statuses[status] += 1
        self.latencies.setdefault(status, []).append(taken)


def form(name: str, photo: bytes) -> tuple[bytes, str]:
    """Return the body and the type of a form with one file."""
    edge = "a-photograph-of-the-load"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="{name}"; filename="photo.jpg"\r\nContent-Type: image/jpeg'
    return f"{head}\r\n\r\n".encode() + photo + f"\r\n--{edge}--\r\n".encode(), f"multipart/form-data; boundary={edge}"


async def connection(load: Load) -> None:
    if not await load.turn():  # a connection is only opened when there is something to send
        return
    reader, writer = await asyncio.open_connection(load.host, load.port)
    while True:
        begun = time.perf_counter()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                writer.write(load.request)
                await writer.drain()
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.partition(b":")[2]))
            load.note(head.split(b" ", 2)[1].decode(), time.perf_counter() - begun)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            load.note(f"lost: {type(error).__name__}", time.perf_counter() - begun)
            writer.close()
            reader, writer = await asyncio.open_connection(load.host, load.port)
        if not await load.turn():
            break
    writer.close()


async def run(load: Load, connections: int) -> dict[str, object]:
    await asyncio.gather(*(connection(load) for _ in range(connections)))
    taken = time.perf_counter() - load.started
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": taken,
        "statuses": dict(load.statuses),
        "answered_per_second": load.statuses["200"] / taken,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "latency": {
            status: {
                "median": statistics.median(values),
                "p99": sorted(values)[int(len(values) * 0.99)],
                "max": max(values),
            }
            for status, values in load.latencies.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("photo", type=Path)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--form", metavar="NAME", help="send the photograph as the file NAME of a form")
    options = parser.parse_args()
    if options.seconds > MOST_SECONDS or options.connections > MOST_CONNECTIONS:
        raise SystemExit(f"at most {MOST_SECONDS:.0f} seconds and {MOST_CONNECTIONS} connections.")

    photo = options.photo.read_bytes()
    body, kind = (photo, "image/jpeg") if options.form is None else form(options.form, photo)

    async def begin() -> dict[str, object]:
        return await run(Load(options.url, body, options.seconds, options.rate, kind), options.connections)

    print(json.dumps(asyncio.run(begin())))


if __name__ == "__main__":
    main()
