"""The teacher of a run: a larger detector, opened once, whose predictions on each batch are targets for the student.

It sees the same augmented images as the student, at the nearest size that it accepts. One of our detectors, or one whose
weights we load, teaches the queries, classes, boxes and edges of its decoder, and the maps of its backbone; an exported
file teaches its classes and boxes, from queries near these boxes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from torch.nn import functional

from nextdetr.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from nextdetr.errors import ConfigError, WeightsError
from nextdetr.inference.exported import ExportedModel, OpenedExport, is_exported, open_export
from nextdetr.inference.header import exported_file
from nextdetr.models.answers import Taught, teach
from nextdetr.models.detection import DetectionModel
from nextdetr.models.dfine import DFINEDecoder
from nextdetr.models.fuse import fuse
from nextdetr.models.graph import available_models
from nextdetr.models.summary import gflop_near
from nextdetr.structures import EdgeOutput, Lesson
from nextdetr.weights.checkpoint import OpenedModel
from nextdetr.weights.folder import CONFIG, FOLDER_FILES, RUN_FILES
from nextdetr.weights.layouts.classes import match_classes
from nextdetr.weights.licences import TEACHER, TEACHER_LICENCE, joined_licences
from nextdetr.weights.load import find_weights, open_weights
from nextdetr.weights.remote import is_name, plain_name
from nextdetr.weights.start import open_detector, resolve_model

__all__ = ["PLACES", "Teacher", "open_teacher", "open_trained"]

PLACES = 100  # queries per image to distil from: those with the highest confidence
NOISE = 0.5  # sides of an exported file's boxes move by up to half of this fraction of the box, to leave something to learn


@dataclass(slots=True)
class Teacher:
    """An opened teacher, matched with a data set.

    Attributes:
        opened: the detector; our own are folded.
        source: the teacher as given by the user.
        digest: digest of the file's content.
        pairs: (class index in the data, class index of the teacher) of each class that both have.
        classes: classes of the data.
        maps: indices of the maps that it can provide, the backbone's by stride; none for an exported file.
        unnamed: whether the teacher's classes have no names and are matched by order.
    """

    opened: OpenedModel | OpenedExport
    source: str
    digest: str
    pairs: list[tuple[int, int]] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    maps: dict[int, int] = field(default_factory=dict)
    unnamed: bool = False

    @property
    def has_edges(self) -> bool:
        """Whether its decoder predicts a distribution for each edge."""
        model = self.opened.model
        return isinstance(model, DetectionModel) and isinstance(model.rows[-1], DFINEDecoder)

    def for_classes(self, classes: Sequence[str]) -> None:
        """Match its classes with the data's by name.

        Raises:
            ConfigError: no class is in both.
        """
        theirs, self.classes = self.opened.classes, list(classes)
        self.unnamed = isinstance(self.opened, OpenedModel) and not self.opened.trained and len(theirs) == len(classes)
        same = [(index, index) for index in range(len(classes))]
        self.pairs = same if self.unnamed else match_classes(theirs, classes) if self.opened.trained else []
        if not self.pairs:
            had = _listed(theirs) if self.opened.trained else f"{len(theirs)} classes without names"
            raise ConfigError(
                f"{self.source}: the teacher knows none of the data's classes ({_listed(classes)}; it has {had}): name "
                "another teacher, or leave --teacher out."
            )

    def lines(self, pupil: DetectionModel, *, places: bool, maps: Sequence[int]) -> list[str]:
        """Return the message for the user: what the teacher teaches ``pupil``, and which classes it lacks.

        Args:
            pupil: the model to train.
            places: whether classes and boxes are taught.
            maps: strides of the maps that are taught.
        """
        edges = self.has_edges and isinstance(pupil.rows[-1], DFINEDecoder)
        subjects = ["classes", "boxes", *(["distributions of the edges"] if edges else [])] if places else []
        if maps:
            subjects.append(f"the backbone's maps of stride {', '.join(map(str, maps))}")
        *most, last = subjects
        lines = [f"Teacher {self.source}: it teaches {', '.join(most)}{' and ' if most else ''}{last}."]
        if self.unnamed:
            lines.append("Its classes have no names; they are assumed to be the data's, in order.")
        known = {index for index, _ in self.pairs}
        unknown = [name for index, name in enumerate(self.classes) if index not in known]
        if unknown:
            lines.append(f"It does not know {_listed(unknown)}: learnt from the labels alone.")
        return lines

    def to_metadata(self) -> dict[str, str]:
        """Metadata of a student's file about the teacher: its name, the licences of its weights and of its own teachers."""
        licences = [self.opened.metadata.get(key, "none") for key in ("weights_licence", TEACHER_LICENCE)]
        return {TEACHER: plain_name(self.source), TEACHER_LICENCE: joined_licences(licences)}

    def gflop(self) -> float:
        """Return the cost of one image of about 320 px in GFLOP; 0 for an exported file, where it is unknown."""
        model = self.opened.model
        if not isinstance(model, DetectionModel):
            return 0.0
        return gflop_near(model, 320)

    def to(self, device: torch.device) -> None:
        """Move it to a device; an exported file stays on the CPU."""
        if isinstance(self.opened, OpenedModel):
            self.opened.model.to(device)

    @torch.no_grad()
    def teach(self, images: Tensor, strides: Sequence[int], places: int | None = PLACES) -> Lesson:
        """Predict on a batch.

        Args:
            images: [B, 3, S, S] float32 RGB, 0 to 1, as the student sees them.
            strides: strides of the maps to return.
            places: maximum number of places per image; None for all queries, as where the boxes are to be complete.
        """
        model = self.opened.model
        if isinstance(model, DetectionModel):
            sides = [max(1, round(side / model.stride)) * model.stride for side in images.shape[2:]]
            return self._lesson(teach(model, _resized(images, sides), strides, indices=self.maps), places)
        return self._lesson(self._from_file(model, images), places)

    def _from_file(self, model: ExportedModel, images: Tensor) -> Taught:
        contract = model.contract
        sides = [contract.image_size] * 2
        if contract.dynamic:
            low, high = contract.least_size or contract.step, contract.largest_size or max(images.shape[2:])
            nearest = [max(1, round(side / contract.step)) * contract.step for side in images.shape[2:]]
            sides = [min(max(side, low), high) for side in nearest]
        output = model(_resized(images, sides).float().cpu().numpy())
        logits, boxes = (torch.from_numpy(part).to(images.device) for part in (output.logits, output.boxes))
        if not contract.raw:
            logits, boxes = _joined(logits, boxes)
        return Taught(_moved(boxes), logits, boxes, None, {})

    def _lesson(self, taught: Taught, places: int | None) -> Lesson:
        """Reorder the predictions to the student's classes, and keep the most confident queries."""
        logits = taught.logits.float()
        ours, theirs = (list(side) for side in zip(*self.pairs, strict=True))
        scores = logits.new_zeros(*logits.shape[:2], len(self.classes))
        scores[..., ours] = logits[..., theirs].sigmoid()
        confidence, best = scores.amax(dim=-1).topk(min(places or logits.shape[1], logits.shape[1]), dim=1)

        def kept(values: Tensor) -> Tensor:
            """[B, Q, ...] to [B, K, ...]."""
            index = best.reshape(*best.shape, *[1] * (values.ndim - 2))
            return values.gather(1, index.expand(-1, -1, *values.shape[2:]))

        told = torch.zeros(len(self.classes), dtype=torch.bool, device=logits.device)
        told[ours] = True
        used = kept(logits.amax(dim=-1, keepdim=True)) > -torch.inf  # unused rows of a file are all minus infinity
        edges = taught.edges
        if edges is not None:
            first = (kept(edges.first_logits), kept(edges.first_boxes))
            edges = EdgeOutput(kept(edges.bins[0])[None], kept(edges.anchors), edges.offsets, edges.scale, *first)
        points, boxes = kept(taught.points).float(), kept(taught.boxes).float()
        return Lesson(points, kept(scores), told & used, boxes, confidence, edges, taught.maps)


def open_teacher(source: str | Path) -> Teacher:
    """Open a teacher; arguments and errors are those of ``open_trained``."""
    opened, digest = open_trained(source, option="teacher")
    if not isinstance(opened, OpenedModel):
        return Teacher(opened, str(source), digest)
    folded = OpenedModel(fuse(opened.model), opened.classes, opened.image_size, opened.source, opened.metadata)
    return Teacher(folded, str(source), digest, maps=folded.model.backbone_maps(unread=True))


def open_trained(source: str | Path, *, option: str) -> tuple[OpenedModel | OpenedExport, str]:
    """Open a trained detector.

    Args:
        source: a checkpoint or the folder of a run, an export, weights of another program, or the name of published
            weights, which are downloaded unless they are in the cache (see ``locate``).
        option: name of the option for messages, ``teacher`` or ``graft``.

    Returns:
        The detector, and a digest of its content.

    Raises:
        ConfigError: it is untrained, or its runtime is not installed.
        WeightsError: it cannot be read or fetched, or is not a detector.
        ModelFileError: an exported file cannot be read.
    """
    what, give = ("teacher", "give --teacher") if option == "teacher" else ("detector", "name")
    path = Path(source).expanduser()
    named = is_name(source)
    if named:
        path = find_weights(source).path
    elif not path.exists():
        random = f" {path} names a model without weights: train it first." if str(source) in available_models() else ""
        raise ConfigError(
            f"{path}: there is no such {what}; {give} a checkpoint, an exported detector, or a name of nextdetr "
            f"weights list.{random}"
        )
    if path.suffix in (".yaml", ".yml"):
        raise ConfigError(f"{path}: a model file has no weights to teach with; {give} a checkpoint of it.")
    if is_exported(path):
        opened: OpenedModel | OpenedExport = open_export(path, threads=torch.get_num_threads())
        return opened, _digest(exported_file(path))
    file = Path(resolve_model(path)) if _is_run(path) else path
    weights = source if named else file  # a name also gives the licence of its model card
    read, identity = open_weights(weights)
    if identity.is_backbone:
        raise WeightsError(f"{source}: a backbone alone ({identity.kind}), which detects nothing; name a detector.")
    if identity.kind == "nextdetr-detector":
        file = Path(resolve_model(file))
        own = open_detector(file)[0]
        origin = {"weights_licence": identity.licence} | ({"source_weights": str(read.path)} if named else {})
        opened = replace(own, source=str(read.path) if named else own.source, metadata=own.metadata | origin)
    elif identity.model is None:
        raise WeightsError(f"{source}: the model of these weights is unknown; name a checkpoint or an export.")
    else:
        opened = open_detector(identity.model, weights=weights)[0]
    return opened, _digest(file)


def _is_run(path: Path) -> bool:
    """Whether only ``resolve_model`` can open this: our own folders, and the state of a run."""
    return path.name == "last.ckpt" or any((path / name).is_file() for name in RUN_FILES)


def _digest(path: Path) -> str:
    """Return a digest of a file (with OpenVINO's weights beside it), or of the weights and ``config.json`` in a folder.

    Of our detectors it is that of weights, model and classes: ``calibrate`` and ``report --store`` write the rest later. In
    the Hub's cache, other programs add files of the same repository to the folder.
    """
    if path.is_dir():
        read = (CONFIG, *FOLDER_FILES)
        kinds = (".safetensors", ".bin")
        files = sorted(file for file in path.iterdir() if (file.suffix in kinds or file.name in read) and file.is_file())
    else:
        files = [path, *([path.with_suffix(".bin")] if path.suffix == ".xml" else [])]
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        with file.open("rb") as stream:
            if file == path and file.suffix == ".safetensors":  # it was opened, so that its header is sound
                digest.update(_read_header(stream))
            while part := stream.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


def _read_header(stream: BinaryIO) -> bytes:
    """Read the header of a safetensors file, and return what in it describes the tensors, with model and classes."""
    header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    notes = header.pop("__metadata__", {})
    known = {name: notes[name] for name in ("model", "classes") if name in notes}
    return json.dumps([header, known], sort_keys=True).encode()


def _resized(images: Tensor, sides: Sequence[int]) -> Tensor:
    """Resize [B, 3, H, W] with the filter that images are resized with."""
    if list(images.shape[2:]) == list(sides):
        return images
    return functional.interpolate(images, size=list(sides), mode="bilinear", antialias=True)


def _joined(logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Merge rows of an exported file's detections that belong to one query: one box with different classes."""
    same = (boxes[:, :, None] == boxes[:, None]).all(dim=-1)  # [B, K, K]
    places = torch.arange(boxes.shape[1], device=boxes.device)
    first = torch.where(same, places, len(places)).amin(dim=-1)  # [B, K]
    none = torch.full_like(logits, -torch.inf)
    return none.scatter_reduce(1, first[..., None].expand_as(logits), logits, "amax"), boxes


def _moved(boxes: Tensor) -> Tensor:
    """Boxes [B, K, 4] cxcywh with jittered sides, as for denoising queries; uses torch's generator."""
    reach = (0.5 * NOISE * boxes[..., 2:]).repeat(1, 1, 2)
    moved = cxcywh_to_xyxy(boxes) + (2 * torch.rand_like(boxes) - 1) * reach
    return xyxy_to_cxcywh(moved.clamp(0.0, 1.0))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
