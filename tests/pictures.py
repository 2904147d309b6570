"""Pictures that look a little like photographs: each seed another one."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIZE = (320, 240)


def scene(seed: int) -> Image.Image:
    """Smooth patches of several sizes, as a photograph has them."""
    generator = np.random.default_rng(seed)
    picture = np.zeros((SIZE[1], SIZE[0], 3))
    for cells in (3, 8, 20, 50):
        noise = Image.fromarray(generator.integers(0, 255, (cells, cells, 3), dtype=np.uint8))
        picture += np.asarray(noise.resize(SIZE, Image.Resampling.BICUBIC)) / 4
    return Image.fromarray(picture.astype(np.uint8))
