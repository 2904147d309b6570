"""The contract of a resumed run: which settings may change, and what must stay the same.

A run continues exactly where it stopped if images, boxes and images per step are the same. Classes must be the same, since
the head has a row for each; their order in the files does not matter, because the data are read in the run's order. Other
differences are reported, and the run continues with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from nextdetr.config import CommandConfig, build_config
from nextdetr.config_file import dump_config, merge_settings, read_config_file
from nextdetr.data.records import DetectionData, ImageRecord
from nextdetr.data.seen import file_digests
from nextdetr.engine.state import from_file
from nextdetr.errors import ConfigError, DataError, WeightsError
from nextdetr.files import write_text_atomic

__all__ = [
    "Contract",
    "check_classes",
    "check_teacher",
    "describe_images",
    "merge_resumed",
    "stored_contract",
    "tell_differences",
    "write_config",
]

C = TypeVar("C", bound=CommandConfig)

# Settings that may change on resume; all others come from the run's config.yaml.
RESUMABLE = {
    "resume", "epochs", "minutes", "devices", "accelerator", "device", "workers", "cache_gigabytes", "data", "images",
    "on_bad_data", "teacher", "detector", "head_epochs", "unlabelled", "latency_of", "log", "patience",
}  # fmt: skip
# Settings that may be a file or folder.
PATHS = (
    "data", "images", "unlabelled", "model", "weights", "backbone_weights", "teacher", "detector", "latency_of", "output",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Contract:
    """Conditions that must stay the same.

    Attributes:
        classes: names, in the order of the model's indices; empty if there are none.
        images: by split, a digest of the images in their order (see ``describe_images``).
        boxes: by split, a digest of the boxes and their classes.
        together: images per optimizer step, over all processes.
        teacher: digest of the teacher's file; empty without a teacher.
    """

    classes: list[str]
    images: dict[str, str] = field(default_factory=dict)
    boxes: dict[str, str] = field(default_factory=dict)
    together: int = 0
    teacher: str = ""

    @classmethod
    def of(cls, *splits: DetectionData, together: int, teacher: str = "") -> Contract:
        """Describe the splits of a run; all have the same classes."""
        return cls(
            list(splits[0].classes),
            {data.split: describe_images(data.records) for data in splits},
            {data.split: _describe_boxes(data) for data in splits},
            together,
            teacher,
        )

    def to_state(self) -> dict[str, Any]:
        """Return plain values for ``last.ckpt``."""
        return asdict(self)

    def differences(self, now: Contract) -> list[str]:
        """Return a sentence for each difference from the run so far."""
        found = []
        for split, digest in now.images.items():
            if digest != self.images.get(split, digest):
                found.append(f"the images of {split}")
            elif now.boxes[split] != self.boxes.get(split, now.boxes[split]):
                found.append(f"the boxes of {split}")
        lines = [" and ".join(found).replace("t", "T", 1) + " are not those of the run so far"] if found else []
        if now.together != self.together:
            lines.append(f"A step now has {now.together} images, not {self.together}")
        return [f"{line}: it continues, but not exactly as it would have." for line in lines]


def stored_contract(state: Mapping[str, Any], path: Path) -> Contract:
    """Return the contract stored in the parts of a ``last.ckpt``.

    Raises:
        WeightsError: it is missing.
    """
    try:
        return from_file(Contract, state.get("contract"))
    except ValueError as error:
        raise WeightsError(f"{path}: not a whole training state ({error}).") from error


def tell_differences(now: Contract, state: Mapping[str, Any], path: Path, tell: Callable[[str], None]) -> None:
    """Tell the user how a resumed run differs from the run so far.

    Args:
        now: its contract.
        state: parts of ``last.ckpt``; empty for a new run, which differs from nothing.
        path: the file, for messages.
        tell: prints a line for the user.

    Raises:
        WeightsError: the state has no contract.
    """
    for line in stored_contract(state, path).differences(now) if state else ():
        tell(line)


def merge_resumed(config: C, folder: Path) -> C:
    """Return the settings of the run in ``folder``, updated with those that may change.

    Raises:
        ConfigError: a setting would change the run, or the folder has no ``config.yaml``.
    """
    given = config.model_fields_set
    other = sorted(given - RESUMABLE)
    if other:
        names = ", ".join("--" + name.replace("_", "-") for name in other)
        raise ConfigError(
            f"--resume continues with the settings of the run; leave out {names}, or start a new run without --resume."
        )
    stored = folder / "config.yaml"
    if not stored.is_file():
        raise ConfigError(f"{folder}: not the folder of a run (it has no config.yaml).")
    values, anew = read_config_file(stored), {name: getattr(config, name) for name in given}
    for name in ("model", "data", "images"):
        if name in type(config).model_fields and not (values.get(name) or anew.get(name)):
            raise ConfigError(f"{stored}: the setting {name} is missing, which a run always writes; restore the file.")
    return build_config(type(config), merge_settings(type(config), values, anew), source=str(stored))


def write_config(config: CommandConfig, directory: Path) -> None:
    """Write a run's ``config.yaml``, with absolute paths, so that it can be resumed from any folder."""
    whole = {name: _whole(getattr(config, name)) for name in PATHS if name in type(config).model_fields}
    if "model" in whole and not Path(whole["model"]).is_file():  # a shipped name, even if a folder has the same one
        del whole["model"]
    stored = config.model_copy(update={**whole, "output": directory.absolute(), "resume": None})
    write_text_atomic(directory / "config.yaml", dump_config(stored))


def _whole(value: Any) -> Any:
    """Make ``value`` absolute if it is a path; names of shipped models are kept."""
    if isinstance(value, tuple):
        return tuple(_whole(item) for item in value)
    if value is None or isinstance(value, bool) or not Path(value).expanduser().exists():
        return value
    path = Path(value).expanduser()
    return type(value)(path.resolve() if ".." in path.parts else path.absolute())


def check_classes(
    data: DetectionData, classes: Sequence[str], source: str, run: Path, reread: Callable[[], DetectionData]
) -> DetectionData:
    """Return a data set with its classes in the run's order.

    Args:
        data: read with its own classes.
        source: path as given by the user.
        run: folder of the run.
        classes: the run's, in the order of the model's indices.
        reread: reads the data again with the run's classes; called only if their order differs.

    Raises:
        DataError: a class is missing, new or renamed.
    """
    gone = [name for name in classes if name not in data.classes]
    new = [name for name in data.classes if name not in classes]
    if gone or new:
        parts = [
            f"{word} {'class' if len(names) == 1 else 'classes'} {', '.join(names)}"
            for word, names in (("without the", gone), ("with the new", new))
            if names
        ]
        raise DataError(
            f"{source}: its classes are no longer those of the run {run} ({'; '.join(parts)}), and a run keeps its "
            f"classes; fix the data, or start a new run from its weights with --model {run / 'best.safetensors'}."
        )
    return data if list(data.classes) == list(classes) else reread()


def check_teacher(source: Path | None, digest: str, earlier: Contract, run: Path) -> None:
    """Check that a resumed run has the same teacher.

    Args:
        source: the teacher as given by the user, now or at the start.
        digest: digest of its content; empty without a teacher.
        earlier: contract of the run so far.
        run: folder of the run.

    Raises:
        ConfigError: the teacher differs, or there was none.
    """
    if digest == earlier.teacher:
        return
    anew = f"start a new run from its weights with --model {run / 'best.safetensors'}"
    if not earlier.teacher:
        raise ConfigError(f"{source}: the run {run} has no teacher; leave --teacher out, or {anew} and --teacher {source}.")
    what = "without a teacher" if source is None else f"{source}: not the teacher of the run: its content differs"
    raise ConfigError(
        f"{what}; the run {run} continues with the one that it started with: give that with --teacher, or {anew}."
    )


def describe_images(records: Sequence[ImageRecord]) -> str:
    """Return a digest of image files in order, by content; see ``file_digests``."""
    return hashlib.blake2b(b"".join(file_digests(records)), digest_size=16).hexdigest()


def _describe_boxes(data: DetectionData) -> str:
    digest = hashlib.blake2b("\0".join(data.classes).encode("utf-8", "surrogateescape"), digest_size=16)
    for record in data.records:
        digest.update(b"%d:" % len(record.labels))
        for values in (record.boxes, record.labels, record.crowd):
            digest.update(values.tobytes())
    return digest.hexdigest()
