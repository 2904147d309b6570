"""Freezing of the backbone: all of it at the start of a run, its first stages, or its BatchNorms."""

from __future__ import annotations

from torch import nn

from nextdetr.config import TrainConfig
from nextdetr.errors import ConfigError
from nextdetr.models.convnextv2 import ConvNeXtV2
from nextdetr.models.detection import DetectionModel
from nextdetr.models.resnet import ResNetVD

__all__ = ["Freezing", "first_stages", "leave_unread", "stages_of", "unread_parts"]


class Freezing:
    """Freezes parts of the backbone; create it before the optimizer, which leaves them out.

    Args:
        model: the detector; parameters of frozen stages and norms no longer get gradients.
        config: ``freeze_backbone_epochs``, ``freeze_stages`` and ``freeze_norms``.

    Attributes:
        backbone: rows of the backbone.

    Raises:
        ConfigError: the backbone has fewer stages, or no BatchNorm.
    """

    def __init__(self, model: DetectionModel, config: TrainConfig) -> None:
        self.backbone = model.rows[: model.backbone_rows]
        self.epochs = config.freeze_backbone_epochs
        self.parts: list[nn.Module] = first_stages(model, config.freeze_stages) if config.freeze_stages else []
        norms = [module for module in self.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
        if config.freeze_norms and not norms:
            raise ConfigError("--freeze-norms: the backbone has no BatchNorm; leave the option out.")
        self.parts += norms if config.freeze_norms else []
        self._keep()

    def whole(self, epoch: int) -> bool:
        """Whether the whole backbone is frozen in an epoch (from 0)."""
        return epoch < self.epochs

    def begin(self, epoch: int) -> None:
        """Switch the gradients of the whole backbone off or on."""
        self.backbone.requires_grad_(not self.whole(epoch))
        self._keep()

    def hold_statistics(self, epoch: int) -> None:
        """Keep the BatchNorms of frozen parts in evaluation mode; call after the model was set to training mode."""
        if self.whole(epoch):
            self.backbone.eval()
        for part in self.parts:
            part.eval()

    def drop_gradients(self, epoch: int) -> None:
        """Clear the gradients of a frozen backbone; with several processes, DDP has already averaged them."""
        if self.whole(epoch):
            for parameter in self.backbone.parameters():
                parameter.grad = None

    def _keep(self) -> None:
        for part in self.parts:
            part.requires_grad_(False)


def first_stages(model: DetectionModel, count: int) -> list[nn.Module]:
    """Return the stem and the first stages of a backbone.

    A stage ends where the next map is half as large; the first has stride 4. A backbone of several rows is split by rows.

    Args:
        model: the detector.
        count: number of stages, at least 1.

    Raises:
        ConfigError: there are fewer.
    """
    stages = stages_of(model.backbone) if model.backbone_rows == 1 else []
    if not stages:
        by_stride: dict[int, list[nn.Module]] = {}
        for part, info in zip(model.rows, model.row_infos[: model.backbone_rows], strict=False):
            by_stride.setdefault(max(4, info.strides[0]), []).append(part)
        stages = [by_stride[stride] for stride in sorted(by_stride)]
    if count > len(stages):
        raise ConfigError(f"--freeze-stages {count}: the backbone has {len(stages)} stages.")
    return [module for stage in stages[:count] for module in stage]


def unread_parts(model: DetectionModel) -> list[nn.Module]:
    """Return the parts of a model whose maps the decoder does not depend on: rows, or last stages of the backbone.

    They get no gradient. An example is the last stage under a head that reads no map of stride 32.
    """
    wanted, parts = set[int](), list[nn.Module]()
    for row, info in reversed(list(zip(model.rows, model.row_infos, strict=True))):
        used = [place for place, index in enumerate(info.writes) if index in wanted]
        if info.writes and not used:
            parts.append(row)
            continue
        wanted.update(info.reads)
        if len(info.writes) > 1:  # a whole backbone, with a map a stage
            parts += [module for stage in stages_of(row)[used[-1] + 1 :] for module in stage]
    return parts


def leave_unread(model: DetectionModel) -> None:
    """Ask for no gradients of ``unread_parts``, which DDP would wait for; call after the optimizer is made.

    The optimizer skips them in any case, and its state stays that of one process, which may continue the run.
    """
    for part in unread_parts(model):
        part.requires_grad_(False)


def stages_of(row: nn.Module) -> list[list[nn.Module]]:
    """Return the modules of each stage of a backbone in one row, the first with the stem; empty for other rows."""
    if isinstance(row, ConvNeXtV2):
        return [[down, stage] for down, stage in zip(row.downsample_layers, row.stages, strict=True)]
    if isinstance(row, ResNetVD):
        return [[*([row.conv1] if number == 0 else []), stage] for number, stage in enumerate(row.res_layers)]
    return []
