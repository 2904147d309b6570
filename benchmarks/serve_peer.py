"""LitServe with an exported detector, the peer of ``serve_load.py``; it runs in an environment of its own.

    python benchmarks/serve_peer.py model.onnx 640 [--runtime openvino] [--batch 4] [--workers 2]

Written as LitServe's documentation shows: the file of a form is decoded in ``decode_request``, and ``predict`` runs the
model. Steps and settings are those of ``nextdetr serve``: decode, resize, run, and answer with the boxes above the
threshold as JSON. Prints its address and LitServe's version once it answers.
"""

# Annotations are kept as types: LitServe passes them to FastAPI.

import argparse
import os
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import litserve
import numpy as np
from fastapi import Request
from PIL import Image

THRESHOLD = 0.3
OUTPUTS = ("boxes", "scores", "labels")
WAIT = 0.01  # seconds for a batch to fill, as in LitServe's examples

Arrays = dict[str, Any]


class DetectorAPI(litserve.LitAPI):
    """One ONNX file; LitServe calls its methods in this order."""

    def __init__(self, model: str, size: int, runtime: str, batch: int) -> None:
        super().__init__(max_batch_size=batch, batch_timeout=WAIT if batch > 1 else 0.0)
        self.model, self.size, self.runtime = model, size, runtime

    def setup(self, device: str) -> None:
        """Open the file in a worker."""
        self.run = opened(self.model, self.runtime)

    def decode_request(self, request: Request) -> tuple[Any, tuple[int, int]]:
        """Return the model's input, and the image's height and width."""
        image = Image.open(request["image"].file).convert("RGB")
        small = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return np.asarray(small, dtype=np.float32).transpose(2, 0, 1) / 255, (image.height, image.width)

    def predict(self, inputs: Any) -> Any:
        """Run one input, or the list of a batch; LitServe distributes a list."""
        given = inputs if isinstance(inputs, list) else [inputs]
        feed = {
            "images": np.ascontiguousarray(np.stack([planes for planes, _ in given])),
            "sizes": np.array([size for _, size in given], np.int64),
        }
        found = self.run(feed)
        results = [{name: found[name][i] for name in OUTPUTS} for i in range(len(given))]
        return results if isinstance(inputs, list) else results[0]

    def encode_response(self, output: Arrays):  # noqa: ANN201 - LitServe takes it for FastAPI's kind of response
        """Return what becomes the JSON."""
        kept = output["scores"] >= THRESHOLD
        return {name: output[name][kept].tolist() for name in OUTPUTS}


def opened(model: str, runtime: str) -> Callable[[Arrays], Arrays]:
    """Return a function that runs the file, with NextDETR's settings of the runtime."""
    if runtime == "openvino":
        import openvino

        exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
        compiled = openvino.Core().compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", **exact})
        request = compiled.create_infer_request()

        def infer(feed: Arrays) -> Arrays:
            request.infer(feed)
            return {name: request.get_tensor(name).data for name in OUTPUTS}

        return infer
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return lambda feed: dict(zip(OUTPUTS, session.run(list(OUTPUTS), feed), strict=True))


def announce(port: int) -> None:
    """Print the address once all workers are ready."""
    url = f"http://127.0.0.1:{port}"
    for _ in range(1200):
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                print(url, version("litserve"), flush=True)
                return
        except OSError:
            time.sleep(0.1)
    os._exit(1)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("size", type=int)
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), default="onnxruntime")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    port = free_port()
    threading.Thread(target=announce, args=(port,), daemon=True).start()
    api = DetectorAPI(options.model, options.size, options.runtime, options.batch)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=options.workers, timeout=False)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")


if __name__ == "__main__":
    main()
