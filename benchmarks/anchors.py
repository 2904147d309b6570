"""Compare our smallest detectors with the smallest of other projects on this processor, all in one run.

    python benchmarks/anchors.py [--models NAME …] [--sizes 320 640] [--before COMMIT] [--rounds 15] [--skip-int8]
        [--work ~/.cache/nextdetr-anchors] [--prepare] [--write]

YOLO26n, D-FINE-N and DEIMv2-Pico (transformers) and RF-DETR-nano (at 384 px, as published) are installed into their own
environments and exported to ONNX with random weights; ours are exported by ``nextdetr export``. 80 classes, batch 1,
two threads. YOLO26n's file and ours output detections, the others' logits and boxes, which is slightly less work. Our
files are first compared with their models in PyTorch. Those of peers are not, since the scores of random weights are
too close to be ordered. Then all files take turns in ONNX Runtime and in OpenVINO, each turn in a separate process
(``anchor_turn.py``), so that drift in the machine's speed affects all of them. For each model the faster runtime
counts. Ratios are medians over the rounds, with a 95 % bootstrap interval. ``--before`` adds our models as exported by
an earlier commit, from the same weights. In 8 bits, ours are ``export --int8``; peers are quantised by NNCF with the
same settings, in OpenVINO.

Environments and files stay in the work folder for the next run; ``--prepare`` creates them without timing anything.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from anchor_files import PEERS, RUNTIMES, Candidate, checkpoint, digest, ours, peers, quantized, say
from before_after import ROOT, checkout
from nextdetr.export.measure import ceilings
from results import machine, ratio, write_result

THREADS = 2
SECONDS = 1.0  # of each turn
OURS = ["nextdetr-zepto", "nextdetr-atto"]
BASE = "yolo26n"
Seconds = dict[tuple[str, int, str, str], list[float]]


def shipped(name: str, tree: Path) -> bool:
    """Whether a tree contains a model of that name."""
    return (tree / "src" / "nextdetr" / "configs" / f"{name}.yaml").is_file()


def candidates(options: argparse.Namespace, work: Path, earlier: Path | None) -> list[Candidate]:
    """All files, exported if they do not exist yet."""
    theirs = [name for name in options.models if name in PEERS]
    found = peers(theirs, options.sizes, work)
    if not options.skip_int8:
        found += [made for candidate in found if candidate.runtime == "openvino" for made in quantized(candidate, work)]
    for name in options.models:
        if name in PEERS:
            continue
        if not shipped(name, ROOT):
            say(f"{name} is skipped: this tree does not contain it")
            continue
        known = earlier is not None and shipped(name, earlier)
        weights = checkpoint(name, earlier if earlier is not None and known else ROOT, work)
        found += ours(name, weights, ROOT, options.sizes, work, int8=not options.skip_int8)
        if earlier is not None and known:
            found += ours(name, weights, earlier, options.sizes, work, int8=False, label=f"{name} at {options.before}")
    return found


def fastest(found: Sequence[Candidate], seconds: Seconds) -> dict[str, Candidate]:
    """For each model, the runtime with the smaller median."""
    best: dict[str, Candidate] = {}
    for candidate in found:
        taken = statistics.median(seconds[candidate.key])
        if candidate.name not in best or taken < statistics.median(seconds[best[candidate.name].key]):
            best[candidate.name] = candidate
    return best


def beside(seconds: Seconds, candidate: Candidate, base: Candidate | None) -> str:
    """A cell: the ratio of a file's time to another's, with its interval."""
    if base is None:
        return ""
    if base is candidate:
        return "1"
    middle, low, high = ratio(seconds[base.key], seconds[candidate.key])
    return f"**{middle:.2f}** ({low:.2f} to {high:.2f})"


def table(found: Sequence[Candidate], seconds: Seconds, before: str | None) -> Iterator[str]:
    """The lines of one size and precision."""
    best = fastest(found, seconds)
    heads = ["", "version", "parameters, M", "GFLOP", "ONNX Runtime, ms", "OpenVINO, ms", "GFLOP/s", f"beside {BASE}"]
    heads += [f"beside {before}"] if before else []
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    times = {candidate.key: 1000 * statistics.median(seconds[candidate.key]) for candidate in found}
    for name, candidate in best.items():
        facts = candidate.facts
        cells = [name, facts["version"], f"{facts['parameters'] / 1e6:.1f}", f"{facts['gflop']:.1f}"]
        for kind in RUNTIMES:
            taken = times.get((name, candidate.size, candidate.precision, kind))
            cells.append("-" if taken is None else f"{taken:.1f}")
        cells.append(f"{facts['gflop'] / times[candidate.key] * 1000:.0f}")
        cells.append(beside(seconds, candidate, best.get(BASE)))
        cells += [beside(seconds, candidate, best.get(f"{name} at {before}"))] if before else []
        yield f"| {' | '.join(cells)} |"


def turn(candidate: Candidate) -> float:
    """Seconds of one call of a file, in a process of its own."""
    script = Path(__file__).with_name("anchor_turn.py")
    arguments = [candidate.file, candidate.runtime, candidate.size, THREADS, SECONDS]
    command = [sys.executable, "-W", "ignore", str(script), *map(str, arguments)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def report(found: Sequence[Candidate], seconds: Seconds, options: argparse.Namespace) -> list[str]:
    """The result file."""
    limit = ceilings(THREADS)
    lines = [
        "# Compared with the smallest detectors of other projects",
        "",
        f"`python benchmarks/anchors.py --sizes {' '.join(map(str, options.sizes))} --rounds {options.rounds}"
        + (f" --before {options.before}" if options.before else "")
        + (" --skip-int8" if options.skip_int8 else "")
        + f"`: batch 1, {THREADS} threads, 80 classes, random weights, medians of {options.rounds} interleaved rounds, "
        "each turn in a separate process. Ratios: each model in its faster runtime, with a 95 % bootstrap interval. "
        f"{machine()} It multiplies float32 matrices at {limit.gflops:.0f} GFLOP/s. Source of ours: {digest(ROOT)}.",
    ]
    for precision in ("float32", "int8"):
        for size in sorted({candidate.size for candidate in found}):
            part = [candidate for candidate in found if (candidate.size, candidate.precision) == (size, precision)]
            if part:
                lines += ["", f"## {precision}, {size} px", "", *table(part, seconds, options.before)]
    lines += ["", "## Do the files match their models", "", *parity(found), ""]
    return lines


def parity(found: Sequence[Candidate]) -> Iterator[str]:
    """The largest difference between each of our files and its model in PyTorch, on one image."""
    yield "Largest difference of a box to the same model in PyTorch, as a fraction of the picture; peers are not checked."
    yield ""
    yield "| | px | | runtime | difference |"
    yield "|---|---|---|---|---|"
    for candidate in found:
        if candidate.name in PEERS:
            continue
        shown = f"{candidate.facts['difference']:.1e}"
        yield f"| {candidate.name} | {candidate.size} | {candidate.precision} | {RUNTIMES[candidate.runtime]} | {shown} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[*PEERS, *OURS], help=f"of {', '.join(PEERS)}, and ours")
    parser.add_argument("--sizes", nargs="+", type=int, default=[320, 640])
    parser.add_argument("--before", help="also time our models as exported by this commit")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--skip-int8", action="store_true")
    parser.add_argument("--work", default="~/.cache/nextdetr-anchors", help="folder of environments and exported files")
    parser.add_argument("--prepare", action="store_true", help="install and export only")
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    work = Path(options.work).expanduser().resolve()
    with ExitStack() as stack:
        earlier = stack.enter_context(checkout(options.before)) if options.before else None
        found = candidates(options, work, earlier)
    if options.prepare:
        return
    say(f"timing {len(found)} files, {options.rounds} rounds")
    seconds: Seconds = {candidate.key: [] for candidate in found}
    for _ in range(options.rounds):
        for candidate in found:
            seconds[candidate.key].append(turn(candidate))
    write_result("anchors", report(found, seconds, options), write=options.write)


if __name__ == "__main__":
    main()
