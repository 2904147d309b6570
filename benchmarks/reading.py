"""Time and memory of reading the annotations of large data sets, by format, compared with an earlier commit.

    python benchmarks/reading.py [--before COMMIT] [--pairs 5] [--images 25000 50000 100000] [--formats yolo …] [--write]

The data sets are generated: one small image under many names, with three boxes per image. Each reading is a separate
process that calls ``load_data`` once. Images are not opened, since checking their headers is the same code for all
formats and would hide the differences. Time is the CPU time of the process, user and system, which other work on the
machine affects less than wall time. The two sides take turns, and which one starts alternates. Results are medians,
and the median of the pairwise ratios (after / before) with a 95 % bootstrap interval. Formats that the earlier commit
does not know are read once. Memory is the peak resident memory, minus that before reading.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from before_after import ROOT, checkout, environment
from reading_sets import BOXES, FORMATS, SIZE, link_images
from results import machine, ratio, write_result

KNOWN_BEFORE = ("coco", "yolo", "voc")
MOST = 1.05  # times as long as before

CHILD = f"""
import json, resource, sys
from pathlib import Path
import nextdetr.data.check as check
from nextdetr.data.sources import load_data
report = check.ImageReport{SIZE}
check.inspect_images = lambda paths, **_: [report] * len(paths)
def memory(key):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
def seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
before, start = memory("VmRSS"), seconds()
data = load_data(sys.argv[1], "train", check_images=False)
end = seconds()
found = [len(data.records), sum(len(record.boxes) for record in data.records), len(data.problems)]
print(json.dumps({{"seconds": end - start, "megabytes": (memory("VmHWM") - before) / 1024, "found": found}}))
"""


def read(data: Path, source: Path, count: int) -> dict[str, Any]:
    """Read a data set in a separate process, and check that all of it was found."""
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(data)]
    done = subprocess.run(command, env=environment(source), text=True, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"{data}: {done.stderr.strip().splitlines()[-1]}")
    result: dict[str, Any] = json.loads(done.stdout)
    if result["found"] != [count, BOXES * count, 0]:
        raise SystemExit(f"{data}: {result['found']} images, boxes, problems; expected [{count}, {BOXES * count}, 0]")
    return result


def measure(name: str, count: int, images: Path, before: Path | None, pairs: int) -> dict[str, list[Any]]:
    """Write a data set, read it on both sides alternately, and remove it; one reading if there is no earlier side."""
    layout, root = FORMATS[name], images.parent / "set"
    (root / layout.images).parent.mkdir(parents=True)
    images.rename(root / layout.images)
    results: dict[str, list[Any]] = {"before": [], "after": []}
    try:
        layout.write(root, count)
        if before is not None:
            read(root / layout.data, ROOT, count)  # fills the file system's cache
        sides = {"after": ROOT} if before is None else {"before": before, "after": ROOT}
        for turn in range(pairs):
            for side in sorted(sides, reverse=turn % 2 == 1):
                results[side].append(read(root / layout.data, sides[side], count))
    finally:
        (root / layout.images).rename(images)
        for path in images.glob("*.json"):  # labelme's are next to the images
            path.unlink()
        (images / "metadata.jsonl").unlink(missing_ok=True)
        shutil.rmtree(root)
    return results


def seconds(results: list[Any]) -> list[float]:
    return [result["seconds"] for result in results]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", help="the earlier commit; without it, only the working tree is measured")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--images", type=int, nargs="+", default=[25_000, 50_000, 100_000])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    sizes = sorted(options.images)
    table: dict[str, dict[int, dict[str, list[Any]]]] = {name: {} for name in options.formats}
    with ExitStack() as stack:
        earlier = stack.enter_context(checkout(options.before)) if options.before else None
        for count in sizes:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            link_images(folder / "images", count)
            for name in options.formats:
                last = count == sizes[-1]
                before = earlier if last and name in KNOWN_BEFORE else None
                pairs = 1 if before is None else options.pairs
                table[name][count] = measure(name, count, folder / "images", before, pairs)
                print(name, count, {side: seconds(found) for side, found in table[name][count].items()}, file=sys.stderr)
    write_result("reading", report(table, sizes, options.before), write=options.write)


def report(table: dict[str, dict[int, dict[str, list[Any]]]], sizes: list[int], before: str | None) -> list[str]:
    """Return the lines of the result."""
    lines = ["# Reading annotations", "", machine(), *(__doc__ or "").split("\n\n")[2].splitlines(), ""]
    earlier = f"before: {before}" if before else "before: not measured"
    lines += [f"{sizes[-1]:,} images, {BOXES * sizes[-1]:,} boxes; {earlier}.", ""]
    lines += ["| format | before, s | after, s | after / before | holds |", "|---|---|---|---|---|"]
    for name, found in table.items():
        sides = found[sizes[-1]]
        after = f"{statistics.median(seconds(sides['after'])):.2f}"
        if not sides["before"]:
            lines.append(f"| {name} | none | {after} | none | none |")
            continue
        middle, low, high = ratio(seconds(sides["before"]), seconds(sides["after"]))
        first = f"{statistics.median(seconds(sides['before'])):.2f}"
        verdict = "yes" if middle <= MOST else "no"
        lines.append(f"| {name} | {first} | {after} | {middle:.3f} ({low:.3f} to {high:.3f}) | {verdict} |")
    lines += [
        "",
        "Peak memory, MB, and growth per image, kB, between the two smaller and the two larger data sets.",
        "",
    ]
    lines += [f"| format | {' | '.join(f'{size:,}' for size in sizes)} | kB per image |", "|---" * (len(sizes) + 2) + "|"]
    for name, found in table.items():
        peaks = [statistics.median(r["megabytes"] for r in found[size]["after"]) for size in sizes]
        steps = [
            (peaks[n + 1] - peaks[n]) * 1024 / (sizes[n + 1] - sizes[n]) for n in range(len(sizes) - 1)
        ]  # fmt: skip
        lines.append(
            f"| {name} | {' | '.join(f'{peak:.0f}' for peak in peaks)} | {', '.join(f'{step:.1f}' for step in steps)} |"
        )
    return lines


if __name__ == "__main__":
    main()
