"""A run in Weights & Biases, with its own package: online if there is a key, else offline; it never prompts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nextdetr.engine.loggers.tools import Logged, Outcome, Place, Status, Tool

__all__ = ["WandB"]

PROJECT = "nextdetr"
INIT_SECONDS = 30.0  # until an unresponsive server counts as unreachable
FINISH_SECONDS = 300.0  # for the upload at the end; what is left stays in the run's folder, for wandb sync
EXIT_CODE = {"finished": 0, "interrupted": 255, "failed": 1}


class WandB(Tool):
    """A run in Weights & Biases.

    Args:
        tell: prints a line for the user.
    """

    name = "wandb"

    def __init__(self, tell: Callable[[str], None]) -> None:
        import wandb  # noqa: F401 - said at once where it is broken

        self._tell = tell
        self._run: Any = None

    def start(self, run: Logged, earlier: Place) -> Place:
        """Start, or continue the earlier run; offline without a key or a server."""
        import wandb

        mode, why = _mode(wandb)
        options = {
            "project": earlier.get("project") or os.environ.get("WANDB_PROJECT") or PROJECT,
            "entity": earlier.get("entity"), "id": earlier.get("run_id"), "name": run.name, "job_type": run.command,
            "config": dict(run.settings), "resume": "allow" if earlier.get("run_id") else None,
            "dir": None if os.environ.get("WANDB_DIR") else str(run.directory), "allow_val_change": True,
            "reinit": "create_new",  # does not disturb a run of the user's script
            "settings": _settings(wandb),
        }  # fmt: skip
        begin: Callable[..., Any] = wandb.init  # its types differ between releases
        try:
            self._run = begin(mode=mode, **options)
        except Exception as error:
            if mode != "online":
                raise
            mode, why = "offline", " ".join(str(error).split()).rstrip(".")
            self._run = begin(mode=mode, **options)
        if mode == "disabled":
            self._tell("Weights & Biases is disabled (WANDB_MODE): nothing is logged there.")
            return {}
        place = {"run_id": self._run.id, "project": options["project"], "mode": mode, "look": self._look(mode)}
        if mode == "offline":
            self._tell(f"Weights & Biases works offline{why and f' ({why})'}.")
        elif self._run.entity:
            place["entity"] = self._run.entity
        return place

    def _look(self, mode: str) -> str:
        if mode != "offline":
            return str(self._run.url or "")
        folder = Path(self._run.dir).absolute().parent.parent
        return f"wandb sync {folder}/offline-run-*-{self._run.id}"

    def add(self, values: Mapping[str, float], step: int, when: float) -> None:
        """Log the numbers of one step; numbers already logged for a step are kept."""
        self._run.log(dict(values), step=step)

    def finish(self, outcome: Outcome, step: int, when: float) -> None:
        """Write scores and AP by class to the summary, the report if it can be shown, and the files as artifacts."""
        import wandb

        best = {f"best/{name}": value for name, value in outcome.metrics.items()}
        self._run.summary.update(best | {f"AP_class/{name}": value for name, value in outcome.per_class.items()})
        report = next((path for path in outcome.existing() if path.suffix == ".html"), None)
        if report is not None:
            self._run.log({"report": wandb.Html(str(report), inject=False)}, step=step)
        others = [path for path in outcome.existing() if path != outcome.weights]
        for kind, paths in (("model", [outcome.weights] if outcome.weights else []), ("files", others)):
            artefact = wandb.Artifact(f"run-{self._run.id}-{kind}", type=kind)
            for path in paths:
                artefact.add_file(str(path))
            if paths:
                self._run.log_artifact(artefact)

    def close(self, status: Status) -> None:
        """End the session, which sends what is left."""
        self._run.finish(exit_code=EXIT_CODE[status])


def _settings(wandb: Any) -> Any:
    """Print nothing, do not capture the terminal, and limit the waiting."""
    values: dict[str, Any] = {"silent": True, "console": "off", "init_timeout": INIT_SECONDS}
    if "finish_timeout" in wandb.Settings.model_fields:  # in newer versions
        values["finish_timeout"] = FINISH_SECONDS
    return wandb.Settings(**values)


def _mode(wandb: Any) -> tuple[str, str]:
    """Return ``online``, ``offline`` or ``disabled``, and why it is offline if the user did not choose so."""
    mode = os.environ.get("WANDB_MODE") or str(wandb.setup(settings=wandb.Settings(silent=True)).settings.mode)
    if mode in ("offline", "disabled", "dryrun"):
        return ("disabled" if mode == "disabled" else "offline"), ""
    try:
        known = _has_key(wandb)
    except Exception as error:  # noqa: BLE001 - a key that W&B finds wrong is as good as none
        return "offline", " ".join(str(error).split()).rstrip(".")
    return ("online", "") if known else ("offline", "no key: wandb login, or WANDB_API_KEY")


def _has_key(wandb: Any) -> bool:
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # older versions lack the argument, but tell whether they would prompt
        return bool(wandb.api.api_key)
