"""Runs in a peer's own environment: builds the peer with random weights and exports it to ONNX at one size.

    python anchor_peer.py NAME SIZE FILE.onnx

Written against the peers' public interfaces. This file imports nothing of NextDETR, and no other file imports a peer.
80 classes, batch 1, float32, seed 0. Next to the file are ``FILE.npz`` (a noise image, and the output of the model in
PyTorch for it) and ``FILE.json`` (version, parameters, GFLOP at 2 per multiply-add).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

#: PP-HGNetV2's stem and stages 1 to 4 as in B0: in, middle and out channels, blocks, strided, light, kernel, layers.
B0_STEM = [3, 16, 16]
B0_STAGES = [
    (16, 16, 64, 1, False, False, 3, 3),
    (64, 32, 256, 1, True, False, 3, 3),
    (256, 64, 512, 2, True, True, 5, 3),
    (512, 128, 1024, 1, True, True, 5, 3),
]


class Outputs(torch.nn.Module):
    """Return logits and boxes only, for export."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Detect."""
        output = self.model(pixel_values=images)
        return output.logits, output.pred_boxes


class RFDETROutputs(torch.nn.Module):
    """Return boxes and logits, in the order of RF-DETR's own export."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.model = detector.model.model
        self.detector = detector

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Detect."""
        output = self.model(images)
        return output["pred_boxes"], output["pred_logits"]


def hgnet(stages: int, wanted: list[int]) -> Any:
    """PP-HGNetV2 B0 (with learnable affine blocks, as in D-FINE), or its first stages."""
    from transformers import HGNetV2Config

    columns = [list(column) for column in zip(*B0_STAGES[:stages], strict=True)]
    names = ("in_channels", "mid_channels", "out_channels", "num_blocks", "downsample", "light_block", "kernel_size")
    values = dict(zip((f"stage_{name}" for name in names), columns, strict=False))
    return HGNetV2Config(
        stem_channels=B0_STEM, stage_numb_of_layers=columns[-1], hidden_sizes=columns[2], depths=columns[3],
        stage_downsample_strides=[2] * stages, use_learnable_affine_block=True, out_indices=wanted, **values,
    )  # fmt: skip


def common(size: int) -> dict[str, Any]:
    """Settings that both of transformers' peers share; anchors are constants of the size, as in deployment."""
    return {
        "num_labels": 80, "anchor_image_size": [size, size], "freeze_backbone_batch_norms": False,
        "hidden_expansion": 0.34, "depth_mult": 0.5, "feat_strides": [16, 32], "num_feature_levels": 2, "decoder_layers": 3,
    }  # fmt: skip


def d_fine_n(size: int) -> torch.nn.Module:
    """D-FINE-N (arXiv 2410.13842): published as 4 M parameters and 7 GFLOP at 640 px."""
    from transformers import DFineConfig, DFineForObjectDetection

    config = DFineConfig(
        backbone_config=hgnet(4, [3, 4]), encoder_in_channels=[512, 1024], encoder_hidden_dim=128, encoder_ffn_dim=512,
        encode_proj_layers=[1], d_model=128, decoder_in_channels=[128, 128], decoder_ffn_dim=512, decoder_n_points=[6, 6],
        num_queries=300, **common(size),
    )  # fmt: skip
    return Outputs(DFineForObjectDetection(config))


def deimv2_pico(size: int) -> torch.nn.Module:
    """DEIMv2-Pico (arXiv 2509.20787): published as 1.5 M parameters and 5.2 GFLOP at 640 px."""
    from transformers import Deimv2Config, Deimv2ForObjectDetection

    config = Deimv2Config(
        backbone_config=hgnet(3, [3]), encoder_in_channels=[512], encoder_hidden_dim=112, encoder_type="lite", d_model=112,
        decoder_in_channels=[112, 112], decoder_ffn_dim=320, decoder_n_points=[4, 2], num_queries=200, use_gateway=False,
        share_bbox_head=True, decoder_activation_function="silu", **common(size),
    )  # fmt: skip
    return Outputs(Deimv2ForObjectDetection(config))


def yolo26n(size: int) -> torch.nn.Module:
    """YOLO26n with its NMS-free head; BatchNorm is folded, as in its own exporter."""
    from ultralytics import YOLO

    model = YOLO("yolo26n.yaml").model
    model.end2end = True
    return model


def rf_detr_nano(size: int) -> torch.nn.Module:
    """RF-DETR-nano, published for 384 px; random weights, so nothing is downloaded."""
    from rfdetr import RFDETRNano

    detector = RFDETRNano(pretrain_weights=None, num_classes=80, resolution=size, device="cpu")
    return RFDETROutputs(detector)


PEERS: dict[str, Callable[[int], torch.nn.Module]] = {
    "yolo26n": yolo26n, "d-fine-n": d_fine_n, "deimv2-pico": deimv2_pico, "rf-detr-nano": rf_detr_nano,
}  # fmt: skip
PACKAGE = {"yolo26n": "ultralytics", "d-fine-n": "transformers", "deimv2-pico": "transformers", "rf-detr-nano": "rfdetr"}


def count_gflop(model: torch.nn.Module, images: torch.Tensor) -> float:
    """Operations of one image, 2 per multiply-add."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:  # the counter does not look inside fused attention
        model(images)
    return float(counter.get_total_flops()) / 1e9


def tensors(output: Any) -> list[torch.Tensor]:
    """The tensors of an output, in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    return [tensor for part in output if not isinstance(part, dict) for tensor in tensors(part)]


def export_by_torch(model: torch.nn.Module, images: torch.Tensor, path: Path) -> None:
    """Export as users of transformers do: one trace, fixed shapes, constants folded."""
    torch.onnx.export(
        model,
        (images,),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["images"],
        output_names=["logits", "boxes"],
    )


def export_by_ultralytics(model: torch.nn.Module, images: torch.Tensor, path: Path) -> None:
    """Use the peer's own exporter on the same weights; ``nms=False`` selects the NMS-free head."""
    from ultralytics import YOLO

    wrapped = YOLO("yolo26n.yaml")
    wrapped.model.load_state_dict(model.state_dict())
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        made = wrapped.export(format="onnx", imgsz=images.shape[-1], device="cpu", nms=False, simplify=True, opset=17)
        shutil.copy(made, path)


def export_by_rfdetr(model: Any, images: torch.Tensor, path: Path) -> None:
    """Use the peer's own exporter."""
    with tempfile.TemporaryDirectory() as folder:
        size = images.shape[-1]
        shutil.copy(model.detector.export(output_dir=folder, shape=(size, size), verbose=False), path)


EXPORTS = {"yolo26n": export_by_ultralytics, "rf-detr-nano": export_by_rfdetr}


def main() -> None:
    name, size, path = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]).resolve()
    torch.manual_seed(0)
    model = PEERS[name](size).eval().requires_grad_(False)  # the counter fails on parameters that require gradients
    images = torch.rand(1, 3, size, size)
    with torch.no_grad():
        expected = tensors(model(images))
    facts = {
        "name": name, "size": size, "gflop": count_gflop(model, images),
        "parameters": sum(parameter.numel() for parameter in model.parameters()), "package": PACKAGE[name],
        "version": importlib.metadata.version(PACKAGE[name]),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    EXPORTS.get(name, export_by_torch)(model, images, path)
    np.savez(path.with_suffix(".npz"), images=images, **{str(i): value.numpy() for i, value in enumerate(expected)})
    path.with_suffix(".json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
