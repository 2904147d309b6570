"""Loading of weights of any origin: recognise the file, rename its tensors, copy what fits, report everything.

A load is planned completely before the first tensor is copied: if a file is refused, the model is unchanged.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

import torch
from torch import Tensor

from nextdetr.errors import WeightsError
from nextdetr.models.detection import DetectionModel
from nextdetr.models.names import row_of
from nextdetr.weights.folder import CARD, CONFIG
from nextdetr.weights.gate import check_tensor
from nextdetr.weights.layouts.base import OURS
from nextdetr.weights.layouts.classes import match_classes
from nextdetr.weights.layouts.table import Identity, identify, why_refused
from nextdetr.weights.reader import WeightsFile, beside, read_tensors
from nextdetr.weights.remote import Located, locate
from nextdetr.weights.report import LoadReport
from nextdetr.weights.rows import to_model

__all__ = ["LoadReport", "Part", "Plan", "fills", "find_weights", "load_into", "open_weights", "plan_load"]

Part = Literal["detector", "backbone", "head"]

_MOST_RECOGNISED = 8
_recognised: dict[Hashable, Identity] = {}


@dataclass(slots=True)
class Plan:
    """A checked load that has not been executed, on a model that may be on the meta device.

    Attributes:
        report: what will be loaded.
        whole: (name in the model, tensor), copied completely.
        rows: (name in the model, tensor, rows of the model, rows of the tensor), copied class by class.
        pages: memory pages of the file.
    """

    report: LoadReport
    pages: _Pages
    whole: list[tuple[str, Tensor]] = field(default_factory=list)
    rows: list[tuple[str, Tensor, list[int], list[int]]] = field(default_factory=list)

    def apply(self, model: DetectionModel) -> LoadReport:
        """Copy the tensors into a model like the one that the load was planned for."""
        own = model.state_dict()
        with torch.no_grad():
            for name, tensor in self.whole:
                own[name].copy_(tensor)
                self.pages.read(tensor)
            for name, tensor, new, old in self.rows:
                own[name][new] = tensor[old].to(own[name])
        return self.report


def find_weights(source: str | Path) -> Located:
    """Find weights, see ``locate``; those of a model that cannot be opened are refused before they are downloaded.

    Raises:
        WeightsError: they are missing, cannot be fetched, or are of an unknown model.
    """
    return locate(source, why_refused)


def open_weights(source: str | Path) -> tuple[WeightsFile, Identity]:
    """Read and recognise weights; files that have not changed since are recognised once, which takes longer than reading.

    Args:
        source: a file or folder; or a name, downloaded unless cached: see ``locate``.

    Raises:
        WeightsError: they are missing, damaged, hostile, of unknown layout, or cannot be fetched.
    """
    located = find_weights(source)
    state = _state_of(located)  # first, so that a change while it is read is noticed the next time
    file = read_tensors(located.path)
    if located.whole and located.path.is_file():  # the only weights of a repository, under another name than usual
        file.extra |= beside(located.path.parent)
    if located.card:
        file.extra["card"] = dict(located.card)
    if located.name != str(located.path):
        file.path = PurePosixPath(located.name)
    identity = _recognised.pop(state, None) or identify(file)
    if state is not None:
        _recognised[state] = identity  # last, so that the first is the one not used for longest
        if len(_recognised) > _MOST_RECOGNISED:
            _recognised.pop(next(iter(_recognised)), None)
    return file, identity


def _state_of(located: Located) -> Hashable:
    """Return the names, sizes and times of all files that describe weights; None if they cannot be listed."""
    path = located.path
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path, path.with_name(CONFIG), path.with_name(CARD)]
        states = [(str(file), file.stat()) for file in files if file.is_file()]
    except OSError:
        return None
    card = tuple(sorted(located.card.items()))
    return located.name, card, *((name, found.st_ino, found.st_size, found.st_mtime_ns) for name, found in states)


def fills(model: DetectionModel, plans: Sequence[Plan]) -> bool:
    """Whether the plans fill every tensor of a skeleton on the meta device."""
    given = {name for plan in plans for name, _ in plan.whole}
    return given.issuperset(name for name, tensor in model.state_dict().items() if tensor.is_meta)


def load_into(
    model: DetectionModel,
    path: str | Path | WeightsFile | tuple[WeightsFile, Identity],
    *,
    part: Part = "detector",
    classes_old: Sequence[str] | None = None,
    classes_new: Sequence[str] | None = None,
    allow_partial: bool = False,
) -> LoadReport:
    """Load a file into a model.

    Args:
        model: the detector; changed only if the load is not refused.
        path: weights of any known layout, as for ``open_weights``, or a file already read; or an unmodified result of
            ``open_weights``, whose memory is released on the way.
        part: see ``plan_load``.
        classes_old: see ``plan_load``.
        classes_new: see ``plan_load``.
        allow_partial: also accept a load of less than half of the tensors, or another backbone with a fitting head.

    Returns:
        Report of loaded, missing, unexpected and reshaped tensors.

    Raises:
        WeightsError: the file cannot be read, is for another model or size, matches less than half of the tensors, or has a
            tensor of a wrong type or that is not finite.
    """
    plan = plan_load(
        model, path, part=part, classes_old=classes_old, classes_new=classes_new, allow_partial=allow_partial
    )  # fmt: skip
    plan.report.check(allow_partial=allow_partial)
    return plan.apply(model)


class _Pages:
    """Releases the memory of a mapped file every few megabytes, so that it is never held as a whole."""

    STEP = 8 << 20

    def __init__(self, file: WeightsFile | None) -> None:
        self.file, self.bytes = file, 0

    def read(self, tensor: Tensor) -> None:
        """Record that a tensor has been read."""
        self.bytes += tensor.nbytes
        if self.file is not None and self.bytes > self.STEP:
            self.file.release()
            self.bytes = 0


def plan_load(
    model: DetectionModel,
    path: str | Path | WeightsFile | tuple[WeightsFile, Identity],
    *,
    part: Part = "detector",
    classes_old: Sequence[str] | None = None,
    classes_new: Sequence[str] | None = None,
    allow_partial: bool = True,
) -> Plan:
    """Plan a load: determine what to copy, with every tensor checked.

    Args:
        model: the detector, or its skeleton.
        path: see ``load_into``.
        part: the whole detector, its backbone, or everything but the backbone.
        classes_old: the file's classes, if it does not state them.
        classes_new: the model's classes. For tensors with one row per class (``DetectionModel.class_parameters``), rows are
            matched by name, and other classes keep their initial values; None takes the file's classes in order.
        allow_partial: also accept another backbone with a fitting head.

    Raises:
        WeightsError: the file cannot be read or converted, or a tensor fails its checks.
    """
    if isinstance(path, WeightsFile):
        file, identity, pages = path, identify(path), _Pages(None)
    else:
        file, identity = path if isinstance(path, tuple) else open_weights(path)
        pages = _Pages(file)
    if part != "backbone" and identity.is_backbone:
        raise WeightsError(
            f"{file.path}: a backbone alone ({identity.kind}), not a detector; give it as --backbone-weights."
        )
    mapped = to_model(model, file, identity, part, allow_partial=allow_partial)
    first_of_head = model.backbone_rows
    own = {name: tensor for name, tensor in model.state_dict().items() if _in_part(name, part, first_of_head)}
    given = {name: tensor for name, tensor in mapped.tensors.items() if _in_part(name, part, first_of_head)}
    report = LoadReport(
        str(file.path), identity, part, modules={k: info.name for k, info in enumerate(model.row_infos)},
        modules_of_file=mapped.modules, notes=mapped.notes,
    )  # fmt: skip
    plan = Plan(report, pages)
    report.unexpected = [name for name in given if name not in own] + mapped.unplaced
    classes = _Classes(classes_old or identity.classes, classes_new, report, objects=identity.without_labels)
    of_classes = set(model.class_parameters())
    for name, target in own.items():
        tensor = given.get(name)
        if tensor is None:
            # BatchNorm's batch counter carries no weight, and frozen norms do not have it.
            if not name.endswith(".num_batches_tracked"):
                report.missing.append(name)
            continue
        if name.endswith(".num_batches_tracked") and tensor.is_floating_point():
            continue  # the counter, in a file converted to half precision as a whole
        check_tensor(str(file.path), name, tensor, dtype=target.dtype)
        pages.read(tensor)
        if name in of_classes:
            classes.place(plan, name, tensor, target)
        elif tensor.shape == target.shape:
            plan.whole.append((name, tensor))
            report.loaded.append(name)
        else:
            report.missing.append(name)
            report.shapes[name] = (list(tensor.shape), list(target.shape))
    report.total = len(report.loaded) + len(report.missing) + len(report.reshaped)
    if model.normalize == "none" and identity.is_backbone and (identity.kind not in OURS or identity.without_labels):
        report.notes.append(
            "these weights expect pixels normalised as ImageNet's; the model file does not say normalize: imagenet."
        )
    return plan


def _in_part(name: str, part: Part, first_of_head: int) -> bool:
    if part == "detector":
        return True
    row = row_of(name)
    in_backbone = row is not None and row < first_of_head
    return in_backbone == (part == "backbone")


class _Classes:
    """Transfers class rows from the file's class list to the model's.

    Args:
        old: the file's classes, if known.
        new: the model's classes; None for the file's own.
        report: report to update.
        objects: whether the file's one class is "any object".
    """

    def __init__(
        self, old: Sequence[str] | None, new: Sequence[str] | None, report: LoadReport, *, objects: bool = False
    ) -> None:
        self.objects = objects
        self.old, self.new, self.report = None if old is None else list(old), None if new is None else list(new), report
        self.told = False

    def place(self, plan: Plan, name: str, tensor: Tensor, target: Tensor) -> None:
        """Plan the copy of one tensor whose first dimension is the class."""
        count = len(self.old) if self.old is not None else len(tensor) if tensor.ndim else 0
        if "denoising_class_embed" in name and tensor.ndim and len(tensor) == count + 1:
            tensor = tensor[:count]  # the last row is the padding of official files; ours pads with zeros
        if tensor.ndim != target.ndim or tensor.shape[1:] != target.shape[1:]:
            self.report.missing.append(name)
            self.report.shapes[name] = (list(tensor.shape), list(target.shape))
        elif tensor.shape == target.shape and (self.new is None or self.old is None or self.old == self.new):
            if self.old is None and self.new is not None:
                self._tell("its classes have no names; they are assumed to be the model's, in order.")
            plan.whole.append((name, tensor))
            self.report.loaded.append(name)
        elif self.objects and len(tensor) == 1:
            plan.rows.append((name, tensor, list(range(len(target))), [0] * len(target)))
            self.report.reshaped.append(name)
            self._tell(f"it knows objects and no classes: each of the model's {len(target)} classes starts as any object.")
        else:
            self._by_name(plan, name, tensor, target)

    def _by_name(self, plan: Plan, name: str, tensor: Tensor, target: Tensor) -> None:
        old, new = self.old or [], self.new or []
        usable = len(old) == tensor.shape[0] and len(new) == target.shape[0]
        both = match_classes(old, new) if usable else []
        self.report.reshaped.append(name)
        if both:
            plan.rows.append((name, tensor, [pair[0] for pair in both], [pair[1] for pair in both]))
        if not usable:
            why = "does not name its classes" if self.old is None else f"names {len(old)} classes"
            self._tell(f"the file {why} and has {tensor.shape[0]}, the model {target.shape[0]}: no class is carried over.")
            return
        names = ", ".join(new[pair[0]] for pair in both[:5]) + (", …" if len(both) > 5 else "")
        carried = f"{len(both)} of the model's {target.shape[0]} classes are carried over by name"
        self._tell(f"{carried}{f' ({names})' if both else ''}; the others keep their initial values.")

    def _tell(self, note: str) -> None:
        if not self.told:
            self.report.notes.append(note)
        self.told = True
