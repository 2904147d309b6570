"""Configurations as YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nextdetr.config import CommandConfig
from nextdetr.errors import ConfigError

__all__ = ["dump_config", "read_config_file"]


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping of settings, ``-`` and ``_`` alike in the names.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    import yaml

    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the configuration cannot be read ({error}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be a mapping of settings (name: value), not a {type(content).__name__}.")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def dump_config(config: CommandConfig) -> str:
    """Return the configuration as YAML, every setting included."""
    import yaml

    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
