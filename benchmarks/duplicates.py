"""Near duplicates: plant copies of every image, and count how many ``find_duplicates`` finds, and what else it reports.

    python benchmarks/duplicates.py DATA [--sheets FOLDER] [--time 10000] [--write]

DATA is a folder with ``bccd``, ``facemask.yaml`` and ``coco_tiny.yaml``. Every image gets one copy for each kind of
change: a crop of four fifths of the area (of the same shape, or up to a fifth wider or higher), a new encoding (JPEG of
quality 20 to 70 or WebP, at 0.4 to 1.2 of the size), a mirrored copy, one with brightness 0.5 to 0.8 or 1.25 to 1.6,
and, beyond the target, all changes at once. The thresholds were chosen on the training splits of BCCD and Facemask and
every other image of coco_tiny; the rest is reported separately. ``--sheets`` draws pairs that were not planted side by
side, since false ones can only be recognised by eye. ``--time N`` writes N JPEGs of 640 x 480, windows of the images
with some noise, and measures the CPU time.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from nextdetr.data.duplicates import Groups, find_duplicates
from nextdetr.data.sources import load_data
from nextdetr.preprocess import load_image
from results import machine, write_result

AREA = 0.8
Change: TypeAlias = Callable[[Image.Image, np.random.Generator], Image.Image]


def crop(image: Image.Image, generator: np.random.Generator, wider: float = 1.0) -> Image.Image:
    shape = math.exp(generator.uniform(-math.log(wider), math.log(wider)))
    width = min(1.0, math.sqrt(AREA * shape))
    height = min(1.0, AREA / width)
    width = AREA / height
    x, y = generator.uniform(0, 1 - width), generator.uniform(0, 1 - height)
    left, top = round(x * image.width), round(y * image.height)
    return image.crop((left, top, left + round(width * image.width), top + round(height * image.height)))


def crop_other_shape(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    return crop(image, generator, 1.22)


def encode(image: Image.Image, quality: float, kind: str = "JPEG") -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, kind, quality=int(quality))
    return Image.open(stream).convert("RGB")


def encoding(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    scale = generator.uniform(0.4, 1.2)
    size = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
    kind = "JPEG" if generator.random() < 0.5 else "WEBP"
    return encode(image.resize(size, Image.Resampling.BICUBIC), generator.uniform(20, 70), kind)


def mirror(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    return ImageOps.mirror(image)


def brightness(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    factor = generator.uniform(0.5, 0.8) if generator.random() < 0.5 else generator.uniform(1.25, 1.6)
    return ImageEnhance.Brightness(image).enhance(factor)


def everything(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    image = ImageOps.mirror(crop(image, generator, 1.1))
    return encode(ImageEnhance.Brightness(image).enhance(generator.uniform(0.7, 1.3)), generator.uniform(40, 80))


CHANGES: dict[str, Change] = {
    "crop": crop, "crop of another shape": crop_other_shape, "new encoding": encoding, "mirrored": mirror,
    "brightness": brightness, "all at once": everything,
}  # fmt: skip
BEYOND = "all at once"


def image_sets(data: Path) -> dict[str, list[Path]]:
    """Return the images by set and part: those that the thresholds were chosen on, and the rest."""

    def paths(name: str, *splits: str) -> list[Path]:
        return [record.path for split in splits for record in load_data(data / name, split, check_images=False).records]

    tiny = paths("coco_tiny.yaml", "train")
    return {
        "BCCD train (chosen on)": paths("bccd", "train"), "BCCD val, test": paths("bccd", "val", "test"),
        "Facemask train (chosen on)": paths("facemask.yaml", "train"), "Facemask val": paths("facemask.yaml", "val"),
        "coco_tiny, half (chosen on)": tiny[::2], "coco_tiny, other half": tiny[1::2],
        "BCCD": paths("bccd", "train", "val", "test"), "Facemask": paths("facemask.yaml", "train", "val"),
        "coco_tiny": tiny,
    }  # fmt: skip


def plant(paths: Sequence[Path], change: Change, folder: Path, seed: int) -> list[Path]:
    """Write a changed copy of every image as JPEG of quality 90; the same image, change and seed give the same copy."""
    copies = []
    for number, path in enumerate(paths):
        generator = np.random.default_rng((seed, number))
        copy = folder / f"{number}.jpg"
        change(load_image(path), generator).save(copy, quality=90)
        copies.append(copy)
    return copies


def score(paths: Sequence[Path], copies: Sequence[Path]) -> tuple[int, int, set[tuple[int, int]]]:
    """Return the number of copies found in the group of their image, of all pairs, and of pairs of different images."""
    pairs = find_duplicates([*paths, *copies], threads=1)
    groups = Groups(2 * len(paths))
    for pair in pairs:
        groups.join(pair.first, pair.second)
    found = sum(groups.root(number) == groups.root(len(paths) + number) for number in range(len(paths)))
    numbers = [(pair.first % len(paths), pair.second % len(paths)) for pair in pairs]
    return found, len(pairs), {(min(two), max(two)) for two in numbers if two[0] != two[1]}


def draw(paths: Sequence[Path], pairs: Sequence[tuple[int, int]], file: Path, side: int = 160) -> None:
    """Write pairs of images side by side."""
    across = 4
    sheet = Image.new("RGB", (across * (2 * side + 12), -(-len(pairs) // across) * (side + 18)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, two in enumerate(pairs):
        x, y = number % across * (2 * side + 12), number // across * (side + 18)
        pen.text((x, y), f"{two[0]} {two[1]}", fill="black")
        for place, image in enumerate(two):
            picture = load_image(paths[image])
            picture.thumbnail((side, side))
            sheet.paste(picture, (x + place * side, y + 14))
    sheet.save(file)


def report_set(name: str, paths: Sequence[Path], sheets: Path | None) -> str:
    """Score all kinds of change on a set; return the row."""
    row, others, total = [], set(), 0
    for seed, (kind, change) in enumerate(CHANGES.items()):
        with tempfile.TemporaryDirectory() as folder:
            found, count, unplanted = score(paths, plant(paths, change, Path(folder), seed))
        row.append(f"{found / len(paths):.1%}")
        others |= unplanted
        total += count
        print(f"{name}, {kind}: {found} of {len(paths)}, {count} pairs, {len(unplanted)} not planted", file=sys.stderr)
    if sheets is not None and others:
        sheets.mkdir(parents=True, exist_ok=True)
        draw(paths, sorted(others), sheets / f"{name.replace(', ', '-').replace(' ', '-')}.png")
    return f"| {name} | {len(paths)} | {' | '.join(row)} | {total:,} | {len(others)} |"


def report_time(paths: Sequence[Path], count: int) -> str:
    """Write ``count`` JPEGs, windows of the images with some noise, and time the search for duplicates among them."""
    with tempfile.TemporaryDirectory() as name:
        folder, size = Path(name), 0
        for number in range(count):
            generator = np.random.default_rng(number)
            image = load_image(paths[int(generator.integers(len(paths)))])
            width, height = (generator.uniform(0.3, 0.6) * side for side in image.size)
            x, y = generator.uniform(0, image.width - width), generator.uniform(0, image.height - height)
            image = image.resize((640, 480), Image.Resampling.BICUBIC, (x, y, x + width, y + height))
            noise = generator.normal(0, 6, (480, 640, 1))
            pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=90)
            size += (folder / f"{number}.jpg").stat().st_size
        started = time.process_time()
        pairs = find_duplicates(sorted(folder.iterdir()), threads=1)
        seconds = time.process_time() - started
    return (
        f"{count:,} JPEGs of 640 x 480 ({size / count / 1024:.0f} KiB each, windows of {len(paths)} photographs): "
        f"{seconds:.0f} seconds of one core, decoding included; {len(pairs)} pairs."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sheets", type=Path)
    parser.add_argument("--time", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    sets = image_sets(options.data)
    head = " | ".join(CHANGES)
    lines = [
        "# Near duplicates: planted copies that are found",
        "",
        machine(),
        "",
        f"| set | images | {head} | pairs reported | not planted, different |",
        f"|---|{'---|' * (len(CHANGES) + 3)}",
        *(report_set(name, paths, options.sheets) for name, paths in sets.items()),
        "",
        f"Each copy has one change, except in the column {BEYOND!r}.",
    ]
    if options.time:
        every = [path for name in ("BCCD", "Facemask", "coco_tiny") for path in sets[name]]
        lines += ["", report_time(every, options.time)]
    write_result("duplicates", lines, write=options.write)


if __name__ == "__main__":
    main()
