"""A run in MLflow, with its own client: a server, a database or whatever ``MLFLOW_TRACKING_URI`` names."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from nextdetr.engine.loggers.tools import Logged, Outcome, Place, Status, Tool
from nextdetr.errors import ConfigError
from nextdetr.extras import is_installed

__all__ = ["MLflow", "metric_names"]

EXPERIMENT = "nextdetr"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
MOST = 1000  # metrics per request
LONGEST = 240  # characters in a name; MLflow's limit is 250
STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
# Fail at once if the server is unreachable, where MLflow retries for minutes; the user's own settings win.
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
# Without this, MLflow prints the URL of a run on standard output, which is for the result.
SILENT = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}


class MLflow(Tool):
    """A run in MLflow. It has its own client, so that an active run of the user's script is not disturbed."""

    name = "mlflow"

    def __init__(self) -> None:
        import mlflow

        self._active = mlflow.active_run()  # of this thread, the script's
        self._client: Any = None
        self._run = ""

    def start(self, run: Logged, earlier: Place) -> Place:
        """Create a run in the experiment of MLflow's environment variables, or continue the earlier one.

        Raises:
            ConfigError: the run belongs in a database, which mlflow-skinny cannot write.
        """
        import mlflow

        uri = mlflow.get_tracking_uri()
        if earlier.get("tracking_uri") and not mlflow.is_tracking_uri_set():
            uri = earlier["tracking_uri"]  # MLflow's default is relative to the working directory, which may have changed
        if urlsplit(uri).scheme.partition("+")[0] in DATABASES and not is_installed("sqlalchemy"):
            raise ConfigError(
                "mlflow-skinny writes no database: set MLFLOW_TRACKING_URI to a server, or pip install mlflow"
            )
        with _environment(IMPATIENT | SILENT), _quiet():
            self._client = mlflow.MlflowClient(uri)
            found = self._earlier(earlier.get("run_id"))
            if found is None:
                experiment = self._experiment()
                tags = {} if self._active is None else {"mlflow.parentRunId": self._active.info.run_id}
                found = self._client.create_run(
                    experiment, run_name=run.name, tags={"mlflow.source.name": f"nextdetr {run.command}", **tags}
                )
            else:
                self._client.update_run(found.info.run_id, status="RUNNING")
            self._run = found.info.run_id
            self._write_settings(run.settings, found.data.params)
        return {
            "run_id": self._run, "tracking_uri": _without_password(uri), "experiment_id": found.info.experiment_id,
            "look": _look(_without_password(uri), found.info.experiment_id, self._run),
        }  # fmt: skip

    def _earlier(self, run_id: str | None) -> Any:
        """The run so far; None if there is none, or it was deleted."""
        from mlflow.exceptions import MlflowException

        if not run_id:
            return None
        try:
            found = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return None if found.info.lifecycle_stage == "deleted" else found

    def _experiment(self) -> str:
        given = os.environ.get("MLFLOW_EXPERIMENT_ID")
        if given:
            return given
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        return str(self._client.create_experiment(name) if found is None else found.experiment_id)

    def _write_settings(self, settings: Mapping[str, Any], there: Mapping[str, str]) -> None:
        """Write settings as parameters; a setting changed on resume, which MLflow rejects, becomes a tag."""
        from mlflow.entities import Param, RunTag

        texts = {name: str(value) for name, value in settings.items()}
        new = [Param(name, text) for name, text in texts.items() if name not in there]
        other = [RunTag(f"now.{name}", text) for name, text in texts.items() if there.get(name, text) != text]
        for first in range(0, len(new), 100):
            self._client.log_batch(self._run, params=new[first : first + 100])
        self._client.log_batch(self._run, tags=other)

    def add(self, values: Mapping[str, float], step: int, when: float) -> None:
        """Write the metrics of one step."""
        from mlflow.entities import Metric

        metrics = [Metric(name, value, int(when * 1000), step) for name, value in values.items()]
        for first in range(0, len(metrics), MOST):
            self._client.log_batch(self._run, metrics=metrics[first : first + MOST])

    def finish(self, outcome: Outcome, step: int, when: float) -> None:
        """Write AP by class, as metrics and as a file with the original class names, and the run's files."""
        known = {name: value for name, value in outcome.per_class.items() if value is not None}
        names = metric_names(known)
        best = {f"best/{name}": value for name, value in outcome.metrics.items() if value is not None}
        self.add({**best, **{f"AP_class/{names[name]}": value for name, value in known.items()}}, step, when)
        if outcome.per_class:
            self._client.log_dict(self._run, dict(outcome.per_class), "per_class.json")
        for path in outcome.existing():
            self._client.log_artifact(self._run, str(path), "weights" if path == outcome.weights else None)

    def close(self, status: Status) -> None:
        """Record how the session ended."""
        with _environment(SILENT):
            self._client.set_terminated(self._run, STATUS[status])


def metric_names(names: Iterable[str]) -> dict[str, str]:
    """Return an MLflow name for each class (letters, digits, ``_``, ``-``, ``.`` and spaces), all different."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^\w. -]", "_", name)[:LONGEST] or "_"
        plain = plain if plain.strip(".") else plain.replace(".", "_")  # . and .. are rejected as paths
        unique, number = plain, 2
        while unique in found.values():
            unique, number = f"{plain[: LONGEST - 6]}_{number}", number + 1
        found[name] = unique
    return found


def _without_password(uri: str) -> str:
    """The URL without user and password, which must not end up in a run's folder."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def _look(uri: str, experiment: str, run: str) -> str:
    if uri.startswith(("http://", "https://")):
        return f"{uri.rstrip('/')}/#/experiments/{experiment}/runs/{run}"
    return f"run {run} in {uri}" if uri.startswith("databricks") else f"mlflow ui --backend-store-uri {uri}"


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set unset variables temporarily; MLflow offers no other way."""
    mine = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in mine})
    try:
        yield
    finally:
        for name in mine:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence MLflow's messages about the tables of a new database."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
