"""Setup of training before its first step: settings, run folder, data, model, initial weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric

from nextdetr.config import TrainConfig
from nextdetr.config_file import read_config_file
from nextdetr.data.identity import describe_identity
from nextdetr.data.joined import joined_yaml, name_of, sets_of
from nextdetr.data.records import DetectionData
from nextdetr.data.seen import trained_on
from nextdetr.data.unlabelled_set import find_more
from nextdetr.detector_files import detector_name
from nextdetr.engine.fine_tune import (
    FineTuning,
    backbone_source,
    has_own_backbone,
    plan_fine_tuning,
    seen_in_val,
    start_weights,
    trained_before,
    with_model_of_weights,
)
from nextdetr.engine.latency import affordable_size, check_contract, times_of
from nextdetr.engine.model_facts import gflop_of, stride_of, with_image_size
from nextdetr.engine.recipe import backbone_factor, choose_recipe
from nextdetr.engine.resume import Contract, check_teacher, merge_resumed, stored_contract, write_config
from nextdetr.engine.run_folder import open_directory
from nextdetr.engine.semi_recipe import with_unlabelled
from nextdetr.engine.splits import Splits, load_splits, write_set_aside
from nextdetr.engine.start import choose_start
from nextdetr.engine.state import Cursor, read_state
from nextdetr.engine.statistics import Machine, describe_data, describe_machine
from nextdetr.engine.teacher import Teacher, open_teacher
from nextdetr.errors import ConfigError
from nextdetr.files import is_local, write_text_atomic
from nextdetr.identity import Identity
from nextdetr.inference.opened import stored_bits
from nextdetr.inference.times import Meter, Times
from nextdetr.models.detection import DetectionModel
from nextdetr.models.modelfile import available_models
from nextdetr.models.sizes import check_sides
from nextdetr.weights.checkpoint import OpenedModel, read_detector_metadata
from nextdetr.weights.licences import Origin
from nextdetr.weights.load import open_weights
from nextdetr.weights.remote import is_name
from nextdetr.weights.start import resolve_model, start_model

__all__ = [
    "Run",
    "default_output",
    "prepare",
    "prepare_model",
    "resolve_config",
    "run_directory",
]

T = TypeVar("T")


@dataclass(slots=True)
class Run:
    """Everything that training works on.

    Attributes:
        config: the settings, all resolved.
        directory: the run's folder.
        train_data, val_data: the two splits; ``val_data`` has the same class list.
        model: the detector, with its initial weights.
        cursor: starting position.
        state: state to resume from, empty for a new run.
        contract: conditions that a resumed run must meet.
        started_from: origin of the initial weights.
        identity: the data set's own ids of classes and images.
        times: timings of the model's settings, with ``latency``; first process only.
        teacher: the teacher, if any.
        unlabelled: unlabelled images to learn from, if any.
        trained_before: see :func:`trained_before`, with the images of the teacher if its file lists them; first process
            only.
    """

    config: TrainConfig
    directory: Path
    train_data: DetectionData
    val_data: DetectionData
    model: DetectionModel
    cursor: Cursor
    state: dict[str, Any]
    contract: Contract
    started_from: Origin
    identity: Identity = field(default_factory=Identity)
    times: Times | None = None
    teacher: Teacher | None = None
    unlabelled: DetectionData | None = None
    trained_before: frozenset[bytes] | None = None


def resolve_config(config: TrainConfig) -> TrainConfig:
    """Merge the settings of a resumed run with those given now; in a new one, name the checkpoint of a folder.

    Raises:
        ConfigError: ``resume`` with a setting that would change the run, no data set, no such run, or the file of its
            ``latency_of`` is gone.
        WeightsError: the model is a file or folder with weights that is no model.
    """
    if config.resume is None:
        if config.data is None:
            raise ConfigError("training needs a data set: give --data with a folder or a YAML.")
        config = with_model_of_weights(config)
        model = str(resolve_model(config.model))
        if model != config.model:  # a folder: the recipe is that of the checkpoint in it
            config = config.model_copy(update={"model": model})
        if config.image_size is not None:
            check_sides(config.image_size, None, stride_of(config.model))
        return config if config.bits is not None else config.model_copy(update={"bits": _bits(config)})
    merged = merge_resumed(config, config.resume)
    if merged.latency_of is not None and merged.latency is None:
        raise ConfigError(f"--latency-of {merged.latency_of}: the run {config.resume} has no --latency; leave it out.")
    if merged.latency_of is not None and not merged.latency_of.is_file():
        raise ConfigError(
            f"{merged.latency_of}: the times of the run's --latency-of are no longer there; if the file has moved, name it "
            "with --latency-of."
        )
    return merged


def _bits(config: TrainConfig) -> int:
    """Return the bit depth of the images that the run's weights were trained on; 16 without any, or if they do not say."""
    for source in (start_weights(config), backbone_source(config)):
        if source is not None and is_local(source):
            return stored_bits(open_weights(source)[0].metadata)
    return 16


def default_output(config: TrainConfig) -> Path:
    """Name a run after its model and data; a checkpoint that has its file's usual name after the run that wrote it."""
    stems = [(data, Path(data).stem) for data in config.data or ()]
    names = [stem if stem.strip(".") else name_of(data) for data, stem in stems]  # "." has no name
    more = [f"{len(names) - 3} more"] if len(names) > 3 else []
    return Path("runs") / f"{detector_name(config.model)}-{'+'.join(names[:3] + more)}"


def run_directory(config: TrainConfig, held: ExitStack) -> Path:
    """Create the run's folder, or return the resumed one's; see :func:`nextdetr.engine.run_folder.open_directory`."""
    return open_directory(config.output, default_output(config), config.resume, held)


def prepare_model(
    config: TrainConfig, classes: list[str], tell: Callable[[str], None]
) -> tuple[DetectionModel, TrainConfig, Origin]:
    """Build the detector for the data's classes and load its initial weights.

    Returns:
        The model, the settings with image size and backbone rate resolved, and the origin of the initial weights.
    """
    started = start_model(
        config.model, classes=classes, weights=config.weights, backbone_weights=config.backbone_weights,
        allow_partial=config.allow_partial, drop_path=config.drop_path,
    )  # fmt: skip
    for report in started.reports:
        tell(report.text())
    factor = config.backbone_rate_factor
    if factor is None:
        factor = backbone_factor(all(report.identity.without_labels for report in started.reports))
    size = config.image_size or started.image_size
    started.model.check_size(size)
    filled = {"image_size": size, "backbone_rate_factor": factor}
    return started.model, config.model_copy(update=filled), started.origin


def prepare_teacher(config: TrainConfig, earlier: Contract | None) -> Teacher | None:
    """Open the teacher; in a resumed run it must be the same one.

    Raises:
        NextDETRError: see ``open_teacher``; or it is missing or a different one.
    """
    gone = config.teacher is not None and not (config.teacher.expanduser().exists() or is_name(config.teacher))
    if gone and config.resume is not None:
        raise ConfigError(
            f"{config.teacher}: the teacher of the run no longer exists; if it has moved, name it with --teacher."
        )
    teacher = None if config.teacher is None else open_teacher(config.teacher)
    if earlier is not None and config.resume is not None:
        check_teacher(config.teacher, "" if teacher is None else teacher.digest, earlier, config.resume)
    return teacher


def prepare_unlabelled(
    config: TrainConfig, splits: Splits, earlier: Contract | None, tell: Callable[[str], None]
) -> DetectionData | None:
    """List the unlabelled images, and report which are left out; None without any.

    Raises:
        DataError: a folder cannot be used.
        ConfigError: a run to resume, with the contract ``earlier``, has none.
    """
    if not config.unlabelled:
        return None
    if earlier is not None and config.resume is not None and "unlabelled" not in earlier.images:
        if read_config_file(config.resume / "config.yaml").get("unlabelled"):
            tell("The run learns from the labels alone, as no unlabelled image was left when it started.")
            return None
        raise ConfigError(
            f"the run {config.resume} has no unlabelled images; leave --unlabelled out, or start a new run from its "
            f"weights with --model {config.resume / 'best.safetensors'}."
        )
    assert config.data is not None
    found = find_more(config.unlabelled, config.data, splits.train, splits.val)
    for line in found.lines:
        tell(line)
    if not found.data.records:
        tell("No unlabelled image is left: the run learns from the labels alone.")
        return None
    return found.data


def fill_in(
    config: TrainConfig,
    data: DetectionData,
    machine: Machine,
    tell: Callable[[str], None],
    *,
    within: int | None = None,
    teacher: Teacher | None = None,
    set_aside: float | None = None,
    unlabelled: DetectionData | None = None,
) -> TrainConfig:
    """Choose what the user left open, and report the choices; ``within`` is the largest size that meets the latency."""
    config = with_model_of_weights(config, fetch=True)
    source = backbone_source(config)
    backbone = None if source is None else open_weights(source)[1]
    tuning = _tuning(config, data.classes)
    recipe = choose_recipe(
        config, describe_data(data), machine, models=available_models(),
        backbone=None if backbone is None else backbone.size, other_backbone=backbone is not None,
        without_labels=backbone is not None and backbone.without_labels, stride=stride_of(config.model),
        within=within,
        teacher_gflop=None if teacher is None or not config.teaches else teacher.gflop(), set_aside=set_aside,
        tuning=tuning, gflop=gflop_of(config, machine, tuning),
    )  # fmt: skip
    more = 0 if unlabelled is None else len(unlabelled.records)
    recipe = with_unlabelled(recipe, config, len(data.records), more, tuning)
    if recipe.text:
        tell(recipe.text)
    return recipe.config


def _tuning(config: TrainConfig, classes: Sequence[str]) -> FineTuning | None:
    """Decide how to start from the run's detector weights, or its model's own; None without any."""
    weights = start_weights(config)
    if weights is None:
        return None
    file, identity = open_weights(weights)
    if identity.is_backbone:
        return None
    tuning = plan_fine_tuning(classes, identity, config.model, own_backbone=has_own_backbone(config, identity))
    return with_image_size(tuning, file, identity, config)


def resumed_model(config: TrainConfig, classes: list[str], file: Path) -> tuple[DetectionModel, TrainConfig, Origin]:
    """Build the detector of a resumed run from the files of the run.

    The files that it started from need not exist any more; the exact weights come from the state of the run.

    Returns:
        As ``prepare_model``.
    """
    started = start_model(file, classes=classes, drop_path=config.drop_path)
    factor = config.backbone_rate_factor or 1.0  # a run writes it to its config.yaml
    filled = {"image_size": config.image_size or started.image_size, "backbone_rate_factor": factor}
    return started.model, config.model_copy(update=filled), Origin.of(read_detector_metadata(file))


def prepare_speed(
    config: TrainConfig,
    data: DetectionData,
    machine: Machine,
    meter: Meter | None,
    tell: Callable[[str], None],
) -> tuple[Times, int | None]:
    """Measure the untrained model of a run with ``latency``.

    Returns:
        The timings, and the largest image size that meets the latency, if the user gave none.

    Raises:
        ConfigError: no setting of the run meets it.
    """
    assert config.latency is not None
    first = fill_in(config, data, machine, lambda text: None)
    started = start_model(first.model, classes=data.classes)
    opened = OpenedModel(started.model.eval(), list(data.classes), started.image_size, first.model, {})
    times = times_of(config, opened.model, meter)
    within = None
    if config.latency_of is None:
        tell(f"Measuring {first.model} untrained for --latency {config.latency:g}")
    if config.image_size is None and first.image_size is not None:  # else it is the weights' own
        within = affordable_size(times, opened, config.latency, first.image_size)
        first = fill_in(config, data, machine, lambda text: None, within=within)
    check_contract(times, opened, first.model_copy(update={"image_size": first.image_size or started.image_size}))
    return times, within


def write_beginnings(config: TrainConfig, directory: Path, splits: Splits) -> None:
    """Write what a run's folder says of its settings and data; also for a resumed run, whose length may have changed.

    Raises:
        ConfigError: the folder has a data.yaml or val.txt that no run has written, and this one would replace.
    """
    assert config.data is not None
    joined = directory / "data.yaml"  # of a run, or a data set's own in a folder that has both
    is_of_run = joined.is_file() and sets_of(joined) != [joined]
    aside = directory / "val.txt"
    if splits.set_aside is not None and aside.exists() and not (directory / "config.yaml").exists():
        raise ConfigError(f"{aside}: a run that sets images aside as val would replace this file; choose another --output.")
    if len(sets_of(config.data)) > 1:
        if joined.exists() and not is_of_run:
            raise ConfigError(f"{joined}: a run on several data sets would replace this file; choose another --output.")
        write_text_atomic(joined, joined_yaml(config.data))
    elif is_of_run and config.resume is not None:  # on other data now
        joined.unlink()
    write_config(config, directory)
    if splits.set_aside is not None:
        write_set_aside(splits.val, config.data, directory)


def prepare(
    config: TrainConfig, fabric: Fabric, tell: Callable[[str], None], held: ExitStack, meter: Meter | None = None
) -> Run:
    """Do all of the setup, with likely user errors first; ``held`` keeps other processes out of the run."""

    def shared(value: T) -> T:
        """Return the first process's value: free memory or existing folders may differ between processes."""
        return fabric.broadcast(value)

    def folder() -> Path:
        return Path(shared(str(run_directory(config, held)) if fabric.global_rank == 0 else ""))

    directory = None if config.output is None and config.resume is None else folder()
    cursor, state = (Cursor(), {}) if config.resume is None else read_state(config.resume / "last.ckpt")
    earlier = stored_contract(state, directory / "last.ckpt") if directory is not None and state else None
    teacher = prepare_teacher(config, earlier)
    splits = load_splits(config, tell, None if earlier is None else earlier.classes)
    train_data, val_data = splits.train, splits.val
    if teacher is not None:
        teacher.for_classes(train_data.classes)
    unlabelled = prepare_unlabelled(config, splits, earlier, tell)
    times: Times | None = None
    if config.resume is None:
        machine, within = describe_machine(fabric.device, fabric.world_size), None
        open_config = config
        config = choose_start(config, lambda: fill_in(open_config, train_data, machine, lambda text: None).model, tell)
        if config.latency is not None and fabric.global_rank == 0:
            times, within = prepare_speed(config, train_data, machine, meter, tell)
        config = shared(
            fill_in(
                config, train_data, machine, tell, within=within, teacher=teacher, set_aside=splits.set_aside,
                unlabelled=unlabelled,
            )
        )  # fmt: skip
    directory = directory or folder()  # its default name contains the model's
    torch.manual_seed(config.seed)
    written = directory / "last.safetensors"
    if config.resume is not None and written.is_file():
        model, config, started_from = resumed_model(config, train_data.classes, written)
    else:
        model, config, started_from = prepare_model(config, train_data.classes, tell)
    together = config.batch_size * config.accumulate * fabric.world_size
    contract = Contract(train_data.classes)
    before: frozenset[bytes] | None = None
    if fabric.global_rank == 0:  # the others need only the classes
        before = trained_before(config, written)
        others = None if teacher is None else trained_on(teacher.opened.metadata)
        known = {"the detector that this run starts from": before, "the teacher": others} if config.resume is None else {}
        for line in seen_in_val(val_data.records, known):
            tell(line)
        before = None if before is None else before | (others or frozenset())
        write_beginnings(config, directory, splits)
        digest = "" if teacher is None else teacher.digest
        more = () if unlabelled is None else (unlabelled,)
        contract = Contract.of(train_data, val_data, *more, together=together, teacher=digest)
        for line in earlier.differences(contract) if earlier is not None else ():
            tell(line)
    assert config.data is not None
    identity = describe_identity(config.data, [train_data, val_data], tell)
    if config.latency is not None and times is None:
        times = times_of(config, model, meter)
    return Run(
        config, directory, train_data, val_data, model, cursor, state, contract, started_from, identity, times, teacher,
        unlabelled, before,
    )  # fmt: skip
