"""Valid image sizes of a model, and the messages about them.

Maps whose size is not a multiple of their stride lose a strip at the right and bottom edge, which shifts every box, or do
not match where they are combined.
"""

from __future__ import annotations

from nextdetr.errors import ConfigError

__all__ = ["check_sides", "nearest_size", "size_problem"]


def size_problem(side: int, step: int, what: str = "the model's largest stride") -> str | None:
    """Return what is wrong with an image side in pixels, as the end of a sentence; None if it is valid.

    Args:
        side: side in pixels.
        step: valid sides are its multiples.
        what: description of the step.
    """
    if side >= step and side % step == 0:
        return None
    below = side // step * step
    nearest = f"the nearest are {below} and {below + step}" if below > 0 else f"the smallest is {step}"
    return f"must be a multiple of {step}, {what}, not {side}; {nearest}"


def check_sides(height: int, width: int | None, step: int, what: str = "the model's largest stride") -> None:
    """Check an image size, or the height and width of images.

    Args:
        height: height of the images in pixels; side of the square input without ``width``.
        width: width of the images in pixels.
        step: see ``size_problem``.
        what: see ``size_problem``.

    Raises:
        ConfigError: a side is not a multiple of the step.
    """
    for side in (height,) if width is None else (height, width):
        problem = size_problem(side, step, what)
        if problem is not None:
            images = "--image-size" if width in (None, height) else f"Images are {width} x {height} pixels: each side"
            raise ConfigError(f"{images} {problem}.")


def nearest_size(side: int, step: int) -> int:
    """Return the multiple of ``step``, at least one, nearest to ``side``."""
    return max(1, round(side / step)) * step
