"""Turn a run of ultralytics into one of ours: settings, data set, best weights and table of scores.

Nothing of that framework is imported, and nothing in its files is run: the checkpoint goes through the reader of weights.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from nextdetr.config import TrainConfig
from nextdetr.config_file import dump_config, read_config_file
from nextdetr.engine.foreign_arguments import ARGUMENTS
from nextdetr.engine.log import MetricsTable
from nextdetr.errors import ConfigError, DataError
from nextdetr.files import new_directory_if_used, with_own_name, write_text_atomic
from nextdetr.weights.checkpoint import open_model
from nextdetr.weights.convert import convert

__all__ = ["ImportedArgument", "ImportedRun", "import_run"]

Outcome = Literal["set", "left", "none"]
ARGS, RESULTS, DATA = "args.yaml", "results.csv", "data.yaml"
_WEIGHTS = ("weights/best.pt", "best.pt", "weights/last.pt", "last.pt")
#: Columns of their table that ours has: the scores are those of their own evaluation.
_COLUMNS = {
    "epoch": "epoch", "time": "seconds", "lr/pg0": "learning_rate",
    "metrics/mAP50-95(B)": "AP", "metrics/mAP50(B)": "AP50",
}  # fmt: skip
_LOSS = "train/"  # what the columns of the losses begin with


@dataclass(frozen=True, slots=True)
class ImportedArgument:
    """What became of an argument of the run.

    Attributes:
        name: there.
        value: there.
        outcome: ``set``: it became settings; ``left``: there is a counterpart, which keeps its own value; ``none``: there
            is no counterpart.
        settings: of ``TrainConfig``, what it became.
        ours: the command and option that does it here.
        note: what differs.
    """

    name: str
    value: Any
    outcome: Outcome
    settings: dict[str, Any] = field(default_factory=dict)
    ours: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class ImportedRun:
    """What ``import_run`` returns; the fields of the JSON result.

    Attributes:
        run: folder of the run that was read.
        output: folder of the run that was written.
        checkpoint: its best weights.
        config: its settings.
        model: a shipped name, or the model file that was written.
        data: the data set, as found; None where the run names none that is there.
        classes: of the checkpoint.
        epochs: rows of the table of scores.
        weights_licence: of the checkpoint.
        arguments: what became of each.
        notes: sentences for the user.
    """

    run: str
    output: str
    checkpoint: str
    config: str
    model: str
    data: str | None
    classes: list[str]
    epochs: int
    weights_licence: str
    arguments: list[ImportedArgument]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON result of the command."""
        return {"command": "import-run", **asdict(self)}


def import_run(run: str | Path, output: str | Path | None = None) -> ImportedRun:
    """Turn a training run of ultralytics' RT-DETR into one of ours.

    Args:
        run: its folder, with ``args.yaml`` and ``weights/best.pt``.
        output: new folder (``…-2`` where there is one); by default beside it, with ``-nextdetr`` at the end of its name.

    Raises:
        ConfigError: there is no such run.
        DataError: its table of scores cannot be read.
        WeightsError: its checkpoint cannot be read, or is no RT-DETR that is known here.
    """
    run = Path(run)
    values = _arguments(run)
    weights = next((run / name for name in _WEIGHTS if (run / name).is_file()), None)
    if weights is None:
        raise ConfigError(f"{run}: there is no {_WEIGHTS[0]} in it; wait for the end of its first epoch.")
    table = _table(run / RESULTS)
    own = with_own_name(run)
    with new_directory_if_used(output if output is not None else own.with_name(f"{own.name}-nextdetr")) as target:
        return _written(run, values, weights, table, target)


def _written(run: Path, values: dict[str, Any], weights: Path, table: list[dict[str, float]], target: Path) -> ImportedRun:
    """Write the files of the run into the folder ``target``."""
    checkpoint, identity = convert(weights, "nextdetr", target / "best.safetensors")
    opened = open_model(checkpoint)
    notes = list(identity.notes)
    if weights.stem != "best":
        notes.append(f"{weights.name} was taken: there is no best.pt.")
    model = identity.model
    if model is None:
        model = str(target / "model.yaml")
        write_text_atomic(model, opened.model.text)
    data = _data(run, values.get("data"))
    if data is None:
        notes.append(f"its data set {values.get('data')} is not here: name it with --data.")
    arguments = [_translated(name, values) for name in values]
    settings = {key: value for argument in arguments for key, value in argument.settings.items()}
    settings |= {"model": model, "weights": str(checkpoint)} | ({} if data is None else {"data": str(data)})
    config = target / "config.yaml"
    write_text_atomic(config, dump_config(TrainConfig(**settings), given_only=True))
    _write_table(target / "metrics.csv", table)
    if table:
        notes.append("the scores of metrics.csv are those of ultralytics' own evaluation: nextdetr val gives ours.")
    return ImportedRun(
        str(run), str(target), str(checkpoint), str(config), model, None if data is None else str(data),
        opened.classes, len(table), identity.licence, arguments, notes,
    )  # fmt: skip


def _arguments(run: Path) -> dict[str, Any]:
    if not (run / ARGS).is_file():
        raise ConfigError(f"{run}: not the folder of an ultralytics training, as there is no {ARGS} in it.")
    values = read_config_file(run / ARGS)
    if values.get("task", "detect") != "detect":
        raise ConfigError(f"{run}: it trained the task {values['task']}, and NextDETR detects.")
    return values


def _translated(name: str, values: Mapping[str, Any]) -> ImportedArgument:
    value, known = values[name], ARGUMENTS.get(name)
    if known is None:
        return ImportedArgument(name, value, "none", note="Not an argument that is known here.")
    settings, note = {}, known.note
    for setting, given in (known.settings(values) if known.settings is not None else {}).items():
        try:
            TrainConfig(**{setting: given})
        except ValidationError:
            note = f"{given!r} is no value of --{setting.replace('_', '-')}."
        else:
            settings[setting] = given
    outcome: Outcome = "set" if settings or name in ("model", "data") else "left" if known.ours else "none"
    return ImportedArgument(name, value, outcome, settings, known.ours, note)


def _data(run: Path, named: Any) -> Path | None:
    """Return the data set's file or folder: where the run names it, or in the run's folder."""
    names = [str(named)] if isinstance(named, str) and named else []
    places = [Path(name) for name in names] + [run / Path(name).name for name in names] + [run / DATA]
    return next((place.resolve() for place in places if place.exists()), None)


def _table(path: Path) -> list[dict[str, float]]:
    """Return the rows of ``results.csv`` under our names: epochs from 1, the loss the sum of the parts."""
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [{str(name).strip(): value for name, value in row.items()} for row in csv.DictReader(file)]
        return [_row(row) for row in rows]
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise DataError(f"{path}: the table of scores cannot be read ({error}); delete it to leave it out.") from error


def _row(row: Mapping[str, Any]) -> dict[str, float]:
    found = {ours: float(row[theirs]) for theirs, ours in _COLUMNS.items() if row.get(theirs) not in (None, "")}
    parts = [float(value) for name, value in row.items() if name.startswith(_LOSS) and value not in (None, "")]
    return found | {"epoch": int(found["epoch"])} | ({"loss": sum(parts)} if parts else {})


def _write_table(path: Path, rows: list[dict[str, float]]) -> None:
    table = MetricsTable(path, ())
    for row in rows:
        table.add(row)
