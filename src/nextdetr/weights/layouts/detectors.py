"""Common parts of the layouts of whole detectors: the fitting model, differences, and what is known of a file.

Sources: official RT-DETR, RT-DETRv2 and D-FINE, transformers' folders of them, and ultralytics' RT-DETR state dicts.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from nextdetr.errors import WeightsError
from nextdetr.models.detection import DetectionModel
from nextdetr.models.graph import available_models, build_skeleton
from nextdetr.models.modelfile import load_model_file, parse_model_text, shipped_name
from nextdetr.weights.layouts import dfine, rtdetr_official, rtdetr_transformers, rtdetr_ultralytics
from nextdetr.weights.layouts.base import Config, Layout, State, layout_table, licence_of, number_of, teachers_of
from nextdetr.weights.layouts.classes import published_classes
from nextdetr.weights.licences import joined_licences
from nextdetr.weights.reader import WeightsFile

__all__ = [
    "DETECTORS", "config_of", "describe_detector", "detector_classes", "detector_kind", "detector_notes",
    "detector_to_ours", "shipped_model_for",
]  # fmt: skip

#: In the order in which they are tried; D-FINE's files match everything that identifies RT-DETR's.
DETECTORS = layout_table(
    *rtdetr_ultralytics.LAYOUTS, *dfine.LAYOUTS, *rtdetr_transformers.LAYOUTS, *rtdetr_official.LAYOUTS
)
#: Part of a name in one of several layers.
_OF_A_LAYER = re.compile(r"\.layers\.\d+\.")


def detector_kind(names: Iterable[str]) -> str | None:
    """Return the kind in ``DETECTORS`` that matches a state dict's names, or None."""
    listed = list(names)
    return next((kind for kind, layout in DETECTORS.items() if layout.matches(listed, {}) is not None), None)


def detector_classes(kind: str, tensors: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of a detector; None if it has no class head."""
    heads = ("enc_score_head.weight", "dec_score_head.0.weight", "class_embed.0.weight")
    assert DETECTORS[kind]
    return next((tensor.shape[0] for name, tensor in tensors.items() if name.endswith(heads) and tensor.ndim), None)


def detector_to_ours(
    kind: str, tensors: Mapping[str, Tensor], model: DetectionModel, config: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """Convert a detector's tensors to a model's names; only tensors that change shape are copied.

    Args:
        kind: one of ``DETECTORS``.
        tensors: name in the file -> tensor.
        model: target model; may be on the meta device.
        config: transformers' ``config.json``.

    Returns:
        Name in the model -> tensor. Tensors without a place in the model keep their names, so that they are reported;
        buffers derived from the structure (anchors, scales of points) are left out.

    Raises:
        WeightsError: the kind is unknown, the model's structure does not fit, or the tensors contradict each other.

    Warns:
        UserWarning: one for each of ``detector_notes``.
    """
    for note in detector_notes(kind, tensors, model, config):
        warnings.warn(note, stacklevel=2)
    layout = DETECTORS[kind]
    with _whole(kind):
        return layout.to_ours(_without_prefix(layout, tensors), model, config)


@contextlib.contextmanager
def _whole(kind: str) -> Iterator[None]:
    """Report tensors whose shapes contradict each other.

    Raises:
        WeightsError: replaces the errors of torch.
    """
    try:
        yield
    except (KeyError, RuntimeError, IndexError, TypeError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise WeightsError(f"not a complete {kind} checkpoint ({cause}).") from error


def detector_notes(
    kind: str, tensors: Mapping[str, Tensor], model: DetectionModel, config: Mapping[str, Any] | None = None
) -> list[str]:
    """Return a sentence for each difference in outputs that names and shapes do not show.

    Args:
        kind: one of ``DETECTORS``.
        tensors: name in the file -> tensor.
        model: target model.
        config: transformers' ``config.json``.

    Raises:
        WeightsError: the kind is unknown.
    """
    layout, settings = DETECTORS[kind], config or {}
    notes = []
    theirs = number_of(settings, "batch_norm_eps", layout.eps or 0.0)
    ours = next((module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)), theirs)
    if ours != theirs:
        notes.append(
            f"the file's BatchNorms add {theirs:g} to the variance and the model's {ours:g}: its outputs will differ a "
            f"little; batch_norm_eps: {theirs:.1e} in the model file makes them equal."
        )
    if settings.get("decoder_method", "default") == "discrete":
        notes.append(
            "the file's decoder reads the nearest cell of a map (decoder_method discrete), ours interpolates between them: "
            "its outputs will differ a little."
        )
    if kind.startswith("rtdetr") and any(name.endswith("decoder.query_pos_head.layers.2.weight") for name in tensors):
        notes.append(
            "the file is DEIM's RT-DETR, whose position embeddings and SiLU in the decoder no shipped model has: its "
            "outputs will differ until it is trained."
        )
    if any(".hidden_states_norms." in name for name in tensors):
        notes.append(
            "the file's backbone norms each map that it returns (hidden_states_norms), ours does not: "
            "its outputs will differ until it is trained."
        )
    last, layers = settings.get("eval_idx"), settings.get("decoder_layers")
    if isinstance(last, int) and isinstance(layers, int) and 0 <= last < layers - 1:
        notes.append(
            f"the file's decoder returns the boxes of its layer {last + 1} of {layers} (eval_idx), ours those of the last: "
            "its outputs will differ."
        )
    return notes + layout.notes(settings, model)


def shipped_model_for(kind: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> str | None:
    """Return the shipped model that a detector fits exactly, with its own number of classes; None if there is none.

    A file with more layers than the model is for another one: without them, it would detect less.

    Args:
        kind: one of ``DETECTORS``.
        tensors: name in the file -> tensor.
        config: transformers' ``config.json``.

    Raises:
        WeightsError: the kind is unknown.
    """
    layout = DETECTORS[kind]
    try:
        with _whole(kind):
            name = layout.shipped(_without_prefix(layout, tensors), config)
    except WeightsError:  # a backbone that our blocks do not support
        return None
    classes = detector_classes(kind, tensors)
    if name not in available_models() or classes is None:
        return None
    model = build_skeleton(name, num_classes=classes)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = detector_to_ours(kind, tensors, model, config)
    except WeightsError:
        return None
    own = {key: value for key, value in model.state_dict().items() if not key.endswith(".num_batches_tracked")}
    more = [key for key in given if key not in own and not key.endswith(".num_batches_tracked")]
    if any(map(_OF_A_LAYER.search, more)):
        return None
    return name if all(key in given and given[key].shape == value.shape for key, value in own.items()) else None


def _without_prefix(layout: Layout, tensors: State) -> dict[str, Tensor]:
    """Return the tensors without the common prefix of their names (such as DDP's ``module.``)."""
    prefix = layout.matches(tensors.keys(), {}) or ""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def describe_detector(file: WeightsFile, layout: Layout) -> dict[str, Any]:
    """Return the fields of the ``Identity`` of a detector file."""
    kind = layout.kind
    count = detector_classes(kind, file.tensors)
    model, text = shipped_model_for(kind, file.tensors, config_of(file)), layout.stated(file.extra)
    if model is not None and text is not None and _same_network(text, model):
        text = None  # the shipped file has a name
    notes = []
    classes = _names(file, count)
    if classes is None:
        classes = published_classes(count)
        if classes is not None:
            notes.append("it does not name its 80 classes; they are assumed to be COCO's.")
    if text is not None:
        model = shipped_name(text)
    elif model is None:
        notes.append("it fits no shipped model; name the model file that it was trained with.")
    licence, remarks = licence_of(file, layout, count)
    notes += remarks
    backbone = layout.backbone(file.tensors.keys())
    if backbone is not None and "weights_licence" not in file.metadata:
        licence = joined_licences([licence, backbone[0]])
        notes.append(backbone[1])
    return {
        "kind": kind, "model": model, "classes": classes, "licence": licence, "notes": tuple(notes), "num_classes": count,
        "model_text": text, "taught": teachers_of(file),
    }  # fmt: skip


def _same_network(text: str, shipped: str) -> bool:
    """Whether a model file is the shipped one in all but its number of classes and its words."""
    facts = []
    for file in (parse_model_text(text, "the file"), load_model_file(shipped)):
        settings = [file.mapping.get(key, default) for key, default in (("normalize", "none"), ("batch_norm_eps", 1e-3))]
        facts.append((settings, [(row.sources, row.repeats, row.name, row.arguments) for row in file.rows]))
    return facts[0] == facts[1]


def config_of(file: WeightsFile) -> Config:
    """Return transformers' ``config.json``, if the file came with one."""
    config = file.extra.get("config")
    return config if isinstance(config, dict) else None


def _names(file: WeightsFile, count: int | None) -> list[str] | None:
    """Return the class names in the file: transformers' ``id2label`` or ultralytics' ``names``."""
    config = config_of(file)
    stated = file.extra.get("names") if config is None else config.get("id2label")
    if isinstance(stated, dict):
        try:
            places = {int(key): value for key, value in stated.items()}
        except (TypeError, ValueError):
            return None
        stated = [places[index] for index in range(len(stated)) if index in places]  # numbered from 0, or not usable
    if not isinstance(stated, list) or len(stated) != count:
        return None
    names = [str(name) for name in stated]
    # transformers numbers unnamed classes; as names these would match by accident.
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names
