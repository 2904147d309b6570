"""``nextdetr compare``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from nextdetr.cli.common import Json, Runtime, Verbose, print_json, say, settings, tell_point
from nextdetr.config import CompareConfig
from nextdetr.errors import ConfigError

__all__ = ["compare"]


def compare(
    a: Annotated[str, Parameter(help="A checkpoint, a run folder, or an exported file.")],
    b: Annotated[str, Parameter(help="The detector to compare it with.")],
    *,
    options: Annotated[CompareConfig | None, Parameter(name="*")] = None,
    runtime: Runtime = "auto",
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compare two detectors on the same images: AP of B minus AP of A, with the interval of a paired bootstrap.

    Example: `nextdetr compare runs/old runs/new --data photos --output compare.html`.
    """
    merged = settings(CompareConfig, options)
    if merged.data is None:
        raise ConfigError("a comparison needs a data set: give --data with a folder or a YAML.")
    from nextdetr.engine.compare import compare_opened, open_both

    first, second = open_both(a, b, runtime)
    for opened in (first, second):
        tell_point(opened, merged.latency, merged.latency_of)
    result = compare_opened(first, second, merged)
    if json:
        print_json(result.to_json())
        return
    from nextdetr.data.raw import plural

    for letter in "ab":
        score = result.metrics[letter]["AP"]
        say(f"{letter.upper()}: AP {'-' if score is None else format(score, '.4f')}  {getattr(result, letter)}")
    found = result.difference
    if found["AP"] is None:
        say("No image has a box, so there is no AP to compare.")
    else:
        say(
            f"B minus A: {found['AP']:+.4f}, {100 * result.level:g} % of {result.resamples:,} resamples of the images from "
            f"{found['low']:+.4f} to {found['high']:+.4f}"
        )
        if not result.enough_images:
            images = plural(result.images, "image")
            say(f"{images}: too few to show that one is better, whatever the interval")
    if result.most_different:
        say("images that differ most:")
    for row in result.most_different[:5]:
        say(f"  {row['image']}: cost of errors {row['a']:.1f} with A, {row['b']:.1f} with B")
    if result.output is not None:
        say(f"Written to {result.output}")
