from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from nextdetr.models.graph import build_model, load_model_file
from nextdetr.postprocess import postprocess
from nextdetr.tensors import as_outputs
from nextdetr.weights.checkpoint import save_detector
from tests.models.test_fuse import stir

CLASSES = ["Katze", "dog", "bird"]
ORIGINAL_SIZES = [(70, 110), (480, 640)]
SIZE = 128


def checkpoint(folder, name, size, classes=CLASSES):
    """A detector whose scores differ, as in a trained one: with random weights alone nearly all of them tie."""
    model = stir(build_model(name, num_classes=len(classes)))
    decoder = model.rows[-1]
    with torch.no_grad():
        for head in (decoder.enc_score_head, *decoder.dec_score_head):
            torch.nn.init.normal_(head.weight, std=0.5)
        for mlp in (decoder.enc_bbox_head, *decoder.dec_bbox_head):
            torch.nn.init.normal_(mlp.layers[-1].weight, std=0.05)
    file = load_model_file(name)
    path = folder / f"{Path(name).stem}.safetensors"
    save_detector(path, model.state_dict(), model_text=file.text, classes=classes, image_size=size, weights_licence="MIT")
    return path


def pictures(size=SIZE, count=2):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, size // 8, size // 8, generator=generator)
    return (torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear") * 255).round() / 255


@torch.inference_mode()
def detections(detector, images):
    return postprocess(as_outputs(detector.opened.model(images)), ORIGINAL_SIZES)


def assert_same_detections(expected, got, tolerance=1e-3):
    """The 50 best of ``expected`` have a counterpart of the same class, score and box; the order of near ties is free."""
    for first, second in zip(expected, got, strict=True):
        assert len(first) == len(second)
        scale = np.abs(first.boxes).max()
        missing = []
        for box, score, label in itertools.islice(zip(first.boxes, first.scores, first.labels, strict=True), 50):
            near = np.abs(second.boxes - box).max(axis=1) / scale
            gap = np.where(second.labels == label, np.maximum(near, np.abs(second.scores - score)), 1.0)
            if gap.min() > tolerance:
                missing.append((label.item(), score.item(), gap.min().item()))
        assert len(missing) <= 1, missing


def needs_runtimes():
    for name in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(name, reason="the extra export is not installed")
