"""The one graph behind every format: the detector's own forward, folded, with pre- and postprocessing.

Anchors and position codes become constants at a fixed image size; the number of queries and decoder layers can be reduced
without training (RT-DETR, arXiv 2304.08069, section 4.4: each decoder layer is supervised, so any may be the last).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from nextdetr.export.best import best_detections
from nextdetr.export.convnext import use_channels_first
from nextdetr.export.half import halve
from nextdetr.export.portable import make_portable
from nextdetr.export.sampling import sample_canvas
from nextdetr.export.winograd import map_sizes, use_winograd
from nextdetr.inference.contract import Contract
from nextdetr.layers.attention import AIFI
from nextdetr.layers.deformable import MSDeformableAttention, Shapes
from nextdetr.models.decoder import RTDETRDecoder, anchors_and_validity
from nextdetr.models.detection import DetectionModel
from nextdetr.models.fuse import fuse
from nextdetr.structures import DetectorOutput

__all__ = ["ExportGraph", "Traced", "build_graph", "sample_near", "trace_graph"]

LARGEST_SIDE = 64  # in strides of the model: maximum side of a dynamic graph


class ExportGraph(nn.Module):
    """The detector as a graph to deploy.

    Args:
        model: folded, in evaluation mode.
        contract: inputs and outputs.
    """

    def __init__(self, model: DetectionModel, contract: Contract) -> None:
        super().__init__()
        self.model = model
        self.contract = contract

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        """Detect.

        Args:
            images: [B, 3, S, S], or [B, S, S, 3] with the layout ``nhwc``; float32 in 0..1 or uint8 in 0..255, RGB.
            sizes: [B, 2] int64 (height, width) of the original images in pixels; None in a raw graph.

        Returns:
            Boxes [B, K, 4] xyxy in pixels, scores [B, K] and labels [B, K], best first; for a raw graph, logits [B, Q, C]
            and boxes [B, Q, 4] cxcywh in 0..1.
        """
        contract = self.contract
        if contract.layout == "nhwc":
            images = images.permute(0, 3, 1, 2)
        images = images.float() / 255 if contract.input_type == "uint8" else images
        if contract.precision == "half":
            images = images.half()
        output = self.model(images, queries=contract.queries)
        if sizes is None:
            return output.logits, output.boxes
        output = _numbers_only(output)
        return best_detections(output, sizes.float(), max_detections=contract.max_detections)


@dataclass(frozen=True, slots=True)
class Traced:
    """A traced graph.

    Attributes:
        program: the ``torch.export`` program.
        input_names: names in the order of its arguments.
        output_names: names in the order of its results.
        dynamic: axes without fixed size: ``{input: {axis: name}}``.
    """

    program: ExportedProgram
    input_names: list[str]
    output_names: list[str]
    dynamic: dict[str, dict[int, str]]


def build_graph(model: DetectionModel, contract: Contract) -> ExportGraph:
    """Fold a copy of ``model`` and build the graph; ``model`` is not changed.

    Decoder layers after the evaluated one are dropped with their weights. The graph's own contract says whether any
    convolution was wide enough for Winograd's filtering.
    """
    folded = fuse(model)
    decoder = folded.rows[-1]
    if isinstance(decoder, RTDETRDecoder):
        for owner, name in ((decoder.decoder, "layers"), (decoder, "dec_score_head"), (decoder, "dec_bbox_head")):
            parts = getattr(owner, name)
            if isinstance(parts, nn.ModuleList):
                setattr(owner, name, nn.ModuleList([*parts][: decoder.eval_layer + 1]))
    with map_sizes(folded) as sizes:
        tokens = _fix_constants(folded, contract)
    if contract.winograd:
        contract = replace(contract, winograd=use_winograd(folded, sizes) > 0)
    if contract.portable:
        make_portable(folded)
    use_channels_first(folded)
    on_canvas = not (contract.portable or contract.dynamic)
    for module in folded.modules():
        if isinstance(module, MSDeformableAttention):
            module.channels_first = not contract.portable
            sample = sample_canvas if on_canvas else partial(sample_near, module.sample)
            setattr(module, "sample", sample)  # noqa: B010 - a method of this copy only
    if contract.precision == "half":
        folded = halve(folded)
    if contract.dynamic:
        step = contract.step
        contract = replace(contract, least_size=step * _least(contract, tokens), largest_size=step * LARGEST_SIDE)
    return ExportGraph(folded, contract).eval()


@torch.no_grad()
def trace_graph(graph: ExportGraph) -> Traced:
    """Trace the graph with ``torch.export``."""
    contract = graph.contract
    size, batch = contract.image_size, 2 if contract.dynamic else 1
    shape = (batch, size, size, 3) if contract.layout == "nhwc" else (batch, 3, size, size)
    dtype = torch.uint8 if contract.input_type == "uint8" else torch.float32
    arguments: list[Tensor] = [torch.zeros(shape, dtype=dtype)]
    if not contract.raw:
        arguments.append(torch.tensor([[size, size]]).repeat(batch, 1))
    dynamic: dict[str, dict[int, str]] = {}
    shapes: dict[str, Any] | None = None
    names = contract.input_names
    if contract.dynamic:
        first = 1 if contract.layout == "nhwc" else 2
        assert contract.least_size is not None
        rows, columns = (
            Dim(name, min=contract.least_size // contract.step, max=LARGEST_SIDE) for name in ("rows", "columns")
        )
        count = Dim("batch", min=1, max=1024)
        shapes = {"images": {0: count, first: contract.step * rows, first + 1: contract.step * columns}}
        dynamic = {"images": {0: "batch", first: "height", first + 1: "width"}}
        if not contract.raw:
            shapes["sizes"] = {0: count}
            dynamic["sizes"] = {0: "batch"}
    program = torch.export.export(graph, tuple(arguments), dynamic_shapes=shapes, strict=False)
    return Traced(program, names, contract.output_names, dynamic)


def sample_near(sample: Callable[..., Tensor], value: Tensor, shapes: Shapes, locations: Tensor, *rest: Any) -> Tensor:
    """Sample with positions at most a map's width from the map: farther ones read zero too, but runtimes differ there.

    ONNX Runtime 1.32 reads the first cell for 1e20, where PyTorch and OpenVINO read zero.

    Args:
        sample: see ``sample_levels``.
        value: likewise.
        shapes: likewise.
        locations: likewise.
        rest: likewise.
    """
    return sample(value, shapes, locations.clamp(-1, 2), *rest)


def _numbers_only(output: DetectorOutput) -> DetectorOutput:
    """Give NaN the lowest score, as TopK ranks NaN differently in each runtime."""
    logits, boxes = output.logits.float(), output.boxes.float()
    strange = torch.isnan(logits) | torch.isnan(boxes).any(dim=-1, keepdim=True)  # [B, Q, C]
    return DetectorOutput(logits.masked_fill(strange, -torch.inf), boxes.masked_fill(torch.isnan(boxes), 0.0))


def _least(contract: Contract, tokens: int) -> int:
    """Least side, in strides, at which there are as many tokens as queries; there are ``tokens`` at the default size."""
    cells = (contract.image_size // contract.step) ** 2
    return max(2, math.ceil(math.sqrt(contract.queries * cells / tokens)))


@torch.no_grad()
def _fix_constants(model: DetectionModel, contract: Contract) -> int:
    """Set anchors and position codes to constants, or, if dynamic, to functions of the size; return the token count."""
    size = contract.image_size
    model(torch.zeros(1, 3, size, size), queries=1)  # fills the layers' own caches
    tokens = 1
    for module in model.modules():
        if isinstance(module, RTDETRDecoder):
            anchors = {shapes: made for (shapes, _), made in module._anchors.items()}
            tokens = next(len(made[0]) for shapes, made in anchors.items())
            given = anchors_and_validity if contract.dynamic else lambda shapes, _, known=anchors: known[shapes]
            setattr(module, "_anchors_for", given)  # noqa: B010 - a method of this copy only
            # A number of queries that depends on the image's size would propagate to every later shape.
            setattr(module, "_count", lambda queries, _: queries)  # noqa: B010
        elif isinstance(module, AIFI) and not contract.dynamic:
            codes = {(height, width): code for (height, width, _), code in module._positions.items()}
            setattr(module, "_position", lambda height, width, _, known=codes: known[height, width])  # noqa: B010
    return tokens
