"""RT-DETR with a ConvNeXt V2 row, built from a model YAML by ultralytics' own parser without a change to it.

The recipe's YAML counts maps, not rows: its backbone yields the maps 1 to 4 and map 0 stays empty, so that row k >= 1 has
the index k + 4. ultralytics' parser counts rows. It is given the same head behind five rows that only hold places (an
``nn.Identity``, and an ``Index`` of each stage's width), which gives every row of the head the index that the recipe means.
The five are then taken out, and the backbone is put in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import RTDETRDetectionModel, yaml_model_load
from ultralytics.utils import LOGGER

from nextdetr.errors import ModelFileError
from nextdetr.models.convnextv2 import SIZES
from nextdetr.models.graph import build_skeleton, parse_model_text
from nextdetr.models.rows import DECODERS
from nextdetr.weights.layouts.rtdetr_ultralytics import model_text
from nextdetr_ultralytics.backbone import ConvNeXtV2
from nextdetr_ultralytics.weights import load_backbone

__all__ = ["RTDETRConvNeXtModel", "TableRow", "backbone_size", "build_model", "read_recipe"]

PREFIX = "convnextv2_"
MAPS = 4  # that the backbone yields


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row of the model's table, as the reference recipe prints it.

    Attributes:
        index: position of the row, from 0.
        origin: what it reads, a number or a list.
        repeats: after depth scaling.
        parameters: how many it has.
        module: its name.
        arguments: with the channels that come in inserted.
    """

    index: int
    origin: int | list[int]
    repeats: int
    parameters: int
    module: str
    arguments: list[Any]


def read_recipe(cfg: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a model file's mapping, with the scale that is meant (the first, unless it says)."""
    recipe = deepcopy(dict(cfg)) if isinstance(cfg, Mapping) else yaml_model_load(cfg)
    if recipe.get("scales") and recipe.get("scale") not in recipe["scales"]:
        recipe["scale"] = next(iter(recipe["scales"]))
    return recipe


def backbone_size(recipe: Mapping[str, Any]) -> str | None:
    """Return the size of the ConvNeXt V2 in a model file's first row; None if that row is something else.

    Raises:
        ValueError: there is no such size, or there are other rows in the backbone.
    """
    rows = recipe.get("backbone") or [[None] * 4]
    name = rows[0][2]
    if not isinstance(name, str) or not name.startswith(PREFIX):
        return None
    size = name.removeprefix(PREFIX)
    if size not in SIZES:
        raise ValueError(f"there is no backbone {name!r}; there are {', '.join(PREFIX + size for size in SIZES)}.")
    if len(rows) > 1:
        raise ValueError(f"{name} is a whole backbone, but {len(rows) - 1} more rows follow it; move them to the head.")
    return size


def build_model(
    cfg: str | Path | Mapping[str, Any],
    ch: int = 3,
    nc: int | None = None,
    verbose: bool = True,
    *,
    classifier: bool | None = None,
    backbone_weights: str | Path | None = None,
    load: bool = True,
) -> RTDETRDetectionModel:
    """Build the model of a YAML: one with a ConvNeXt V2 row, or any RT-DETR that ultralytics has itself.

    Args:
        cfg: name, path, or the mapping of a model file.
        ch: channels of the images; a ConvNeXt V2 takes 3.
        nc: number of classes, in place of the file's.
        verbose: print the table of rows.
        classifier: see ``ConvNeXtV2``; None for what the file says, which is True if it says nothing.
        backbone_weights: file or name of the backbone's weights, in place of the file's.
        load: load the weights that the backbone's row names.

    Raises:
        ValueError: the options are for a ConvNeXt V2, and the file has none; its decoder is NextDETR's own; or see
            ``backbone_size``.
    """
    recipe = read_recipe(cfg)
    decoder = recipe["head"][-1][2]
    if decoder in DECODERS and decoder != "RTDETRDecoder":
        raise ValueError(f"{decoder} is NextDETR's own, and ultralytics has RTDETRDecoder; train this model with NextDETR.")
    if backbone_size(recipe) is None:
        if classifier is not None or backbone_weights is not None:
            raise ValueError("classifier and backbone_weights are for models with a ConvNeXt V2 row; this one has none.")
        return RTDETRDetectionModel(recipe, ch=ch, nc=nc, verbose=verbose)
    if classifier is not None:
        recipe["classifier"] = classifier
    if backbone_weights is not None:
        recipe["backbone"][0][3] = [str(backbone_weights)]
    return RTDETRConvNeXtModel(recipe, ch=ch, nc=nc, verbose=verbose, load=load)


class RTDETRConvNeXtModel(RTDETRDetectionModel):
    """RT-DETR whose first row is a ConvNeXt V2.

    ``model`` holds a module for each row of the YAML, as a checkpoint of the patched recipe does: ``model.0`` the backbone,
    ``model.19`` the decoder of RT-DETR-l. A module's ``i`` is the index that the YAML's ``from`` means.

    Args:
        cfg: name, path, or the mapping of a model file; beside ultralytics' keys it may have ``classifier`` (False drops
            the final norm and the classifier that nothing runs), and NextDETR's ``normalize`` and ``batch_norm_eps``.
        ch: channels of the images, 3.
        nc: number of classes, in place of the file's.
        verbose: print the table of rows.
        load: load the weights that the backbone's row names.

    Raises:
        ValueError: the file has no ConvNeXt V2 row, or the images have other channels.
    """

    def __init__(
        self,
        cfg: str | Path | Mapping[str, Any],
        ch: int = 3,
        nc: int | None = None,
        verbose: bool = True,
        *,
        load: bool = True,
    ) -> None:
        recipe = read_recipe(cfg)
        size = backbone_size(recipe)
        if size is None:
            raise ValueError("the model file's first row is no ConvNeXt V2.")
        if ch != 3:
            raise ValueError(f"a ConvNeXt V2 takes images of 3 channels, and the data set has {ch}.")
        super().__init__(_with_places(recipe, SIZES[size].dims), ch=ch, nc=nc, verbose=False)
        backbone = ConvNeXtV2(
            size, classifier=recipe.get("classifier", True), normalize=recipe.get("normalize") == "imagenet"
        )  # fmt: skip
        backbone.np = sum(parameter.numel() for parameter in backbone.parameters())
        backbone.i, backbone.f, backbone.type = 0, -1, PREFIX + size
        self.model = nn.Sequential(backbone, *list(self.model)[1 + MAPS :])
        self.yaml = recipe | {"nc": self.yaml["nc"], "channels": ch}
        eps = float(recipe.get("batch_norm_eps", 1e-3))
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = eps
        arguments = recipe["backbone"][0][3]
        if load and arguments:
            load_backbone(backbone, arguments[0], beside=recipe.get("yaml_file"))
        if verbose:
            self.print_table()
            self.info()

    def predict(
        self,
        x: Tensor,
        profile: bool = False,
        batch: dict[str, Any] | None = None,
        augment: bool = False,
        embed: Sequence[int] | None = None,
    ) -> Any:
        """Run the rows.

        Args:
            x: [B, 3, H, W] images, 0 to 1.
            profile: print the time of each row.
            batch: in training, the targets that the decoder makes denoising queries of.
            augment: taken and not used, as RT-DETR does there.
            embed: indices of maps to average over their positions and return, in place of detections.

        Returns:
            What the decoder says; with ``embed`` a vector for each image.
        """
        backbone, *rows, decoder = self.model
        times: list[float] = []
        if profile:
            self._profile_one_layer(backbone, x, times)
        maps: list[Tensor | None] = [None, *backbone(x)]  # by index; 0 stays empty
        wanted = sorted(set(embed)) if embed else []
        kept = {*self.save, *wanted}
        for row in rows:
            if wanted and wanted[-1] < len(maps):
                break
            given = [maps[index] for index in row.f] if isinstance(row.f, list) else maps[row.f]
            if profile:
                self._profile_one_layer(row, given, times)
            maps.append(row(given))
            if len(maps) - 2 not in kept:  # a map that no later row reads by its index need not live on
                maps[-2] = None
        if wanted:
            return _pooled(maps, wanted).unbind(0)
        return decoder([maps[index] for index in decoder.f], batch)

    def table(self) -> list[TableRow]:
        """Return the rows with their parameters, as the reference recipe prints them."""
        rows = self.yaml["backbone"] + self.yaml["head"]
        shown = _shown(self.yaml)
        return [
            TableRow(index, row[0], shown[index][0], module.np, module.type, shown[index][1])
            for index, (row, module) in enumerate(zip(rows, self.model, strict=True))
        ]

    def print_table(self) -> None:
        """Print the table of rows."""
        LOGGER.info(f"\n{'':>3}{'from':>20}{'n':>3}{'params':>12}  {'module':<45}arguments")
        for row in self.table():
            LOGGER.info(
                f"{row.index:>3}{row.origin!s:>20}{row.repeats:>3}{row.parameters:>12}  {row.module:<45}{row.arguments}"
            )


def _with_places(recipe: Mapping[str, Any], channels: Sequence[int]) -> dict[str, Any]:
    """Return the recipe with five rows that hold the places of map 0 and of the backbone's four."""
    places: list[list[Any]] = [[-1, 1, "nn.Identity", []]]
    places += [[0, 1, "Index", [width, 0]] for width in channels]
    return deepcopy(dict(recipe)) | {"backbone": places}


def _pooled(maps: Sequence[Tensor | None], wanted: Sequence[int]) -> Tensor:
    """Return [B, the sum of their channels]: the means of maps over their positions.

    Raises:
        ValueError: there is no map of such an index.
    """
    if wanted[0] < 1 or wanted[-1] >= len(maps):
        raise ValueError(f"embed takes indices of maps, from 1 to {len(maps) - 1}, not {list(wanted)}.")
    return torch.cat([value.mean(dim=(2, 3)) for index in wanted if (value := maps[index]) is not None], dim=1)


def _shown(recipe: Mapping[str, Any]) -> list[tuple[int, list[Any]]]:
    """Return the repeats and arguments of each row as a table shows them: NextDETR's, where it knows all rows."""
    text = model_text(recipe)
    try:
        infos = build_skeleton(parse_model_text(text or "", "the model")).row_infos
    except ModelFileError:
        return [(row[1], list(row[3])) for row in (*recipe["backbone"], *recipe["head"])]
    return [(info.repeats, info.arguments) for info in infos]
