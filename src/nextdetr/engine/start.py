"""Published weights as a start for training: suggested by default, fetched only on request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nextdetr.config import TrainConfig
from nextdetr.errors import ConfigError
from nextdetr.files import is_local
from nextdetr.models.graph import build_skeleton
from nextdetr.models.modelfile import available_models, load_model_file, shipped_name
from nextdetr.weights.published import Published, close_names, detector_up_to, find_published, start_for

__all__ = ["choose_start"]

_CONVNEXT = "convnextv2_"
#: Parameters of a detector that may replace any model that the recipe chose: those of the published nano sizes.
_SMALL = 4_000_000


def choose_start(config: TrainConfig, model: Callable[[], str], tell: Callable[[str], None]) -> TrainConfig:
    """Apply ``--start``, or suggest it; nothing is downloaded here.

    Args:
        config: the settings.
        model: returns the model that the run would train, if the user leaves it open.
        tell: prints a line for the user.

    Returns:
        The settings with ``weights`` or ``backbone_weights``, and the model of a detector; ``start`` is cleared.

    Raises:
        ConfigError: no published weights have this name or fit this model.
    """
    if config.start is None:
        _advise(config, model, tell)
        entry = None if config.weights is None or is_local(config.weights) else find_published(config.weights.as_posix())
        return config if entry is None or entry.part == "backbone" else _of_its_model(config, entry, {}, tell)
    if config.start == "none":
        return config.model_copy(update={"start": None})
    entry = _best(config, model()) if config.start == "auto" else find_published(config.start)
    if entry is None and config.start == "auto":
        raise ConfigError(
            f"--start auto: no published weights are known for {model()}; leave it out, or name another --model."
        )
    if entry is None:
        close = close_names(config.start)
        hint = f"did you mean {' or '.join(close)}?" if close else "nextdetr weights list shows them."
        raise ConfigError(f"--start {config.start}: no published weights have this name; {hint}")
    tell(f"Starting from {_described(entry)}")
    named = Path(entry.name if config.start == "auto" else config.start)  # with the user's revision
    weights = {"weights" if entry.part == "detector" else "backbone_weights": named, "start": None}
    return _of_its_model(config, entry, weights, tell) if entry.part == "detector" else config.model_copy(update=weights)


def _of_its_model(
    config: TrainConfig, entry: Published, values: dict[str, Path | None], tell: Callable[[str], None]
) -> TrainConfig:
    """Return the settings with the model of a detector's weights, if the user leaves it open."""
    if "model" in config.model_fields_set:
        return config.model_copy(update=values)
    tell(f"--model {entry.model}: the one of these weights")
    return config.model_copy(update={**values, "model": entry.model})


def _advise(config: TrainConfig, model: Callable[[], str], tell: Callable[[str], None]) -> None:
    """Suggest published weights for a run that would start from random ones."""
    if config.weights is not None or config.backbone_weights is not None:
        return
    name = model()
    entry = _best(config, name)
    if entry is not None:
        instead = "" if entry.part == "backbone" or entry.model == name else f", with --model {entry.model}"
        tell(
            f"Published weights to start from: {_described(entry)}. The same command with --start auto starts from them "
            f"instead of random weights{instead}; nothing was downloaded."
        )


def _best(config: TrainConfig, model: str) -> Published | None:
    """Return the best published start for a run that would train ``model``.

    If the user leaves the model open, that is a detector about as large as it, with its own model: less of it starts from
    nothing than with a backbone alone (not measured). The times of a speed contract are those of a certain model, so there
    the model stays.
    """
    if "model" in config.model_fields_set or config.latency is not None:
        return _fitting(model)
    file = load_model_file(model)
    parameters = sum(parameter.numel() for parameter in build_skeleton(file, num_classes=1).parameters())
    return detector_up_to(max(parameters, _SMALL)) or _fitting(model)


def _fitting(model: str) -> Published | None:
    """Return the published weights that fit a shipped model or a model YAML best; None for one that brings its own."""
    if model not in available_models() and not (model.endswith((".yaml", ".yml")) and Path(model).is_file()):
        return None
    file = load_model_file(model)
    name, weights = file.rows[0].name, file.rows[0].arguments
    size = name.removeprefix(_CONVNEXT) if name.startswith(_CONVNEXT) else None
    return None if size and weights else start_for(shipped_name(file.text) or model, size)


def _described(entry: Published) -> str:
    size = "" if entry.megabytes is None else f", {entry.megabytes:g} MB"
    return f"{entry.name} ({entry.repository}, trained on {entry.data}; licence {entry.licence}{size})"
