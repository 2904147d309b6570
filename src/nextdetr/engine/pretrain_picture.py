"""Pictures of reconstructions by a masked autoencoder: original, masked, reconstructed."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from nextdetr.data.dataset import SampleKey
from nextdetr.data.unlabelled import UnlabelledDataset
from nextdetr.files import atomic_write, optional_file
from nextdetr.models.fcmae import FCMAE

__all__ = ["Reconstructions", "draw_rows"]

IMAGES = 6
COLUMNS = ("original", "masked", "reconstructed")
GAP, HEADING = 4, 22


class Reconstructions:
    """Draws the same few images, uncropped and with the same masks, again and again during a run.

    Args:
        dataset: the images; up to six, evenly spaced, are used.
        image_size: side of the square input in pixels.
        patch_size: side of a patch in pixels.
        folder: folder for the pictures.
    """

    def __init__(self, dataset: UnlabelledDataset, image_size: int, patch_size: int, folder: Path) -> None:
        self.dataset, self.size, self.folder = dataset, image_size, folder
        self.patches = (image_size // patch_size) ** 2

    def draw(self, model: FCMAE, epoch: int, seed: int) -> Path:
        """Write ``reconstruction_<epoch>.png`` and return its path; the model's mode is unchanged."""
        count = len(self.dataset)
        chosen = sorted({index * count // IMAGES for index in range(IMAGES)})
        images = torch.stack([self.dataset[SampleKey(0, index, self.size, strong=False)][0] for index in chosen])
        noise = torch.rand(len(chosen), self.patches, generator=torch.Generator().manual_seed(seed))
        training = model.training
        model.eval()
        device = model.mask_token.device
        masked, painted = model.reconstruct(images.to(device), noise.to(device))
        model.train(training)
        path = self.folder / f"reconstruction_{epoch:05d}.png"
        with optional_file(), atomic_write(path) as temporary:
            draw_rows([images, masked.cpu(), painted.cpu()], COLUMNS).save(temporary)
        return path


def draw_rows(columns: list[Tensor], headings: tuple[str, ...]) -> Image.Image:
    """Arrange pictures in a grid, one row per image.

    Args:
        columns: each [B, 3, S, S], 0 to 1.
        headings: title of each column.
    """
    count, size = columns[0].shape[0], columns[0].shape[-1]
    sheet = Image.new("RGB", (len(columns) * (size + GAP) - GAP, HEADING + count * (size + GAP) - GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, (images, heading) in enumerate(zip(columns, headings, strict=True)):
        left = column * (size + GAP)
        pen.text((left + 4, 3), heading, fill="black", font=font)
        pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        for row in range(count):
            sheet.paste(Image.fromarray(pixels[row]), (left, HEADING + row * (size + GAP)))
    return sheet
