"""Which sizes of image a model takes: the one place that says so, and how it is told.

Maps of a size that is no multiple of their stride lose a strip at the right and bottom edge, by which every box would be
off, or do not fit one another where they are joined.
"""

from __future__ import annotations

from nextdetr.errors import ConfigError

__all__ = ["check_sides", "nearest_size", "size_problem"]


def size_problem(side: int, step: int, what: str = "the model's largest stride") -> str | None:
    """Return what is wrong with a side of an image, in pixels, as the end of a sentence; None if it is a right one.

    Args:
        side: in pixels.
        step: the right ones are its multiples.
        what: what the step is.
    """
    if side >= step and side % step == 0:
        return None
    below = side // step * step
    nearest = f"the nearest are {below} and {below + step}" if below > 0 else f"the smallest is {step}"
    return f"must be a multiple of {step}, {what}, not {side}; {nearest}"


def check_sides(height: int, width: int | None, step: int, what: str = "the model's largest stride") -> None:
    """Check an image size, or the height and width of images.

    Args:
        height: of the images in pixels; of the square input, if there is no ``width``.
        width: of the images in pixels.
        step: see ``size_problem``.
        what: see ``size_problem``.

    Raises:
        ConfigError: a side is no multiple of the step.
    """
    for side in (height,) if width is None else (height, width):
        problem = size_problem(side, step, what)
        if problem is not None:
            images = "--image-size" if width in (None, height) else f"Images are {width} x {height} pixels: each side"
            raise ConfigError(f"{images} {problem}.")


def nearest_size(side: int, step: int) -> int:
    """Return the multiple of ``step``, at least one, that is nearest to ``side``."""
    return max(1, round(side / step)) * step
