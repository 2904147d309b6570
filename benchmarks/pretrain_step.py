"""Compare a pre-training step on visible patches with the same step using dense masked convolutions, in one run.

    python benchmarks/pretrain_step.py [--size atto] [--image-size 224] [--mask-ratio 0.6] [--batch-size 32] [--repeats 5]

Both are the same FCMAE model (encoder, decoder, loss and masks), forward and backward in float32, without the
optimiser. The dense one computes the encoder as SparK does (arXiv 2301.03580): channels-last maps of the whole image,
multiplied by the mask as rarely as possible, with the fast layers of the detector. Only the encoder differs. Steps
alternate, so that drift in the machine's speed affects both. Results are medians, and the median of the pairwise
ratios. Peak memory is that of one step in a separate process, above what the process used before. The matrix-multiply
rate is that of torch on 2048 x 2048 matrices in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from nextdetr.memory import keep_freed_memory
from nextdetr.models.convnextv2 import SIZES, convnextv2
from nextdetr.models.fcmae import FCMAE
from results import machine, write_result

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.models.masked_dense import encode_dense, mask_of, tuned_block

Step = Callable[[Tensor, Tensor], float]


def sparse_step(model: FCMAE) -> Step:
    def step(images: Tensor, noise: Tensor) -> float:
        model.zero_grad(set_to_none=True)
        loss = model(images, noise)
        loss.backward()
        return float(loss.detach())

    return step


def dense_step(model: FCMAE) -> Step:
    def step(images: Tensor, noise: Tensor) -> float:
        model.zero_grad(set_to_none=True)
        inputs = (images - model.mean) / model.std
        masking = model.draw_mask(inputs, noise)
        mask = mask_of(masking.visible.ids, masking.visible.grid)
        seen = masking.visible.gather(encode_dense(model.encoder, inputs, mask, tuned_block), model.patch_size // 32)
        predicted = model.decode(model.proj(seen), masking)
        loss = torch.nn.functional.mse_loss(predicted, model.target(inputs, masking.hidden))
        loss.backward()
        return float(loss.detach())

    return step


STEPS = {"sparse": sparse_step, "dense": dense_step}


def build(options: argparse.Namespace) -> tuple[FCMAE, Tensor, Tensor]:
    torch.manual_seed(0)
    model = FCMAE(convnextv2(options.size), mask_ratio=options.mask_ratio).train()
    images = torch.rand(options.batch_size, 3, options.image_size, options.image_size)
    return model, images, torch.rand(options.batch_size, (options.image_size // 32) ** 2)


def multiply_adds(options: argparse.Namespace) -> float:
    """Multiply-adds of one sparse training step: three times those of the forward pass, visible patches only."""
    depths, dims = SIZES[options.size][:2]
    patches = (options.image_size // 32) ** 2
    visible = int(patches * (1 - options.mask_ratio) + 1e-9)
    total, before = 0.0, 3 * 16 / 4
    for stage, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
        positions = visible * (8 >> stage) ** 2
        total += positions * (4 * before * dim + depth * (49 * dim + 8 * dim * dim))
        before = dim
    width, hidden = min(512, dims[-1] // 2), patches - visible
    total += visible * dims[-1] * width + patches * 49 * width + hidden * (8 * width * width + width * 3072)
    return 3 * total * options.batch_size


def matmul_rate() -> float:
    """Multiply-adds per second."""
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        a @ b
        best = max(best, 2048**3 / (time.perf_counter() - started))
    return best


def peak_megabytes(kind: str, options: argparse.Namespace) -> float:
    """Peak memory of one step in a separate process."""
    command = [
        sys.executable, __file__, "--memory-of", kind, "--size", options.size, "--image-size", str(options.image_size),
        "--mask-ratio", str(options.mask_ratio), "--batch-size", str(options.batch_size), "--threads", str(options.threads),
    ]  # fmt: skip
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(options: argparse.Namespace) -> None:
    model, images, noise = build(options)
    step = STEPS[options.memory_of](model)
    step(images[:1], noise[:1])  # initialises whatever is loaded lazily
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak_resident()
    step(images, noise)
    print(peak_resident() - before)


def peak_resident() -> float:
    """Peak resident memory of this process, MB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="atto", choices=list(SIZES))
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--mask-ratio", type=float, default=0.6)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    parser.add_argument("--memory-of", choices=list(STEPS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        measure_memory(options)
        return
    keep_freed_memory()
    model, images, noise = build(options)
    steps = {name: make(model) for name, make in STEPS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    losses = {}
    for repeat in range(options.repeats + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            losses[name] = step(images, noise)
            if repeat:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - started)
    ratio = statistics.median(dense / sparse for sparse, dense in zip(seconds["sparse"], seconds["dense"], strict=True))
    rate = matmul_rate()
    used = multiply_adds(options) / statistics.median(seconds["sparse"])
    memory = {name: peak_megabytes(name, options) for name in steps}
    assert abs(losses["sparse"] - losses["dense"]) < 1e-4, losses
    lines = [
        f"# One pre-training step, convnextv2-{options.size}",
        "",
        f"`python benchmarks/pretrain_step.py`: {options.image_size} px, mask {options.mask_ratio}, batch "
        f"{options.batch_size}, {options.threads} threads, float32, median of {options.repeats}. {machine()}",
        "",
        "| encoder | seconds per step, median | min | max | images/s | peak memory, MB |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {statistics.median(values):.3f} | {min(values):.3f} | {max(values):.3f} | "
            f"{options.batch_size / statistics.median(values):.1f} | {memory[name]:.0f} |"
            for name, values in seconds.items()
        ),
        "",
        f"Dense masked / sparse, median of pairs: time **{ratio:.2f}** (target at least 2). Sparse / dense: peak memory "
        f"**{memory['sparse'] / memory['dense']:.2f}** (target at most 0.6). The sparse step does {used / 1e9:.1f} G "
        f"multiply-adds per second, {used / rate:.0%} of this machine's matrix multiplication ({rate / 1e9:.1f} G).",
    ]
    write_result("pretrain_step", lines, write=options.write)


if __name__ == "__main__":
    main()
