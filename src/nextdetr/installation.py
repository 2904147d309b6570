"""How this package was installed, so that messages can say how to add to it, and how they write commands."""

from __future__ import annotations

import functools
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["install_command", "to_paste"]


def to_paste(words: Sequence[str]) -> str:
    """Return a command line that can be pasted into a shell; that of Windows knows double quotes only."""
    if sys.platform == "win32":
        from subprocess import list2cmdline

        return list2cmdline(words)
    return shlex.join(words)


@functools.cache
def install_command(extra: str = "") -> str:
    """Return the command that installs an extra where this package came from: an index, a clone, a file or a repository.

    Args:
        extra: name of the extra; empty for the package's own dependencies.
    """
    extras = f"[{extra}]" if extra else ""
    return f"pip install {_origin(extras) or to_paste([f'nextdetr{extras}'])}"


def _origin(extras: str) -> str | None:
    """Return pip's arguments for the origin with these extras; None for an index, and for a path that is gone."""
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    known = _direct_url()
    try:
        url, repository, is_editable = known["url"], known.get("vcs_info"), known.get("dir_info", {}).get("editable")
        if repository is None and url.startswith("file:"):
            path = url2pathname(urlsplit(url).path)
            if not Path(path).exists():
                return None
            return ("-e " if is_editable else "") + to_paste([f"{path}{extras}"])
        if repository is not None:
            branch = repository.get("requested_revision")
            url = f"{repository['vcs']}+{url}" + (f"@{branch}" if branch else "")
        folder = f"#subdirectory={known['subdirectory']}" if "subdirectory" in known else ""
        return to_paste([f"nextdetr{extras} @ {url}{folder}"])
    except (LookupError, TypeError, AttributeError, ValueError, OSError):
        return None


def _direct_url() -> dict[str, Any]:
    """Return what the installer noted of the origin (PEP 610); empty for an index."""
    from importlib import metadata

    try:
        noted = metadata.distribution("nextdetr").read_text("direct_url.json")
        known = json.loads(noted or "{}")
    except (metadata.PackageNotFoundError, ValueError, OSError):
        return {}
    return known if isinstance(known, dict) else {}
