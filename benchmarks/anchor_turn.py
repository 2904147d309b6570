"""One turn of ``anchors.py``: times one file in a separate process, as in deployment.

    python benchmarks/anchor_turn.py FILE {onnx,openvino} SIZE THREADS SECONDS

Prints the median seconds of a call. If other runtimes are open in the same process, their threads busy-wait and compete
for the processor: OpenVINO's files, including YOLO26n's, then took up to 1.4 times as long.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np

from anchor_files import Candidate, opened

WARM_UP = 8  # calls
LEAST = 10  # calls that count


def main() -> None:
    file, runtime, size, threads, seconds = sys.argv[1:]
    side = int(size)
    picture = np.random.default_rng(0).random((1, 3, side, side), np.float32)
    run = opened(Candidate("", side, "", runtime, Path(file)), int(threads), picture)
    for _ in range(WARM_UP):
        run()
    taken: list[float] = []
    while len(taken) < LEAST or sum(taken) < float(seconds):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    print(statistics.median(taken))


if __name__ == "__main__":
    main()
