"""D-FINE's and DEIMv2's checkpoints, official ones and transformers' folders, converted to ours.

Peterande/D-FINE, arXiv 2410.13842; Intellindust-AI-Lab/DEIMv2, arXiv 2509.20787; both Apache-2.0. DEIM (arXiv 2412.04234)
trains D-FINE's networks with SiLU instead of ReLU in the decoder; tensors do not show it, so its files cannot be
distinguished from D-FINE's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from nextdetr.errors import WeightsError
from nextdetr.layers.mlp import ACTIVATIONS
from nextdetr.models.detection import DetectionModel
from nextdetr.models.dfine import DFINEDecoder
from nextdetr.weights.layouts.base import Config, Layout, State, always
from nextdetr.weights.layouts.names import Rules, renamed, rules
from nextdetr.weights.layouts.rtdetr_head import DECODER, INSIDE, Family, Head, official_to_rows
from nextdetr.weights.layouts.rtdetr_official import EPS, without_derived
from nextdetr.weights.layouts.rtdetr_transformers import to_official

__all__ = ["LAYOUTS"]

_UP = 0.5  # of all published files: the largest offset, in sides of the box


def _hybrid(maps: int, fusion: str, join: str, decoder: str) -> Head:
    """The head of an encoder with AIFI, a top-down and a bottom-up path, over this many maps."""
    rows: list[tuple[str, str | None]] = [
        ("Conv", f"encoder.input_proj.{maps - 1}"), ("AIFI", "encoder.encoder.0.layers.0"),
        ("Conv", "encoder.lateral_convs.0"),
    ]  # fmt: skip
    for step in range(maps - 1):
        rows += [("Upsample", None), ("Conv", f"encoder.input_proj.{maps - 2 - step}"), (join, None)]
        rows.append((fusion, f"encoder.fpn_blocks.{step}"))
        rows += [("Conv", f"encoder.lateral_convs.{step + 1}")] if step < maps - 2 else []
    for step in range(maps - 1):
        rows += [("Conv", f"encoder.downsample_convs.{step}.cv{k}") for k in (1, 2)]
        rows += [(join, None), (fusion, f"encoder.pan_blocks.{step}")]
    return (*rows, (decoder, "decoder"))


_DFINE_HEADS = tuple(_hybrid(maps, "RepNCSPELAN4", "Concat", "DFINEDecoder") for maps in (2, 3))
_LITE: Head = (
    ("Conv", "encoder.input_proj.0"),
    ("AvgPool2d", None),
    ("Conv", "encoder.down_sample1"),
    ("PooledAdd", "encoder.bi_fusion"),
    ("Upsample", None),
    ("Add", None),
    ("RepNCSPELAN4", "encoder.fpn_block"),
    ("AvgPool2d", None),
    ("Conv", "encoder.down_sample2"),
    ("Add", None),
    ("RepNCSPELAN4", "encoder.pan_block"),
    ("DEIMDecoder", "decoder"),
)
_DEIM_HEADS = (_LITE, _hybrid(2, "RepNCSPELAN4", "Add", "DEIMDecoder"))

# Inside a part: official names to ours.
_HG = rules((r"\.lab\.", ".act."), (r"^layers\.", "m."), (r"^aggregation\.0\.", "sc."), (r"^aggregation\.1\.", "ec."))
_ELAN = rules(
    (r"\.norm\.", ".bn."),
    (r"^(cv[23])\.0\.conv([123])\.", r"\1.0.cv\2."),
    (r"^(cv[23])\.0\.bottlenecks\.", r"\1.0.m."),
)
_EDGES = (*DECODER, *rules((r"^decoder\.lqe_layers\.", "lqe."), (r"\.(norm[123]?)\.scale$", r".\1.weight")))
_INSIDE: Mapping[str, Rules] = {
    **INSIDE, "HGStem": _HG, "HGBlock": _HG, "RepNCSPELAN4": _ELAN, "PooledAdd": rules((r"\.norm\.", ".bn.")),
    "DFINEDecoder": _EDGES, "DEIMDecoder": _EDGES,
}  # fmt: skip

_DFINE = Family("D-FINE", "dfine-n", _DFINE_HEADS, _INSIDE)
_DEIM = Family("DEIMv2", "deimv2-n", _DEIM_HEADS, _INSIDE)

# From transformers' names, after RT-DETR's rules, to the official ones.
_BLOCK = r"^(encoder\.(?:fpn|pan)_blocks?(?:\.\d+)?)"
_LAYER = r"^((?:encoder\.encoder\.\d+|decoder\.decoder)\.layers\.\d+)"
_BACKBONE = rules(
    (r"^backbone\.model\.embedder\.", "backbone.stem."),
    (r"^backbone\.model\.encoder\.stages\.", "backbone.stages."),
    (r"^(backbone\..*)\.norm\.", r"\1.bn."),
    (r"^decoder\.lqe_layers\.", "decoder.decoder.lqe_layers."),
    (rf"{_LAYER}\.mlp\.layers\.0\.", r"\1.linear1."),
    (rf"{_LAYER}\.mlp\.layers\.1\.", r"\1.linear2."),
    (r"^(encoder\.downsample_convs\.\d+)\.conv([12])\.", r"\1.cv\2."),
    (rf"{_BLOCK}\.conv1\.", r"\1.cv1."),
)
_DFINE_RULES = (
    *_BACKBONE,
    *rules(
        (rf"{_BLOCK}\.csp_rep1\.", r"\1.cv2.0."),
        (rf"{_BLOCK}\.conv2\.", r"\1.cv2.1."),
        (rf"{_BLOCK}\.csp_rep2\.", r"\1.cv3.0."),
        (rf"{_BLOCK}\.conv3\.", r"\1.cv3.1."),
        (rf"{_BLOCK}\.conv4\.", r"\1.cv4."),
    ),
)
_DEIM_RULES = (
    *rules((r"^conv_encoder\.model\.", "backbone.model."), (r"^conv_encoder\.encoder_input_proj\.", "encoder.input_proj.")),
    *_BACKBONE,
    *rules(
        (rf"{_BLOCK}\.csp_rep1\.conv2\.", r"\1.cv2.1."),
        (rf"{_BLOCK}\.csp_rep1\.", r"\1.cv2.0."),
        (rf"{_BLOCK}\.csp_rep2\.conv2\.", r"\1.cv3.1."),
        (rf"{_BLOCK}\.csp_rep2\.", r"\1.cv3.0."),
        (rf"{_BLOCK}\.conv2\.", r"\1.cv4."),
        (r"^encoder\.down_conv([12])\.", r"encoder.down_sample\1."),
        (r"^encoder\.bi_fusion_conv\.", "encoder.bi_fusion.cv."),
        (rf"{_LAYER}\.mlp\.down_proj\.", r"\1.swish_ffn.w3."),
    ),
)
# Convolutions inside a sequence, by their role.
_SPELLED = rules(
    (r"^(encoder\.downsample_convs\.\d+)\.0\.", r"\1."),
    (r"^(encoder\.down_sample[12])\.1\.", r"\1.conv."),
    (r"^(encoder\.down_sample[12])\.2\.", r"\1.norm."),
)
_GATE = re.compile(r"(.*\.layers\.\d+)\.mlp\.gate_proj\.(weight|bias)")
_BOX_HEAD = re.compile(r"(decoder\.dec_bbox_head\.)\d+(\..*)")
_HALVES = re.compile(r"(.*\.cv[23]\.0)\.conv1\.(.*)")


def from_official(tensors: Mapping[str, Tensor], model: DetectionModel, second: bool = False) -> dict[str, Tensor]:
    """Convert an official state dict of D-FINE or DEIMv2 to a model's names.

    Args:
        tensors: official name (``backbone.…``, ``encoder.…``, ``decoder.…``) -> tensor.
        model: target model.
        second: whether they are DEIMv2's.

    Raises:
        WeightsError: the model's head is of another kind, or its distributions have another scale.
    """
    kept = {}
    for name, tensor in without_derived(tensors).items():
        setting = name.rpartition(".")[2]
        if setting in ("up", "reg_scale"):
            _check_setting(setting, tensor, model)
        else:
            kept[renamed(name, _SPELLED)] = tensor
    if not second:
        return official_to_rows(kept, model, _DFINE)
    return official_to_rows(_shared(_halved(kept), model), model, _DEIM)


def _halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split the doubled first convolution of a branch: the first half is the shortcut, the second continues."""
    result = {}
    for name, tensor in tensors.items():
        match = _HALVES.fullmatch(name)
        if match is None or not tensor.ndim:
            result[name] = tensor
            if match is not None:
                result[f"{match[1]}.conv2.{match[2]}"] = tensor
            continue
        result[f"{match[1]}.conv2.{match[2]}"], result[name] = tensor.chunk(2)
    return result


def _shared(tensors: dict[str, Tensor], model: DetectionModel) -> dict[str, Tensor]:
    """Give every layer the shared box head; a saved file holds it once, under the name of any layer."""
    heads = getattr(model.rows[-1], "dec_bbox_head", ())
    if len(set(heads)) != 1:
        return tensors
    for name in list(tensors):
        match = _BOX_HEAD.fullmatch(name)
        for k in range(len(heads) if match else 0):
            assert match is not None
            tensors.setdefault(f"{match[1]}{k}{match[2]}", tensors[name])
    return tensors


def _from_transformers(state: State, config: Config, second: bool) -> dict[str, Tensor]:
    """Convert transformers' names to official ones."""
    named = to_official(state, config)
    for name in [name for name in named if _GATE.fullmatch(name)]:
        match = _GATE.fullmatch(name)
        assert match is not None
        other = f"{match[1]}.mlp.up_proj.{match[2]}"
        if other in named:
            named[f"{match[1]}.swish_ffn.w12.{match[2]}"] = torch.cat((named.pop(name), named.pop(other)))
    return {renamed(name, _DEIM_RULES if second else _DFINE_RULES): tensor for name, tensor in named.items()}


def _check_setting(name: str, tensor: Tensor, model: DetectionModel) -> None:
    decoder = model.rows[-1]
    wanted = _UP if name == "up" else decoder.scale if isinstance(decoder, DFINEDecoder) else None
    if wanted is None or tensor.is_meta:
        return
    given = float(tensor.flatten()[0])
    if abs(given - wanted) > 1e-6:
        raise WeightsError(f"the file's distributions have {name} {given:g}, the model's {wanted:g}.")


def _dfine_notes(settings: Mapping[str, Any], model: DetectionModel) -> list[str]:
    theirs, decoder = settings.get("decoder_activation_function", "relu"), model.rows[-1]
    silu = isinstance(decoder, DFINEDecoder) and decoder.pre_bbox_head.act is ACTIVATIONS["silu"]  # DEIM's
    ours = "silu" if silu else "relu"
    if theirs == ours:
        return []
    return [f"the file's decoder has {theirs} in its feed-forward networks, the model's {ours}: its outputs will differ."]


def _deim_notes(settings: Mapping[str, Any], model: DetectionModel) -> list[str]:
    return [
        "transformers computes DEIMv2 otherwise than its authors, whom our model follows, also in an output layer "
        "(enc_output) that the authors' files do not have: the outputs will differ from transformers'."
    ]


def _shipped(state: State, second: bool) -> str | None:
    """Return the shipped model with these widths of stem and encoder."""
    names = ("backbone.stem.stem1.conv.weight", "encoder.input_proj.0.conv.weight")
    spelled = {re.sub(r"^(encoder\.input_proj\.\d+)\.0\.", r"\1.conv.", name): tensor for name, tensor in state.items()}
    widths = [len(spelled[name]) for name in names if name in spelled and spelled[name].ndim]
    if len(widths) < len(names):
        return None
    if second:
        size = {(16, 64): "atto", (16, 96): "femto", (16, 112): "pico", (16, 128): "n"}.get((widths[0], widths[1]))
    else:
        sizes = {(16, 128): "n", (16, 256): "s", (24, 256): "m", (32, 256): "l", (32, 384): "x"}
        size = sizes.get((widths[0], widths[1]))
    return None if size is None else f"{'deimv2' if second else 'dfine'}-{size}"


def _layout(kind: str, first: str, official: bool, second: bool) -> Layout:
    pattern = re.compile(rf"(.*?){first}")

    def matches(names: Collection[str], metadata: Mapping[str, str]) -> str | None:
        found = next((match for name in names if (match := pattern.fullmatch(name))), None)
        return None if found is None else str(found[1])

    def named(state: State, config: Config) -> State:
        return state if official else _from_transformers(state, config, second)

    def to_ours(state: State, model: DetectionModel | None, config: Config = None) -> dict[str, Tensor]:
        assert model is not None  # a detector's tensors have their names from its rows
        return from_official(named(state, config), model, second)

    def shipped(state: State, config: Config) -> str | None:
        return _shipped(named(state, config), second)

    licence = _LICENCES[second]
    if official:
        return Layout(kind, False, licence, EPS, matches, to_ours, shipped=shipped)
    notes, types = (_deim_notes, ("deimv2",)) if second else (_dfine_notes, ("d_fine",))
    return Layout(kind, False, licence, EPS, matches, to_ours, shipped=shipped, notes=notes, types=types)


_STATED = "the published {} files are Apache-2.0; this one does not state its licence."
_LICENCES = {second: always("unknown", _STATED.format("DEIMv2" if second else "D-FINE")) for second in (False, True)}

#: DEIMv2's first: some match everything that identifies D-FINE's.
LAYOUTS = (
    _layout("deimv2-transformers", r"model\.decoder\.layers\.0\.mlp\.gate_proj\.weight", False, True),
    _layout("deimv2-official", r"decoder\.decoder\.layers\.0\.swish_ffn\.w12\.weight", True, True),
    _layout("dfine-transformers", r"model\.decoder\.layers\.0\.gateway\.gate\.weight", False, False),
    _layout("dfine-official", r"decoder\.decoder\.layers\.0\.gateway\.gate\.weight", True, False),
)
