"""Is Winograd's filtering faster? 3 × 3 convolutions of RT-DETR's encoder: ours, ncnn, OpenVINO, ONNX Runtime, PyTorch.

    python benchmarks/winograd.py [--image-size 640] [--channels 256] [--repeats 15] [--write]

35 of the reference model's 71 GFLOP at 640 px are 3 × 3 convolutions of stride 1, 256 to 256 channels, at strides 8, 16
and 32. Ours (``layers/winograd.py``) and ncnn compute them by Winograd's minimal filtering (arXiv 1509.09308), the
others directly or from the graph that ``nextdetr export`` writes (``export/winograd.py``). Each convolution alone,
float32, batch 1, two threads, interleaved; ncnn, if installed (``pip install ncnn``), with and without Winograd; and a
training step, forward and backward, at batch 4 and half the size.
"""

from __future__ import annotations

import argparse
import statistics
import struct
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from torch.nn import functional

from nextdetr.export.onnx import quiet
from nextdetr.export.winograd import WinogradConv
from nextdetr.inference.onnx import start_session
from nextdetr.inference.openvino import compile_on_cpu
from nextdetr.layers.winograd import Conv3x3, from_points, to_points, winograd_conv, winograd_kernel
from nextdetr.memory import keep_freed_memory
from results import machine, take_turns, write_result

THREADS = 2
Run = Callable[[], Any]


def in_ncnn(conv: torch.nn.Conv2d, x: torch.Tensor, folder: Path, winograd: bool) -> Run:
    """The convolution in ncnn's own format: text for the layers, then the weights after a tag of zeros."""
    import ncnn

    weight = conv.weight.detach().numpy()
    assert conv.bias is not None
    channels = conv.out_channels
    layers = f"Convolution c 1 1 x y 0={channels} 1=3 4=1 5=1 6={weight.size}"
    (folder / "c.param").write_text(f"7767517\n2 2\nInput x 0 1 x\n{layers}\n", encoding="utf-8")
    raw = struct.pack("<I", 0) + weight.tobytes() + conv.bias.detach().numpy().tobytes()
    (folder / "c.bin").write_bytes(raw)
    net = ncnn.Net()
    net.opt.num_threads = THREADS
    net.opt.use_winograd_convolution = winograd
    net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_fp16_packed = net.opt.use_bf16_storage = False
    net.load_param(str(folder / "c.param"))
    net.load_model(str(folder / "c.bin"))
    picture = ncnn.Mat(x[0].numpy())

    def run() -> Any:
        extractor = net.create_extractor()
        extractor.input("x", picture)
        return np.array(extractor.extract("y")[1])

    with torch.no_grad():
        expected = conv(x)[0].numpy()
    error = float(np.abs(run() - expected).max() / np.abs(expected).max())
    if error > 1e-3:
        raise SystemExit(f"ncnn computes a different result: relative difference {error:.1e}")
    return run


def in_runtimes(layer: torch.nn.Module, x: torch.Tensor, folder: Path, note: str) -> dict[str, Run]:
    """The layer in OpenVINO and in ONNX Runtime."""
    file = str(folder / "c.onnx")
    with quiet():
        torch.onnx.export(layer, (x,), file, dynamo=True, external_data=False, input_names=["x"], output_names=["y"])
    session = start_session(file, THREADS)
    request = compile_on_cpu(openvino.Core(), file, THREADS).create_infer_request()
    feed = {"x": x.numpy()}
    return {
        f"OpenVINO{note}": lambda: request.infer(feed),
        f"ONNX Runtime{note}": lambda: session.run(None, feed),
    }


def candidates(side: int, channels: int, folder: Path) -> dict[str, Run]:
    """Functions to time on a map of ``side`` by ``side``."""
    torch.manual_seed(0)
    conv = Conv3x3(channels, channels).eval().requires_grad_(False)
    x = torch.rand(1, channels, side, side)
    exported = in_runtimes(conv, x, folder, "")
    exported |= in_runtimes(WinogradConv(conv, side, side), x, folder, ", our graph with Winograd")
    conv, x = conv.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    points = winograd_kernel(conv.weight)
    runs: dict[str, Run] = {
        "ours, Winograd": lambda: from_points(torch.bmm(to_points(x), points), x.shape) + conv.bias[:, None, None],
        "PyTorch": lambda: functional.conv2d(x, conv.weight, conv.bias, padding=1),
        **exported,
    }
    if find_spec("ncnn") is not None:
        plain = x.contiguous()
        for name, winograd in (("ncnn, Winograd", True), ("ncnn, direct", False)):
            runs[name] = in_ncnn(conv, plain, folder, winograd)
    return runs


def training(side: int, channels: int) -> dict[str, Run]:
    """One step forward and backward, four images."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    x = torch.rand(4, channels, side, side).to(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.rand_like(x)

    def step(convolve: Callable[[torch.Tensor], torch.Tensor]) -> None:
        conv.weight.grad = x.grad = None
        convolve(x).backward(gradient)

    return {
        "ours, Winograd, training": lambda: step(lambda given: winograd_conv(given, conv.weight)),
        "PyTorch, training": lambda: step(conv),
    }


def table(label: str, seconds: dict[str, list[float]], pixels: int, channels: int) -> list[str]:
    """Rows of medians, with the ratio to the best direct convolution."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    best = min(value for name, value in median.items() if "Winograd" not in name)
    gflop = 2 * 9 * channels**2 * pixels / 1e9
    return [
        f"| {label} | {name} | {1000 * value:.2f} | {gflop / value:.0f} | {value / best:.2f} |"
        for name, value in median.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(THREADS)
    rows = []
    for stride in (8, 16, 32):
        side = options.image_size // stride
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            seconds = take_turns(candidates(side, options.channels, Path(folder)), options.repeats)
            rows += table(f"{side} x {side}", seconds, side**2, options.channels)
        half = side // 2
        seconds = take_turns(training(half, options.channels), options.repeats)
        rows += table(f"4 x {half} x {half}", seconds, 3 * 4 * half**2, options.channels)
    lines = [
        f"# 3 x 3 convolutions with and without Winograd, {options.channels} to {options.channels} channels",
        "",
        f"`python benchmarks/winograd.py`: {THREADS} threads, median of {options.repeats}, interleaved. {machine()}",
        "",
        "| map | | ms | GFLOP/s of direct convolution | ratio to the best direct one |",
        "|---|---|---|---|---|",
        *rows,
    ]
    write_result("winograd", lines, write=options.write)


if __name__ == "__main__":
    main()
