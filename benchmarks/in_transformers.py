"""The reference model as transformers builds it."""

from __future__ import annotations

from typing import Any


def reference_model() -> Any:
    """Return RT-DETR-l's encoder and decoder on ConvNeXt V2 atto, 80 classes, random weights, BatchNorm not frozen."""
    from transformers import ConvNextV2Config, RTDetrConfig, RTDetrForObjectDetection

    backbone = ConvNextV2Config(
        depths=[2, 2, 6, 2], hidden_sizes=[40, 80, 160, 320], out_features=["stage2", "stage3", "stage4"]
    )
    config = RTDetrConfig(
        backbone_config=backbone, encoder_in_channels=[80, 160, 320], num_labels=80, use_pretrained_backbone=False,
        freeze_backbone_batch_norms=False,
    )  # fmt: skip
    return RTDetrForObjectDetection(config)
