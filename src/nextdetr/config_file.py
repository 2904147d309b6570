"""Configurations as YAML files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nextdetr.config import CommandConfig
from nextdetr.errors import ConfigError

__all__ = ["dump_config", "merge_settings", "read_config_file"]


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
    except (yaml.YAMLError, ValueError) as error:  # a date such as 2026-99-99 is a ValueError
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split()).rstrip('.')}.") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply for a configuration.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be a mapping of settings (name: value), not a {type(content).__name__}.")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def merge_settings(kind: type[CommandConfig], stored: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file's settings with those given beside it, which win.

    A setting replaces another way of saying the same thing, too: ``--minutes`` takes the place of a file's ``epochs``.
    """
    replaced: set[str] = set()
    for names in kind.alternatives:
        if any(given.get(name) is not None for name in names):
            replaced |= names
    return {name: value for name, value in stored.items() if name not in replaced} | dict(given)


def dump_config(config: CommandConfig, *, given_only: bool = False) -> str:
    """Return the configuration as YAML: every setting, or only those that were given, so that the rest is still chosen."""
    import yaml

    return yaml.safe_dump(config.model_dump(mode="json", exclude_unset=given_only), sort_keys=False, allow_unicode=True)
