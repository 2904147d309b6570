"""Convert weights: a backbone for timm, transformers or the original code, or any file to one of ours.

Both directions are exact: names change and shapes are views, so a round trip gives the same file to the bit. A licence that
the file states, or that is known from its origin, is kept. A detector goes to ultralytics as a
whole (``ultralytics_file``), to the other layouts only with its backbone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nextdetr.errors import ConfigError, WeightsError
from nextdetr.files import atomic_write, is_local, make_directory, with_own_name, write_text_atomic
from nextdetr.models.convnextv2 import EXPANSION
from nextdetr.models.detection import DetectionModel
from nextdetr.models.graph import build_skeleton, load_model_file, parse_model_text, with_memory
from nextdetr.models.names import row_name
from nextdetr.weights.checkpoint import extra_metadata, image_size_of, read_metrics, save_detector, stated_model
from nextdetr.weights.gate import check_tensors
from nextdetr.weights.layouts.convnext_original import to_original
from nextdetr.weights.layouts.convnext_timm import to_timm
from nextdetr.weights.layouts.convnext_transformers import to_transformers
from nextdetr.weights.layouts.rtdetr_transformers import transformers_backbone
from nextdetr.weights.layouts.sizes import backbone_size, known_size
from nextdetr.weights.layouts.table import FCMAE, Identity, backbone_tensors
from nextdetr.weights.licences import Origin
from nextdetr.weights.load import open_weights, plan_load
from nextdetr.weights.reader import WeightsFile
from nextdetr.weights.remote import plain_name
from nextdetr.weights.tensorfile import write_tensors
from nextdetr.weights.ultralytics_file import entries_of, trained_size

__all__ = ["FORMATS", "Format", "backbone_state", "convert", "save_backbone", "ultralytics_checkpoint"]

Format = Literal["nextdetr", "timm", "transformers", "original", "ultralytics"]
FORMATS: tuple[Format, ...] = ("nextdetr", "timm", "transformers", "original", "ultralytics")
_TORCH = ("original", "ultralytics")  # layouts that are files of torch.save
_FILE_SUFFIXES = frozenset((".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".onnx", ".npz", ".json", ".yaml", ".zip"))


def convert(path: str | Path, to: Format, output: str | Path | None = None) -> tuple[Path, Identity]:
    """Write a weights file in another layout.

    Args:
        path: a file of any known layout. For a detector, ``timm``, ``transformers`` and ``original`` get its backbone.
        to: ``nextdetr`` (safetensors), ``timm`` (safetensors), ``transformers`` (a folder with ``config.json``, or a bare
            ``*.safetensors``), ``original`` (``.pt``, ``{"model": …}``), ``ultralytics`` (``.pt`` of a whole RT-DETR, for
            the plug-in ``nextdetr-ultralytics``).
        output: target; by default beside the file, with the layout in its name.

    Returns:
        The written path, and the identity of the file.

    Raises:
        WeightsError: the file cannot be read, has no ConvNeXt backbone, or holds a model that ultralytics cannot build.
        ConfigError: the output's suffix is not the layout's, or it is the input.
    """
    file, identity = open_weights(path)
    target = _target(path, to, output)
    if to == "nextdetr" and not identity.is_backbone:
        return _detector(file, identity, target), identity
    if to == "ultralytics":
        _save_torch(target, ultralytics_checkpoint((file, identity)))
        return target, identity
    state = backbone_state(file, identity)
    check_tensors(str(file.path), state)
    if to != "nextdetr":
        _check_width(file, state)
    metadata = {"weights_licence": identity.licence, "source_weights": _origin(file), **identity.taught}
    metadata["pretraining"] = FCMAE if identity.without_labels else "unknown"
    if to == "nextdetr":
        save_backbone(target, state, **metadata)
    elif to == "timm":
        write_tensors(target, to_timm(state), {"format": "pt", **metadata})
    elif to == "transformers":
        _transformers(target, state, metadata)
    else:
        tensors = {name: tensor.contiguous() for name, tensor in to_original(state).items()}
        _save_torch(target, {"model": tensors, "nextdetr": metadata})
    return target, identity


def ultralytics_checkpoint(path: str | Path | tuple[WeightsFile, Identity]) -> dict[str, Any]:
    """Return a detector as the entries of a checkpoint that ``nextdetr_ultralytics.RTDETR`` opens, see ``entries_of``.

    Args:
        path: a detector of any known layout, as ``open_weights`` takes it, or what that returned.

    Raises:
        WeightsError: the file cannot be read, is a backbone alone, or its model has rows that ultralytics does not have.
    """
    file, identity = path if isinstance(path, tuple) else open_weights(path)
    if identity.is_backbone:
        raise WeightsError(
            f"{file.path}: a backbone alone ({identity.kind}), and ultralytics has whole detectors; give it to the plug-in "
            "as it is: RTDETR(MODEL, backbone_weights=FILE)."
        )
    model, classes, size = _whole(file, identity)
    origin = Origin(identity.licence, _origin(file), identity.taught)
    return entries_of(str(file.path), model, classes, size, origin)


def _save_torch(target: Path, content: dict[str, Any]) -> None:
    with atomic_write(target) as temporary:
        torch.save(content, temporary)


def _check_width(file: WeightsFile, state: dict[str, Tensor]) -> None:
    inside, channels = state["stages.0.0.pwconv1.weight"].shape[:2]
    if inside != EXPANSION * channels:
        raise WeightsError(
            f"{file.path}: its blocks are {inside / channels:g} times as wide inside as outside; other programs have "
            f"ConvNeXt V2 with {EXPANSION} times only, so that they cannot load this backbone."
        )


def save_backbone(
    path: str | Path,
    state: dict[str, Tensor],
    *,
    weights_licence: str,
    source_weights: str,
    pretraining: str = "unknown",
    **taught: str,
) -> Path:
    """Write one of our backbone files: the backbone's own names, and ``kind: backbone`` in the metadata.

    Args:
        path: target, ``*.safetensors``.
        state: tensors under our names.
        weights_licence: licence of the weights; ``none`` for weights trained on the user's images.
        source_weights: file that they come from, or ``none``.
        pretraining: last training: ``fcmae``, or ``unknown``.
        taught: further metadata about teachers of the weights, see ``joined_teachers``.
    """
    from nextdetr import __version__

    size = known_size(*backbone_size(state))
    metadata = {
        "kind": "backbone", "format_version": "1", "backbone": "" if size is None else f"convnextv2-{size}",
        "weights_licence": weights_licence, "source_weights": source_weights, "nextdetr_version": __version__,
        "pretraining": pretraining, **taught,
    }  # fmt: skip
    return write_tensors(path, state, metadata)


def _origin(file: WeightsFile) -> str:
    """Return the origin stated in a file; else its name without folders, or its full name on the Hub."""
    name = file.path.name if isinstance(file.path, Path) else str(file.path)
    ours = file.extra.get("nextdetr")  # in a file of torch.save that NextDETR wrote
    stated = ours if "source_weights" not in file.metadata and isinstance(ours, dict) else file.metadata
    return str(stated.get("source_weights", name))


def _target(source: str | Path, to: Format, output: str | Path | None) -> Path:
    suffix = ".pt" if to in _TORCH else ".safetensors"
    if output is None:
        # For a name on the Hub, the file is written here, as if the download were here.
        path = with_own_name(Path(source) if is_local(source) else Path(plain_name(source)))
        stem = path.stem if path.is_file() or path.suffix in _FILE_SUFFIXES else path.name
        return path.with_name(f"{stem}-{to}" + ("" if to == "transformers" else suffix))
    target = Path(output)
    if is_local(source) and target.resolve() == Path(source).resolve():
        raise ConfigError(f"{target}: the output is the input; choose another --output.")
    if to == "transformers" and target.suffix not in _FILE_SUFFIXES:  # a folder's name may contain a dot
        if target.is_file():
            raise ConfigError(f"{target}: a file, but a folder is to be written; choose another --output.")
        return target
    if target.suffix != suffix and not (to in _TORCH and target.suffix == ".pth"):
        raise ConfigError(f"{target}: the layout {to} is written as *{suffix}; end the name so.")
    if target.is_dir():
        raise ConfigError(f"{target}: a folder, but a file is to be written; choose another --output.")
    return target


def backbone_state(file: WeightsFile, identity: Identity) -> dict[str, Tensor]:
    """Return the ConvNeXt V2 tensors of a file under our names.

    Raises:
        WeightsError: it has no ConvNeXt backbone, or unknown parts.
    """
    if identity.is_backbone:
        state = backbone_tensors(file, identity)
    elif identity.kind in ("nextdetr-detector", "rtdetr-ultralytics"):
        first = next((name for name in file.tensors if name.endswith("0.downsample_layers.0.0.weight")), row_name(0, ""))
        prefix = first.removesuffix("downsample_layers.0.0.weight")
        state = {name.removeprefix(prefix): tensor for name, tensor in file.tensors.items() if name.startswith(prefix)}
    else:
        try:
            state = transformers_backbone(file.tensors)
        except (KeyError, RuntimeError) as error:
            cause = " ".join(str(error).split())[:200]
            raise WeightsError(f"{file.path}: its backbone is not complete ({cause}).") from error
    if not backbone_size(state)[0]:
        raise WeightsError(
            f"{file.path}: a {identity.kind} file without a ConvNeXt backbone; only that can be written for other programs."
        )
    known = ("downsample_layers.", "stages.", "norm.", "head.")
    strange = [name for name in state if not name.startswith(known)]
    if strange:
        raise WeightsError(f"{file.path}: {strange[0]} is not part of a ConvNeXt, so no other layout has a name for it.")
    return state


def _detector(file: WeightsFile, identity: Identity, target: Path) -> Path:
    """Write a detector of any layout as ours."""
    model, classes, size = _whole(file, identity)
    own = identity.kind == "nextdetr-detector" and identity.model_text is not None
    extra = extra_metadata(file.metadata) if own else identity.taught
    return save_detector(
        target, model.state_dict(), model_text=model.text, classes=classes,
        image_size=size, metrics=read_metrics(file.metadata),
        weights_licence=identity.licence, source_weights=_origin(file),
        data=file.metadata.get("data", "none"), extra=extra,
    )  # fmt: skip


def _whole(file: WeightsFile, identity: Identity) -> tuple[DetectionModel, list[str], int]:
    """Build a detector of any layout with its weights; return it with its classes and the side of its input in pixels.

    Raises:
        WeightsError: its model is not known, or tensors are missing.
    """
    if identity.model_text is not None:
        with stated_model(file.path):
            source = parse_model_text(identity.model_text, "the file")
    elif identity.model is not None:
        source = load_model_file(identity.model)
    else:
        raise WeightsError(
            f"{file.path}: its model is not known; load it with a model file: --weights {file.path} --model M."
        )
    with stated_model(file.path):
        stated = None if identity.model_text is None else len(file.tensors)
        skeleton = build_skeleton(source, num_classes=identity.num_classes, tensors=stated)
    plan = plan_load(skeleton, (file, identity))
    if not plan.report.complete:
        gaps = [*plan.report.missing, *plan.report.reshaped]
        raise WeightsError(
            f"{file.path}: only a whole detector is converted, but {len(gaps)} tensors are missing (such as {gaps[0]})."
        )
    model = with_memory(skeleton)
    plan.apply(model)
    classes = identity.classes or [f"class_{index}" for index in range(model.num_classes)]
    if "image_size" in file.metadata:
        return model, classes, image_size_of(file.metadata, model, str(file.path))
    return model, classes, trained_size(file.extra, model)


def _transformers(target: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    tensors = to_transformers(state)
    if target.suffix == ".safetensors":
        write_tensors(target, tensors, {"format": "pt", **metadata})
        return
    head = state.get("head.weight")
    depths, dims = backbone_size(state)
    config: dict[str, Any] = {
        "architectures": ["ConvNextV2Model" if head is None else "ConvNextV2ForImageClassification"],
        "model_type": "convnextv2", "depths": list(depths), "hidden_sizes": list(dims), "num_stages": len(depths),
        "num_channels": 3, "patch_size": 4, "hidden_act": "gelu", "image_size": 224,
    }  # fmt: skip
    if head is not None:
        config["id2label"] = {str(index): f"LABEL_{index}" for index in range(head.shape[0])}
        config["label2id"] = {name: int(index) for index, name in config["id2label"].items()}
    make_directory(target)
    if head is None:  # the base model's state has no prefix
        tensors = {name.removeprefix("convnextv2."): tensor for name, tensor in tensors.items()}
    write_tensors(target / "model.safetensors", tensors, {"format": "pt", **metadata})
    write_text_atomic(target / "config.json", json.dumps(config, indent=2) + "\n")
